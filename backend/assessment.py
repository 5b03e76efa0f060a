# SPDX-License-Identifier: GPL-2.0-or-later
"""Quality of a fused raster: Wald's protocol, full-resolution indices, and a true reference where there is one.

Every index is computed twice: for the fused image and for plain interpolation of the HS image, the control.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import rasterio
import torch
from affine import Affine
from rasterio.enums import Resampling
from rasterio.vrt import WarpedVRT
from torch import Tensor

from .control import Control
from .degradation import Range
from .device import choose_device
from .errors import HyperSharpError
from .fused_source import InterpolatedSource, method_sources
from .grid import NESTING_TOLERANCE, PairGrid
from .io.raster import RasterInfo, source_path
from .io.source import DegradedSource, RasterSource, Source
from .job import AssessJob
from .maps import ErrorMaps, check_maps_folder
from .methods.base import FusionMethod
from .metrics import FullReferenceSet, MetricValue, NoReferenceSet, describe, reference_range
from .metrics.d_rho import DRho
from .pair import Pair, open_fused
from .pipeline import check_side_files, make_maps, metrics_files, versions, write_side_files
from .protocol import Result
from .registry import METHODS, load_method, method_info
from .scene import Scene, tile_windows

BLOCK = 32
"""Tile cores start at multiples of this many pixels (the blocks of Q2n and UIQI)."""
MIN_REDUCED = 4
"""Fewest pixels along a side of the reduced HS image with which Wald's protocol can be run."""
SMALL_REDUCED = 24
"""Below this, its result is said to be uncertain."""
TILE_VALUES = 24_000_000
"""Values (bands x pixels) of a tile of the assessment."""


COLUMNS = ("fused", "interpolated")
"""What every comparison has a column of."""
STAGE_KEYS = ("PSNR", "SAM", "ERGAS")
"""Indices that say what each stage of a method gained."""

Controls = dict[str, dict[str, MetricValue]]
"""Indices of plain interpolation by section, kept while several methods are scored on one pair."""


def _with_halo(core: Range, halo: int, size: int) -> tuple[Range, slice]:
    """Return the range with `halo` pixels around it, and where the core lies in it."""
    start, stop = max(0, core[0] - halo), min(size, core[1] + halo)
    return (start, stop), slice(core[0] - start, core[1] - start)


