# SPDX-License-Identifier: GPL-2.0-or-later
"""Simulated scenes on which the indices are tried, and every index of every candidate on them, kept on disk.

Used by ranking_table.py. The cubes are those of the data folder and the sample scene; nothing of them is written
into the tree. Values are kept in a cache folder, one JSON file a scene, so that a second run only adds methods
whose code has changed.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hypersharp.backend.methods as package
import numpy as np
import rasterio
import torch
from hypersharp.backend.assessment import compare_with_reference, full_resolution, why_not_reduced
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.fused_source import InterpolatedSource, MethodSource
from hypersharp.backend.io.source import Source, TensorSource
from hypersharp.backend.io.wavelengths import read_band_table
from hypersharp.backend.registry import METHODS, load_method, why_unavailable
from hypersharp.backend.scene import Scene
from hypersharp.backend.simulation import write_scene
from hypersharp.backend.simulation.response import assumed_wavelengths, guide_response
from torch import Tensor

EXPERIMENT = 1
"""Counts up when scenes are made in another way: what was kept before is then worth nothing."""
BANDS = 40
"""Bands are thinned to about this many after the guide was made: real guides are no sums of the bands one has."""
SIDE = 120
SAMPLE_SIDE = 160
ASSUMED_MTF = 0.3
TRUTH, INTERPOLATED = "(truth)", "(interpolation)"
CONSISTENT = {"(interpolation, back-projected)": INTERPOLATED, "(gsa, back-projected)": "gsa"}
"""Made to agree with the HS image exactly: what consistency alone would call perfect."""
BACK_PROJECTIONS = 10

FINDING = (
    "aviris_abu_airport-1",
    "aviris_abu_airport-2",
    "aviris_abu_airport-3",
    "aviris_abu_beach-1",
    "aviris_abu_urban-1",
    "aviris_abu_urban-2",
    "aviris_sandiego_1",
    "aviris_sandiego_2",
    "sample-0",
)
"""Cubes on which the combination is found. Sites of one place stand in the same half."""
SHOWING = (
    "aviris_abu_beach-2",
    "aviris_abu_urban-4",
    "aviris_abu_urban-5",
    "aviris_jasper_ridge",
    "aviris_vegetation",
    "rosis_pavia_bridge",
    "enmap_potsdam",
    "paris_hyperion_hs_30m_72x72",
    "sample-1",
)
"""Cubes on which it is shown."""


@dataclass(frozen=True)
class Case:
    """How a pair is made of a cube: ratio, guide, noise of HS and guide in dB, shift in fine pixels, true MTF."""

    name: str
    ratio: int
    guide: str
    snr_db: float | None = None
    shift: int = 0
    mtf: float = ASSUMED_MTF


CASES = (
    Case("ratio 2, PAN", 2, "pan"),
    Case("ratio 4, PAN", 4, "pan"),
    Case("ratio 2, MSI", 2, "4"),
    Case("ratio 4, MSI", 4, "4"),
    Case("ratio 3, PAN, noise 30 dB", 3, "pan", snr_db=30.0),
    Case("ratio 3, MSI, noise 30 dB", 3, "4", snr_db=30.0),
    Case("ratio 4, PAN, half an HS pixel off", 4, "pan", shift=2),
    Case("ratio 2, MSI, half an HS pixel off", 2, "4", shift=1),
    Case("ratio 3, PAN, MTF 0.45", 3, "pan", mtf=0.45),
    Case("ratio 3, MSI, MTF 0.2", 3, "4", mtf=0.2),
)


def candidates() -> list[str]:
    """Return the candidates: the truth, interpolation, and every method that needs no weights."""
    wanted = [
        m.id
        for m in METHODS.values()
        if not m.needs_weights and why_unavailable(m) is None and m.id != "bicubic"
    ]
    return [TRUTH, INTERPOLATED, *CONSISTENT, *wanted]


def read_cube(name: str, data: Path) -> tuple[Tensor, list[float | None], list[float | None]] | None:
    """Return a cube `[bands, rows, cols]` with wavelengths and widths; None when it is not there."""
    if name.startswith("sample-"):
        with tempfile.TemporaryDirectory() as folder:
            path = write_scene(
                Path(folder) / "scene.tif", SAMPLE_SIDE, SAMPLE_SIDE, int(name.removeprefix("sample-"))
            )
            return _read(Path(path), SAMPLE_SIDE)
    for folder in ("cubes", "pairs"):
        path = data / folder / f"{name}.tif"
        if path.is_file():
            return _read(path, SIDE)
    return None


def _read(path: Path, side: int) -> tuple[Tensor, list[float | None], list[float | None]]:
    with rasterio.open(path) as dataset:
        table = read_band_table(dataset)
        raw = dataset.read()
        invalid = np.zeros(raw.shape[1:], bool) if dataset.nodata is None else _empty(raw, dataset.nodata)
    row, col, size = _valid_square(~invalid, side)
    image = torch.from_numpy(raw[:, row : row + size[0], col : col + size[1]].astype(np.float32))
    flat = image.flatten(1)
    clipped = ((flat == flat.amin(1, True)) | (flat == flat.amax(1, True))).float().mean(1) > 0.5
    usable = (flat.std(1) > 0) & ~clipped & torch.tensor(table.good)
    wavelengths = table.wavelength_nm if table.known else assumed_wavelengths(len(raw))[0]
    kept = [i for i, ok in enumerate(usable.tolist()) if ok]
    return image[kept], [wavelengths[i] for i in kept], [table.fwhm_nm[i] for i in kept]


def _empty(raw: np.ndarray, nodata: float) -> np.ndarray:
    """Return where a pixel has no data in most bands (a few bands may be empty everywhere)."""
    return (raw == nodata).mean(axis=0) > 0.5


def _valid_square(valid: np.ndarray, side: int) -> tuple[int, int, tuple[int, int]]:
    """Return (row, col, size) of the first window without an invalid pixel, as large as there is."""
    for size in range(side, 39, -12):
        height, width = min(size, valid.shape[0]), min(size, valid.shape[1])
        for row in range(0, valid.shape[0] - height + 1, 8):
            for col in range(0, valid.shape[1] - width + 1, 8):
                if valid[row : row + height, col : col + width].all():
                    return row, col, (height, width)
    raise ValueError("no valid window")


def make_scene(cube: tuple[Tensor, list, list], case: Case) -> tuple[Scene, Tensor]:
    """Return the pair of a case, and its truth `[bands, rows, cols]`."""
    image, wavelengths, widths = cube
    response = guide_response(case.guide, wavelengths, widths)
    guide = torch.einsum("gb,byx->gyx", response.weights, image)
    thin = image[:: max(1, round(image.shape[0] / BANDS))].contiguous()
    kept = wavelengths[:: max(1, round(image.shape[0] / BANDS))]
    r, shift = case.ratio, case.shift
    rows, cols = ((n - shift) // r * r for n in image.shape[1:])
    truth = thin[:, shift : shift + rows, :cols].contiguous()
    guide = guide[:, :rows, shift : shift + cols].contiguous()  # off in both directions by `shift`
    hs = degrade(truth, r, case.mtf)[0]
    if case.snr_db is not None:
        generator = torch.Generator().manual_seed(7)
        for target, snr in ((hs, case.snr_db), (guide, case.snr_db + 10)):
            sigma = target.flatten(1).square().mean(1).sqrt() * 10 ** (-snr / 20)
            target += torch.randn(target.shape, generator=generator) * sigma[:, None, None]
    scene = Scene(
        TensorSource(hs),
        TensorSource(guide),
        r,
        ASSUMED_MTF,
        ASSUMED_MTF,
        kept,
        response.centre_nm,
    )
    return scene, truth


def _fused(scene: Scene, name: str) -> Source:
    """Return a method's result as an image in memory; interpolation as it is."""
    if name in CONSISTENT:
        return _back_projected(scene, _fused(scene, CONSISTENT[name]))
    if name == INTERPOLATED:
        return InterpolatedSource(scene)
    method = load_method(name)({})
    method.fit(scene, Control())
    image, mask = MethodSource(scene, method).read((0, scene.shape[0]), (0, scene.shape[1]))
    return TensorSource(image, mask)


