# SPDX-License-Identifier: GPL-2.0-or-later
"""PSNR, SAM and ERGAS of every method on the cubes of the data folder, as Markdown tables.

    make quality                                             everything that is not in the results yet
    .venv/bin/python .ci/quality_table.py --methods gsa,lmmse --ratios 4
    .venv/bin/python .ci/quality_table.py --into docs/benchmarks.md      also into the page, between its two marks

Wald's protocol: the cube is the truth; the HS image is the cube filtered with a Gaussian MTF (gain 0.3 at Nyquist)
and decimated, the guide a mixture of the cube's bands: PAN, the mean of those in 450-750 nm, or four Gaussian MSI
bands. Results are kept in build/quality.json and reused while the code that a method runs is the same, so that the
command may be stopped and started again.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import json
import math
import os
import statistics
import time
import warnings
import zlib
from pathlib import Path

import rasterio
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.io.raster import open_input
from hypersharp.backend.io.source import RasterSource, TensorSource
from hypersharp.backend.io.wavelengths import read_band_table
from hypersharp.backend.job import DEFAULT_MTF_GUIDE, DEFAULT_MTF_HS
from hypersharp.backend.metrics.sets import FullReferenceSet
from hypersharp.backend.pair import survey_bands
from hypersharp.backend.registry import METHODS, load_method, method_info, why_unavailable
from hypersharp.backend.scene import Scene
from hypersharp.backend.simulation.response import guide_response
from pages import renew

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("HYPERSHARP_DATA") or ROOT.parent / "shared" / "data")
SCENES = [
    "aviris_abu_airport-1",
    "aviris_abu_airport-2",
    "aviris_abu_airport-3",
    "aviris_abu_beach-1",
    "aviris_abu_beach-2",
    "aviris_abu_urban-1",
    "aviris_abu_urban-2",
    "aviris_abu_urban-4",
    "aviris_abu_urban-5",
    "aviris_sandiego_1",
    "aviris_sandiego_2",
    "aviris_jasper_ridge",
    "aviris_moffett",
    "aviris_vegetation",
    "rosis_pavia_bridge",
    "enmap_potsdam",
    "neon_sjer_1m",
]
RATIOS = (2, 3, 4, 6, 8)
GUIDES = {"pan": "PAN", "4": "MSI of 4 bands"}
NOISES = (None, 30.0)
ASSUMED_NM = (400.0, 2450.0)
"""Range of the cubes that state no wavelengths: their bands are taken as evenly spaced in it."""
MIN_COARSE = 10
"""A scene with fewer coarse pixels along a side is left out at that ratio: nothing can be learned from it."""
ARITHMETIC = ("backend.scene", "backend.degradation")
"""Beside the methods' own files, what their results depend on; indices and readers are taken as settled."""
INDICES = ("PSNR", "SAM", "ERGAS")
BEGIN, END = "<!-- quality: begin -->", "<!-- quality: end -->"