def _core_side(bands: int, step: int) -> int:
    """Return a tile core's side: a multiple of `step` that keeps a tile below `TILE_VALUES`."""
    return step * max(1, int(math.sqrt(TILE_VALUES / bands)) // step)


def compare_with_reference(
    candidates: Mapping[str, Source],
    reference: Source,
    ratio: int,
    device: torch.device,
    control: Control,
    section: str = "reference",
    maps: ErrorMaps | None = None,
) -> dict[str, dict[str, MetricValue]]:
    """Return the full-reference indices of each candidate; `maps` gets the errors of the one named "fused".

    "fused" and "interpolated" get every index, any other candidate (a stage) those of `STAGE_KEYS`. Pixels count where
    the reference and all candidates are valid, so that the columns compare like with like.
    """
    side = _core_side(reference.bands, BLOCK)
    windows = list(tile_windows((0, reference.rows), (0, reference.cols), side))
    data_range: Tensor | None = None  # SSIM's L, which every tile must share
    for rows, cols in windows:
        data_range = reference_range(*reference.read(rows, cols), data_range)
    sets = {
        name: FullReferenceSet(ratio, None if name in COLUMNS else STAGE_KEYS, data_range)
        for name in candidates
    }
    halo = max(s.halo for s in sets.values())
    for rows, cols in windows:
        wide_rows, core_rows = _with_halo(rows, halo, reference.rows)
        wide_cols, core_cols = _with_halo(cols, halo, reference.cols)
        truth, mask = reference.read(wide_rows, wide_cols)
        images: dict[str, Tensor] = {}
        for name, source in candidates.items():
            control.check()
            images[name], valid = source.read(wide_rows, wide_cols)
            mask = mask & valid
        truth, mask = truth.to(device), mask.to(device)
        for name, image in images.items():
            image = image.to(device)
            sets[name].update(image, truth, mask, (core_rows, core_cols))
            if name == "fused" and maps is not None:
                own = [cube[..., core_rows, core_cols] for cube in (image, truth, mask)]
                maps.add_errors(section, rows[0], cols[0], *own)
        control.step()
    return {name: s.compute() for name, s in sets.items()}


def full_resolution(
    scene: Scene, candidates: Mapping[str, Source], control: Control, maps: ErrorMaps | None = None
) -> dict[str, dict[str, MetricValue]]:
    """Return every no-reference index of each candidate, given on the scene's fine grid; `maps` as above."""
    r, device = scene.ratio, scene.device
    statistics = scene.statistics(scene.mtf_hs, control)
    assignment = statistics.correlation().abs().nan_to_num(0.0).argmax(dim=1)
    sets = {name: NoReferenceSet(r, assignment) for name in candidates}
    mapped = sets["fused"].metrics["D_rho"] if maps is not None else None
    if isinstance(mapped, DRho):
        mapped.keep_map = True
    halo = max(s.halo for s in sets.values())
    guide_lr = DegradedSource(scene.guide, r, scene.mtf_hs)
    degraded = {name: DegradedSource(source, r, scene.mtf_hs) for name, source in candidates.items()}
    height, width = scene.shape
    side = _core_side(scene.hs.bands, BLOCK * r) // r
    for rows, cols in tile_windows((0, scene.hs.rows), (0, scene.hs.cols), side):
        fine_rows, core_rows = _with_halo((rows[0] * r, rows[1] * r), halo, height)
        fine_cols, core_cols = _with_halo((cols[0] * r, cols[1] * r), halo, width)
        hs, hs_mask = scene.hs.read(rows, cols)
        low, low_mask = guide_lr.read(rows, cols)
        guide, guide_mask = scene.guide.read(fine_rows, fine_cols)
        for name, source in candidates.items():
            control.check()
            image, mask = source.read(fine_rows, fine_cols)
            image_lr, mask_lr = degraded[name].read(rows, cols)
            sets[name].update(
                image.to(device),
                guide.to(device),
                (mask & guide_mask).to(device),
                image_lr.to(device),
                hs.to(device),
                low.to(device),
                (mask_lr & hs_mask & low_mask).to(device),
                (core_rows, core_cols),
            )
            if name == "fused" and maps is not None and isinstance(mapped, DRho) and mapped.map is not None:
                maps.add("D_rho", rows[0] * r, cols[0] * r, mapped.map)
        control.step()
    return {name: s.compute() for name, s in sets.items()}


def _steps(scene: Scene, reduced: bool) -> int:
    """Return how many tiles an assessment will work on."""
    bands = scene.hs.bands
    full = _core_side(bands, BLOCK * scene.ratio) // scene.ratio
    count = math.ceil(scene.hs.rows / full) * math.ceil(scene.hs.cols / full)
    if reduced:
        side = _core_side(bands, BLOCK)
        count += math.ceil(scene.hs.rows / side) * math.ceil(scene.hs.cols / side)
    return count


def why_not_reduced(scene: Scene) -> str | None:
    """Return why Wald's protocol cannot be run on a scene, or None when it can."""
    rows, cols = scene.hs.rows // scene.ratio, scene.hs.cols // scene.ratio
    if min(rows, cols) < MIN_REDUCED:
        return f"the HS image is too small to be reduced {scene.ratio} times ({rows}x{cols} pixels would be left)"
    return None


def reduced_resolution(
    scene: Scene,
    method_id: str,
    parameters: Mapping[str, Any],
    control: Control,
    controls: Controls | None = None,
    maps: ErrorMaps | None = None,
) -> dict[str, dict[str, MetricValue]]:
    """Fuse the reduced scene (Wald et al., PE&RS 63(6), 1997) and compare it with the HS image itself.

    Columns beside "fused" and "interpolated" are stages of the method (`FusionMethod.stage_names`).
    """
    reduced = scene.reduced
    method: FusionMethod = load_method(method_id)(parameters)
    # What the method finds in the reduced pair (a shift in coarser pixels, say) is no news of the pair itself.
    method.fit(reduced, control.silent())
    return _beside_control(
        "reduced_resolution",
        method_sources(reduced, method),
        InterpolatedSource(reduced),
        controls,
        lambda c: compare_with_reference(
            c, scene.reference, scene.ratio, scene.device, control, "reduced_resolution", maps
        ),
    )


def _beside_control(
    section: str,
    fused: Mapping[str, Source],
    interpolated: Source,
    controls: Controls | None,
    compute: Callable[[dict[str, Source]], dict[str, dict[str, MetricValue]]],
) -> dict[str, dict[str, MetricValue]]:
    """Return the indices of the candidates and of the control, the control's from `controls` where they are."""
    controls = {} if controls is None else controls
    candidates: dict[str, Source] = dict(fused)
    if section not in controls:
        candidates["interpolated"] = interpolated
    values = compute(candidates)
    controls.setdefault(section, values.get("interpolated", {}))
    return {**values, "interpolated": controls[section]}


class _Table:
    """Collects indices into the dictionary of metrics.json, with a reason for every null."""

    def __init__(self, control: Control) -> None:
        self.content: dict[str, Any] = {}
        self.reasons: dict[str, str] = {}
        self._control = control

    def add(self, section: str, values: dict[str, dict[str, MetricValue]]) -> None:
        """Add a section's columns; those of a method's stages go into the section "stages"."""
        stages = {name: column for name, column in values.items() if name not in COLUMNS}
        if stages:
            order = {"interpolated": values["interpolated"], **stages, "fused": values["fused"]}
            self.content["stages"] = {
                section: {
                    name: {key: column[key].value for key in STAGE_KEYS if key in column}
                    for name, column in order.items()
                }
            }
        values = {name: column for name, column in values.items() if name in COLUMNS}
        self.content[section] = {
            column: {key: v.value for key, v in metrics.items()} for column, metrics in values.items()
        }
        for metrics in values.values():
            for key, value in metrics.items():
                if value.reason is None:
                    continue
                self.reasons.setdefault(f"{section}.{key}", value.reason)
                if value.value is None:
                    self._control.warn(
                        f"{key} ({section.replace('_', ' ')}) was not computed: {value.reason}"
                    )

    def skip(self, section: str, reason: str) -> None:
        """Say why a whole section is missing."""
        self.content[section] = None
        self.reasons[section] = reason

    def per_band(self, pair: Pair, values: dict[str, dict[str, MetricValue]]) -> None:
        """Add the curves over wavelength, the control's below "interpolated"."""
        fused, control = (
            {k: v.per_band for k, v in values[column].items() if k in ("PSNR", "RMSE", "CC") and v.per_band}
            for column in ("fused", "interpolated")
        )
        self.content["per_band"] = {
            "band": [index + 1 for index in pair.survey.usable],
            "wavelength_nm": list(pair.scene.wavelength_nm),
            **fused,
            "interpolated": control,
        }

    def finish(self) -> dict[str, Any]:
        """Return the sections, the reasons, and what each index is."""
        infos = describe()
        return {
            **self.content,
            "reasons": self.reasons,
            "variants": {i.key: i.variant for i in infos},
            "better": {i.key: i.better for i in infos},
        }


def assess_pair(
    pair: Pair,
    fused: str,
    control: Control,
    *,
    method: str | None,
    parameters: Mapping[str, Any] | None = None,
    reference: str | None = None,
    controls: Controls | None = None,
    maps: ErrorMaps | None = None,
) -> dict[str, Any]:
    """Return the quality sections of metrics.json for a fused raster of this pair.

    Args:
        pair: the open inputs.
        fused: path of the fused raster.
        method: its method, for the reduced-resolution protocol; None when unknown.
        parameters: of the method.
        reference: path of the true raster, or None.
        controls: interpolation's indices of an earlier call on this pair, used and added to; None computes them.
        maps: gets the maps of SAM, RMSE and D_rho of the fused image; None makes none.

    Raises:
        HyperSharpError: the fused or the reference raster does not fit the pair.
    """
    scene, table = pair.scene, _Table(control)
    too_small = why_not_reduced(scene)
    with_reduced = method is not None and too_small is None
    control.stage("assessing", _steps(scene, with_reduced) + (1 if reference else 0))
    if with_reduced and method is not None:
        if min(scene.hs.rows, scene.hs.cols) // scene.ratio < SMALL_REDUCED:
            control.warn(
                "the reduced-resolution indices rest on a small image "
                f"({scene.hs.rows // scene.ratio}x{scene.hs.cols // scene.ratio} HS pixels): read them with care"
            )
        values = reduced_resolution(scene, method, parameters or {}, control, controls, maps)
        table.add("reduced_resolution", values)
        table.per_band(pair, values)
    else:
        reason = (
            too_small or "the method that made the image is not known, so it cannot be run on reduced inputs"
        )
        table.skip("reduced_resolution", reason)
        control.warn(f"no reduced-resolution indices: {reason}")
    dataset, info = open_fused(fused)
    with dataset:
        source, opened = place_on_frame(dataset, info, pair, control)
        interpolated = InterpolatedSource(scene)
        values = _beside_control(
            "full_resolution",
            {"fused": source},
            interpolated,
            controls,
            lambda c: full_resolution(scene, c, control, maps),
        )
        table.add("full_resolution", values)
        if reference is not None:
            values = _beside_control(
                "reference",
                {"fused": source},
                interpolated,
                controls,
                lambda c: _with_true_reference(pair, reference, c, control, maps),
            )
            table.add("reference", values)
            if "per_band" not in table.content:
                table.per_band(pair, values)
        if opened is not None:
            opened.close()
    return table.finish()


def _with_true_reference(
    pair: Pair,
    reference: str,
    candidates: Mapping[str, Source],
    control: Control,
    maps: ErrorMaps | None = None,
) -> dict[str, dict[str, MetricValue]]:
    dataset, info = open_fused(reference)
    with dataset:
        info.role = "reference"
        source, opened = place_on_frame(dataset, info, pair, control)
        values = compare_with_reference(
            candidates, source, pair.scene.ratio, pair.scene.device, control, maps=maps
        )
        if opened is not None:
            opened.close()
    return values


def place_on_frame(
    dataset: rasterio.DatasetReader, info: RasterInfo, pair: Pair, control: Control
) -> tuple[Source, WarpedVRT | None]:
    """Return the usable bands of a fine raster as a source on the pair's frame.

    A raster on the guide's grid is read as it is; any other is resampled once (cubic), with a warning.

    Raises:
        HyperSharpError: another number of bands than the HS image, or no common area.
    """
    if info.count != pair.hs.count:
        raise HyperSharpError(
            f"the {info.role} has {info.count} bands, the HS image {pair.hs.count}",
            f"give the {info.role} with the same bands as the HS image",
        )
    grid, usable = pair.grid, pair.survey.usable
    offset = _pixel_offset(info, grid)
    if offset is not None:
        return RasterSource(dataset, info, offset[0], offset[1], grid.shape, usable), None
    crs = grid.crs or "EPSG:3857"
    warped = WarpedVRT(
        dataset,
        src_crs=info.crs or crs,
        crs=crs,
        transform=grid.transform,
        height=grid.shape[0],
        width=grid.shape[1],
        resampling=Resampling.cubic,
        nodata=math.nan,
        dtype="float32",
        **({"src_nodata": dataset.nodata} if dataset.nodata is not None else {}),
    )
    control.warn(f"the {info.role} is not on the guide's grid: it was resampled to it once (cubic)")
    return RasterSource(warped, info, 0, 0, grid.shape, usable), warped


def _pixel_offset(info: RasterInfo, grid: PairGrid) -> tuple[int, int] | None:
    """Return (row, col) of the raster's pixel at the frame's corner when both share one grid."""
    if not info.georeferenced:
        rows, cols = grid.output_shape
        return (-grid.rows[0], -grid.cols[0]) if (info.height, info.width) == (rows, cols) else None
    if info.crs is not None and grid.crs is not None and info.crs != grid.crs:
        return None
    to_raster: Affine = ~info.transform * grid.transform
    row, col = round(to_raster.f), round(to_raster.c)
    size = max(info.width, info.height, *grid.shape)
    misfit = max(abs(to_raster.f - row), abs(to_raster.c - col)) + size * max(
        abs(to_raster.a - 1), abs(to_raster.e - 1), abs(to_raster.b), abs(to_raster.d)
    )
    return (row, col) if misfit <= NESTING_TOLERANCE else None


def assess(
    fused: str | os.PathLike[str],
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    *,
    control: Control | None = None,
    **options: Any,
) -> Result:
    """Score a fused raster, made by HyperSharp or by any other program.

    Args:
        fused, hs, guide: paths.
        control: progress, cancel and warnings; None for none.
        options: any other field of `job.AssessJob` (reference, method, report, metrics, ...).

    Returns:
        As `pipeline.fuse`.

    Raises:
        HyperSharpError: bad input, with a hint.
    """
    job = AssessJob(os.fspath(fused), os.fspath(hs), os.fspath(guide), **options)
    return run_assess(job, control or Control())


def run_assess(job: AssessJob, control: Control) -> Result:
    """Run an assessment job; see `assess`."""
    started = time.monotonic()
    check_side_files(job.report, job.metrics)
    check_maps_folder(
        job.maps, [job.fused, job.hs, job.guide, job.reference, job.report, *metrics_files(job.metrics)]
    )
    if job.method is not None:
        method_info(job.method)
    device, device_note = choose_device(job.device)
    torch.manual_seed(job.seed)
    control.plan({"reading": 1, "assessing": 8, "report": 2})
    control.stage("reading", 1)
    fused, hs, guide = source_path(job.fused), source_path(job.hs), source_path(job.guide)
    dataset, info = open_fused(fused)
    with dataset:
        tags = dataset.tags()
    extent, extent_crs = _bounds(info)
    with Pair(
        hs,
        guide,
        extent=extent,
        extent_crs=extent_crs,
        mtf_hs=job.mtf_hs,
        mtf_guide=job.mtf_guide,
        device=device,
        seed=job.seed,
        move_hs=_noted_move(tags) if job.coregister else (0, 0),
        control=control,
    ) as pair:
        control.step()
        method = job.method or known_method(tags)
        maps = make_maps(job, pair)
        with maps or nullcontext():
            sections = assess_pair(
                pair,
                fused,
                control,
                method=method,
                parameters=job.parameters,
                reference=job.reference,
                maps=maps,
            )
            control.finish()
        metrics: dict[str, Any] = {
            "method": method,
            "title": method_info(method).title if method else "unknown method",
            "citation": method_info(method).citation if method else None,
            "weights": None,
            "fused": Path(fused).name,
            "ratio": pair.grid.ratio,
            "device": device.type,
            "device_note": device_note,
            "seconds": round(time.monotonic() - started, 3),
            "seed": job.seed,
            "versions": versions(),
            "parameters": dict(job.parameters),
            "mtf": {"hs": job.mtf_hs, "guide": job.mtf_guide},
            "inputs": {
                "hs": pair.hs.describe(),
                "guide": pair.guide.describe(),
                "grid": pair.grid.describe(),
            },
            **sections,
            "warnings": list(control.warnings),
        }
    outputs = {"OUTPUT": fused} | write_side_files(metrics, job, fused, hs, guide, control, maps)
    return Result(outputs, metrics, list(control.warnings))


def known_method(tags: Mapping[str, str]) -> str | None:
    """Return the method that HyperSharp noted in a raster, when it is one of this version's."""
    name = tags.get("HYPERSHARP_METHOD")
    return name if name in METHODS else None


def _noted_move(tags: Mapping[str, str]) -> tuple[int, int] | None:
    """Return where HyperSharp took the HS image of a raster to lie (`Pair`'s `move_hs`), if it was noted."""
    try:
        rows, cols = (int(word) for word in tags.get("HYPERSHARP_HS_MOVED", "").split())
    except ValueError:
        return None
    return rows, cols


def _bounds(info: RasterInfo) -> tuple[tuple[float, float, float, float] | None, str | None]:
    """Return the bounding box of a raster and its CRS, so that only its area is assessed."""
    if not info.georeferenced:
        return None, None
    xs, ys = zip(*_corners(info))
    return (min(xs), min(ys), max(xs), max(ys)), info.crs.to_wkt() if info.crs else None


def _corners(info: RasterInfo) -> Iterable[tuple[float, float]]:
    return [info.transform * (c, r) for c in (0, info.width) for r in (0, info.height)]