def _back_projected(scene: Scene, source: Source) -> Source:
    """Return an image whose degraded form is nearly the HS image (Landweber steps with cubic interpolation)."""
    whole = (0, scene.shape[0]), (0, scene.shape[1])
    image, mask = source.read(*whole)
    hs = scene.hs.read((0, scene.hs.rows), (0, scene.hs.cols))[0]
    for _ in range(BACK_PROJECTIONS):
        rest = hs - degrade(image, scene.ratio, scene.mtf_hs)[0]
        error = Scene(TensorSource(rest), scene.guide, scene.ratio, scene.mtf_hs, scene.mtf_guide)
        image = image + InterpolatedSource(error).read(*whole)[0]
    return TensorSource(image, mask)


def score_scene(scene: Scene, truth: Tensor, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return {candidate: {"true" | "full" | "reduced": {index: value}}} for every candidate."""
    control, device = Control(), torch.device("cpu")
    images = {name: TensorSource(truth) if name == TRUTH else _fused(scene, name) for name in names}
    parts = {
        "true": compare_with_reference(images, TensorSource(truth), scene.ratio, device, control),
        "full": full_resolution(scene, images, control),
    }
    if why_not_reduced(scene) is None:
        reduced = {name: _fused(scene.reduced, name) for name in names if name != TRUTH}
        parts["reduced"] = compare_with_reference(reduced, scene.reference, scene.ratio, device, control)
    return {
        name: {
            part: {key: value.value for key, value in values[name].items()}
            for part, values in parts.items()
            if name in values
        }
        for name in names
    }


PLUMBING = {"control", "errors", "job", "protocol", "registry", "weights"}
"""Modules of the backend that no fused value depends on."""


@cache
def _code(name: str) -> str:
    """Return a fingerprint of the code that a candidate's values come from: its module and what that imports."""
    if name in (TRUTH, INTERPOLATED, *CONSISTENT):
        return "-"
    found: dict[str, bytes] = {}
    folder = Path(package.__file__).parent
    todo = [folder / f"{METHODS[name].implementation.partition(':')[0]}.py"]
    while todo:
        path = todo.pop()
        if path.name in found or path.stem in PLUMBING or not path.is_file():
            continue
        found[path.name] = path.read_bytes()
        for node in ast.walk(ast.parse(found[path.name])):
            if isinstance(node, ast.ImportFrom) and node.level:
                base = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
                todo += [base.with_suffix(".py"), *(base / f"{alias.name}.py" for alias in node.names)]
    return hashlib.sha256(b"".join(found[key] for key in sorted(found))).hexdigest()[:12]


def cache_folder() -> Path:
    """Return where values are kept: HYPERSHARP_CACHE, else the user's cache folder."""
    base = os.environ.get("HYPERSHARP_CACHE") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "hypersharp" / f"ranking-{EXPERIMENT}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def values_of(cube_name: str, case: Case, cube: Any, names: list[str]) -> dict[str, dict[str, Any]]:
    """Return the values of a scene, from the cache where the code is the same. `cube` is called when it is needed."""
    key = hashlib.sha256(repr((cube_name, case, BANDS, SIDE)).encode()).hexdigest()[:16]
    path = cache_folder() / f"{key}.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"scene": [cube_name, case.name], "values": {}}
    missing = [n for n in names if kept["values"].get(n, {}).get("code") != _code(n)]
    if missing:
        scene, truth = make_scene(cube(), case)
        for name, values in score_scene(scene, truth, missing).items():
            kept["values"][name] = {"code": _code(name), **values}
        path.write_text(json.dumps(kept))
    return {name: kept["values"][name] for name in names}