def read_cube(name):
    """Return the usable bands [bands, rows, cols], the mask, and their wavelengths in nm."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
        dataset, info = open_input(DATA / "cubes" / f"{name}.tif", "HS")
    with dataset:
        table = read_band_table(dataset)
        source = RasterSource(dataset, info, 0, 0, (dataset.height, dataset.width))
        survey = survey_bands(source, table, Control())
        cube, mask = source.take(survey.usable).read((0, dataset.height), (0, dataset.width))
    count = len(table.wavelength_nm)
    nm = table.wavelength_nm
    if any(w is None for w in nm):
        step = (ASSUMED_NM[1] - ASSUMED_NM[0]) / (count - 1)
        nm = [ASSUMED_NM[0] + step * i for i in range(count)]
    return cube, mask, [nm[i] for i in survey.usable]


def simulate(cube, mask, wavelengths, ratio, guide, noise_db, seed, mtf=DEFAULT_MTF_HS):
    """Return the scene to fuse, the truth and its mask; methods are told the default MTF gain, whatever it is."""
    rows, cols = (size // ratio * ratio for size in mask.shape)
    truth, mask = cube[:, :rows, :cols], mask[:rows, :cols]
    hs, hs_mask = degrade(truth, ratio, mtf, mask)
    if noise_db is not None:
        power = truth[:, mask].double().square().mean(dim=1)
        sigma = (power.sqrt() * 10 ** (-noise_db / 20)).float()
        generator = torch.Generator().manual_seed(seed)
        hs = hs + torch.randn(hs.shape, generator=generator) * sigma[:, None, None]
    weights = guide_response(guide, wavelengths).weights
    image = torch.einsum("kb,brc->krc", weights, torch.where(mask, truth, 0.0))
    pair = TensorSource(hs, hs_mask), TensorSource(image, mask)
    return Scene(*pair, ratio, DEFAULT_MTF_HS, DEFAULT_MTF_GUIDE, wavelengths), truth, mask


def score(method, scene, truth, mask):
    """Return the indices of a method, a border of one coarse pixel left out, and its seconds."""
    started = time.perf_counter()
    engine = load_method(method)()
    engine.fit(scene, Control())
    tile = scene.tile((0, truth.shape[1]), (0, truth.shape[2]), engine.halo)
    fused = engine.fuse(tile)
    seconds = time.perf_counter() - started
    inner = slice(scene.ratio, -scene.ratio)
    indices = FullReferenceSet(scene.ratio, INDICES)
    indices.update(fused[:, inner, inner], truth[:, inner, inner], (mask & tile.mask)[inner, inner])
    return {**{k: v.value for k, v in indices.compute().items()}, "seconds": round(seconds, 3)}


def code_of(module, seen=None):
    """Return the files of the backend that a module imports by name, itself included."""
    seen = {} if seen is None else seen
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    if module in seen or not path.is_file():
        return seen
    seen[module] = path
    package = module.split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[: len(package) - node.level + 1] + (node.module.split(".") if node.module else [])
            code_of(".".join(base), seen)
            for alias in node.names:
                code_of(".".join([*base, alias.name]), seen)
    return seen


def digest(method):
    """Return a word that changes with the arithmetic behind a method's results; comments and layout do not count."""
    module = method_info(method).implementation.partition(":")[0]
    files = {**code_of(f"backend.methods.{module}"), **code_of("backend.simulation.response")}
    parts = []
    for name, path in sorted(files.items()):
        if name.startswith(("backend.methods", "backend.simulation")) or name in ARITHMETIC:
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                    node.value.value = ""  # a docstring
            parts.append(ast.dump(tree))
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def compute(methods, scenes, ratios, results, store):
    """Fill `results` with what is missing, scene by scene."""
    words = {method: digest(method) for method in methods}
    for name in scenes:
        cube = None
        for ratio in ratios:
            for guide in GUIDES:
                for noise in NOISES:
                    case = f"{name} {ratio} {guide} {noise}"
                    known = results.setdefault(case, {})
                    missing = [m for m in methods if known.get(m, {}).get("code") != words[m]]
                    if not missing:
                        continue
                    cube = cube or read_cube(name)
                    if min(cube[1].shape) // ratio < MIN_COARSE:
                        continue
                    scene, truth, mask = simulate(*cube, ratio, guide, noise, seed=zlib.crc32(name.encode()))
                    for method in missing:
                        known[method] = {**score(method, scene, truth, mask), "code": words[method]}
        if cube is not None:
            store()
            print(f"{name}: done", flush=True)


def mean(values):
    """Return the mean, or nan where any value could not be computed."""
    return statistics.fmean(values) if values and all(v is not None for v in values) else math.nan


def case_values(results, methods, scenes, ratio, guide, noise, index):
    """Return each method's values over the scenes that every method was run on."""
    cases = [results.get(f"{name} {ratio} {guide} {noise}", {}) for name in scenes]
    cases = [case for case in cases if all(method in case for method in methods)]
    return {method: [case[method][index] for case in cases] for method in methods}, len(cases)


