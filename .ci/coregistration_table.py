# SPDX-License-Identifier: GPL-2.0-or-later
"""How far wrong georeferences are found: the share of offsets, and what a fusion gains by it on the real pairs.

    .venv/bin/python .ci/coregistration_table.py --into docs/benchmarks.md

Cubes are seen by both sensors on ground that differs by a known offset, drawn at random in fractions of a coarse pixel;
the real pairs' HS rasters are given a wrong georeference.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import warnings
from pathlib import Path

import rasterio
import torch
from affine import Affine

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.coregistration import find_coregistration
from hypersharp.backend.degradation import degrade
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.job import DEFAULT_MTF_HS, FuseJob
from hypersharp.backend.pipeline import run_fuse
from hypersharp.backend.simulation.response import guide_response
from learned_table import PAIRS
from pages import check_data, page_parser, publish

BEGIN, END = "<!-- coregistration:begin -->", "<!-- coregistration:end -->"
RATIO, FARTHEST, DRAWS, SEED = 2, 7.0, 6, 11
"""Cubes have 100 pixels along a side, as a rule: no more than this ratio leaves enough of them."""
GROUPS = ((0.0, "none"), (1.0, "up to 1"), (3.0, "1.5 to 3"), (7.0, "3 to 7"))
WRONG_BY = (3, -4)
"""Rows and columns, in HS pixels."""


def drawn_offset(farthest, generator):
    """Return an offset in fine pixels whose larger part is within the group that ends at `farthest` coarse ones."""
    if farthest == 0.0:
        return 0, 0
    least = {1.0: 0.0, 3.0: 1.5, 7.0: 3.0}[farthest]
    while True:
        move = (2 * torch.rand(2, generator=generator) - 1) * farthest * RATIO
        move = [round(float(m)) for m in move]
        if least * RATIO <= max(map(abs, move)):
            return tuple(move)


def seen(cube, mask, wavelengths, move, guide, noise_db, generator):
    """Return the HS image and the guide of what lies `move` fine pixels further up and left, with their masks."""
    edge = round(FARTHEST * RATIO)
    size = [(n - 2 * edge) // RATIO * RATIO for n in mask.shape]
    here = tuple(slice(edge, edge + n) for n in size)
    there = tuple(slice(edge - m, edge - m + n) for m, n in zip(move, size))
    hs, known = degrade(cube[:, here[0], here[1]].contiguous(), RATIO, DEFAULT_MTF_HS, mask[here])
    if noise_db is not None:
        level = hs.square().mean(dim=(1, 2), keepdim=True).sqrt() * 10 ** (-noise_db / 20)
        hs = hs + level * torch.randn(hs.shape, generator=generator)
    weights = guide_response(guide, wavelengths).weights
    fine = torch.einsum("kb,brc->krc", weights, torch.where(mask, cube, 0.0))[:, there[0], there[1]]
    return TensorSource(hs, known), TensorSource(fine, mask[there])


def table_of_cubes():
    """Return the lines on simulated pairs."""
    generator = torch.Generator().manual_seed(SEED)
    found = {(name, noise): [] for _, name in GROUPS for noise in quality.NOISES}
    used = []
    for scene in quality.SCENES:
        cube = quality.read_cube(scene)
        if min(cube[1].shape) - 2 * FARTHEST * RATIO < 20 * RATIO:
            continue
        used.append(scene)
        for farthest, name in GROUPS:
            for noise in quality.NOISES:
                for guide in quality.GUIDES:
                    for _ in range(DRAWS if farthest else 1):
                        move = drawn_offset(farthest, generator)
                        pair = seen(*cube, move, guide, noise, generator)
                        got = find_coregistration(*pair, RATIO, DEFAULT_MTF_HS, Control())
                        off = max(abs(got.rows - move[0]), abs(got.cols - move[1]))
                        found[name, noise].append((got.moves, off))
    lines = [
        f"{len(used)} cubes, ratio {RATIO}, PAN and four bands:",
        "",
        "| offset, HS pixels | HS noise | pairs | moved | right to a guide pixel | farthest off, guide pixels |",
        "|---|---|---|---|---|---|",
    ]
    for _, name in GROUPS:
        for noise in quality.NOISES:
            values = found[name, noise]
            moved = [off for moves, off in values if moves]
            right = f"{statistics.fmean(off <= 1 for off in moved):.1%}" if moved else ""
            worst = str(max(moved)) if moved else ""
            said = "none" if noise is None else f"{noise:.0f} dB"
            lines.append(
                f"| {name} | {said} | {len(values)} | {len(moved) / len(values):.1%} | {right} | {worst} |"
            )
    return lines


def table_of_pairs():
    """Return the lines on the real pairs."""
    lines = [
        f"Real pairs, `lmmse`, PSNR in dB at reduced resolution; the georeference wrong by {WRONG_BY[0]} rows and "
        f"{-WRONG_BY[1]} columns of HS pixels:",
        "",
        "| pair | right georeference | wrong, `--no-coregister` | wrong, as found | interpolation |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory() as folder:
        for title, (hs, guide) in PAIRS.items():
            right, fine = (str(quality.DATA / "pairs" / name) for name in (hs, guide))
            wrong = str(Path(folder) / hs)
            with rasterio.open(right) as source:
                place = source.transform * Affine.translation(WRONG_BY[1], WRONG_BY[0])
                with rasterio.open(wrong, "w", **{**source.profile, "transform": place}) as target:
                    target.write(source.read())
                    target.update_tags(**source.tags())
                    for band in source.indexes:
                        target.update_tags(band, **source.tags(band))
            scores = []
            for path, coregister in ((right, True), (wrong, False), (wrong, True)):
                job = FuseJob(path, fine, str(Path(folder) / "fused.tif"), coregister=coregister)
                scores.append(run_fuse(job, Control()).metrics["reduced_resolution"])
            values = [score and score["fused"]["PSNR"] for score in scores]
            values.append(scores[0] and scores[0]["interpolated"]["PSNR"])
            said = ("too small" if value is None else f"{value:.2f}" for value in values)
            lines.append(f"| {title} | {' | '.join(said)} |")
    return lines


def main():
    """Make both tables, print and publish them."""
    options = page_parser(__doc__, BEGIN, END).parse_args()
    check_data(quality.DATA)
    warnings.simplefilter("ignore", rasterio.errors.NotGeoreferencedWarning)
    publish(options.into, BEGIN, END, "\n".join([*table_of_cubes(), "", *table_of_pairs()]) + "\n")


if __name__ == "__main__":
    main()