def tables(results, methods, scenes, ratios):
    """Return the Markdown."""
    lines = [
        f"Means over {len(scenes)} cubes (AVIRIS, ROSIS, EnMAP, NEON); PSNR in dB (mean over bands, peak = the band's "
        "maximum) / SAM in degrees / ERGAS, a border of one coarse pixel left out. A cube takes part at a ratio where "
        f"its coarse image has at least {MIN_COARSE} pixels along each side. Cubes that state no wavelengths are taken "
        f"as evenly spaced in {ASSUMED_NM[0]:.0f}-{ASSUMED_NM[1]:.0f} nm. Best PSNR and SAM in bold.",
    ]
    for guide, title in GUIDES.items():
        for noise in NOISES:
            columns, heads = [], []
            for ratio in ratios:
                values = {
                    i: case_values(results, methods, scenes, ratio, guide, noise, i)[0] for i in INDICES
                }
                count = case_values(results, methods, scenes, ratio, guide, noise, "PSNR")[1]
                columns.append({i: {m: mean(values[i][m]) for m in methods} for i in INDICES})
                heads.append(f"ratio {ratio} ({count} cubes)")
            heads.append("mean")
            columns.append(
                {i: {m: mean([c[i][m] for c in columns]) for m in methods} for i in INDICES},
            )
            lines += ["", f"**{title}, {'no noise' if noise is None else f'HS noise {noise:.0f} dB'}**", ""]
            lines += ["| method | " + " | ".join(heads) + " |", "|---|" + "---|" * len(heads)]
            best = [(max(c["PSNR"].values()), min(c["SAM"].values())) for c in columns]
            for method in methods:
                cells = []
                for column, (top, least) in zip(columns, best):
                    psnr, sam, ergas = (column[i][method] for i in INDICES)
                    psnr_text = f"**{psnr:.2f}**" if psnr == top else f"{psnr:.2f}"
                    sam_text = f"**{sam:.2f}**" if sam == least else f"{sam:.2f}"
                    cells.append(f"{psnr_text} / {sam_text} / {ergas:.2f}")
                lines.append(f"| `{method}` | " + " | ".join(cells) + " |")
    if 4 in ratios:
        lines += per_scene(results, methods, scenes)
    return "\n".join(lines) + "\n"


def per_scene(results, methods, scenes, ratio=4):
    """Return PSNR by scene at one ratio, PAN and MSI without noise."""
    names = [n for n in scenes if all(m in results.get(f"{n} {ratio} pan None", {}) for m in methods)]
    lines = ["", f"**By scene: PSNR at ratio {ratio} without noise, PAN / MSI**", ""]
    lines += ["| scene | " + " | ".join(f"`{m}`" for m in methods) + " |", "|---|" + "---|" * len(methods)]
    for name in names:
        cells = [
            " / ".join(f"{results[f'{name} {ratio} {g} None'][m]['PSNR']:.1f}" for g in GUIDES)
            for m in methods
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def main():
    """Compute, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help="ids by comma (default: every method without weights)")
    parser.add_argument("--scenes", help="names by comma (default: all)")
    parser.add_argument("--ratios", default=",".join(map(str, RATIOS)))
    parser.add_argument("--results", type=Path, default=ROOT / "build" / "quality.json")
    parser.add_argument("-o", "--output", type=Path, default=ROOT / "build" / "quality.md")
    parser.add_argument("--into", type=Path, help=f"page to renew between {BEGIN} and {END}")
    options = parser.parse_args()
    if not (DATA / "cubes").is_dir():
        parser.exit(
            2, "error: no cubes\nhint: put them into ../shared/data or name the folder in HYPERSHARP_DATA\n"
        )
    able = [m for m, info in METHODS.items() if not info.needs_weights and why_unavailable(info) is None]
    methods = options.methods.split(",") if options.methods else able
    for method in methods:
        method_info(method)
    scenes = options.scenes.split(",") if options.scenes else SCENES
    ratios = [int(r) for r in options.ratios.split(",")]
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    options.results.parent.mkdir(parents=True, exist_ok=True)

    def store():
        part = options.results.with_suffix(".part")
        part.write_text(json.dumps(results, indent=0))
        part.replace(options.results)

    compute(methods, scenes, ratios, results, store)
    text = tables(results, methods, scenes, ratios)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(text, encoding="utf-8")
    if options.into:
        renew(options.into, BEGIN, END, text)
    print(text)


if __name__ == "__main__":
    main()
