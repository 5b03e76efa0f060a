# SPDX-License-Identifier: GPL-2.0-or-later
"""What each part of the diffusion prior is worth, on cubes kept out of its training; and pictures of it.

    .venv/bin/python .ci/prior_table.py --into docs/diffusion.md      the tables (about 20 minutes from nothing)
    .venv/bin/python .ci/prior_table.py --sheets build/prior/sheets   unguided samples; prior, truth, bicubic, lmmse

Simulated pairs as in quality_table.py (ratio 4, no noise unless said). Results are kept in build/prior.json and
reused while weights and code are the same.
"""

from __future__ import annotations

import ast
import hashlib
import json
import statistics
import time
import zlib
from dataclasses import replace
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch

mpl.use("Agg")
import matplotlib.pyplot as plt
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.diffusion.denoiser import load_denoiser
from hypersharp.backend.diffusion.prior import PriorSettings, sample_prior
from hypersharp.backend.diffusion.problem import make_problem
from hypersharp.backend.diffusion.sampling import SamplerSettings, draw
from hypersharp.backend.diffusion.tiles import TiledNoise
from hypersharp.backend.job import DEFAULT_MTF_GUIDE, DEFAULT_MTF_HS
from hypersharp.backend.metrics.sets import FullReferenceSet
from hypersharp.backend.pair import Pair
from hypersharp.backend.registry import load_method
from hypersharp.backend.weights import SHIPPED, find_weights
from pages import check_data, page_parser, publish

CUBES = [
    "rosis_pavia_bridge",
    "aviris_jasper_ridge",
    "aviris_abu_urban-4",
    "aviris_moffett",
    "enmap_potsdam",
    "neon_sjer_1m",
]
RATIO = 4
BEGIN, END = "<!-- prior: begin -->", "<!-- prior: end -->"
MINE = PriorSettings()
ALONE = replace(MINE, residual="itp", sampler=replace(MINE.sampler, anchor=0.0))
"""Without the closed form: the data terms and the network alone, R interpolated."""
GRADIENT = replace(ALONE, sampler=replace(ALONE.sampler, guidance="gradient"))


def only(*terms, of=ALONE):
    """Return settings guided by these terms alone."""
    return replace(of, sampler=replace(of.sampler, terms=terms))


GROUPS = {
    "Data terms (network and data alone, R interpolated)": {
        "no guidance": only(),
        "guide term only": only("guide"),
        "HS term only": only("hs"),
        "both": ALONE,
    },
    "Guidance": {
        "gradient through the network, line search": GRADIENT,
        "solve": ALONE,
        "solve, R of the closed form": replace(ALONE, residual="lmmse"),
        "solve, R and anchor of the closed form (default)": MINE,
    },
    "Band selection (default otherwise)": {
        r: replace(MINE, rule=r) for r in ("pca", "rrqr", "mvpca", "equal")
    },
    "Base bands": {f"{n}": replace(MINE, rank=n) for n in (3, 6)},
    "Steps (default otherwise: the presets)": {f"{n}": replace(MINE, steps=n) for n in (10, 20, 50)},
    "Steps (network and data alone)": {f"{n}": replace(ALONE, steps=n) for n in (10, 20, 50, 100)},
    "Start (default otherwise)": {
        "noise": MINE,
        "`lmmse`, signal 0.5": replace(MINE, start="lmmse", signal=0.5),
        "`lmmse`, signal 0.9": replace(MINE, start="lmmse", signal=0.9),
    },
    "Start (R of the closed form, no anchor)": {
        "noise": replace(ALONE, residual="lmmse"),
        "`lmmse`, signal 0.9": replace(ALONE, residual="lmmse", start="lmmse", signal=0.9),
        "`lmmse`, signal 0.98": replace(ALONE, residual="lmmse", start="lmmse", signal=0.98),
    },
}
OTHER_PAIRS = {"PAN, HS noise 30 dB": ("pan", 30.0), "MSI of 4 bands": ("4", None)}
ROWS = {"default": MINE, "network and data alone": ALONE}


def word(weights):
    """Return a word that changes with the weights and the code of the prior; docstrings do not count."""
    found = hashlib.sha256((weights / "diffusion_pytorch_model.safetensors").read_bytes())
    for path in sorted((quality.ROOT / "backend" / "diffusion").glob("*.py")):
        if path.stem in ("training", "sr3", "cache", "cache_folder"):
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value.value = ""
        found.update(ast.dump(tree).encode())
    return found.hexdigest()[:16]


def indices(image, truth, mask):
    """Return PSNR and SAM, a border of one coarse pixel left out."""
    inner = slice(RATIO, -RATIO)
    found = FullReferenceSet(RATIO, ("PSNR", "SAM"))
    found.update(image[:, inner, inner], truth[:, inner, inner], mask[inner, inner])
    return {k: v.value for k, v in found.compute().items()}


def classical(method, scene, truth):
    """Return a classical method's result."""
    engine = load_method(method)()
    engine.fit(scene, Control())
    return engine.fuse(scene.tile((0, truth.shape[1]), (0, truth.shape[2]), engine.halo))


class Table:
    """Results by case and settings, kept in a file."""

    def __init__(self, path, weights):
        self.path, self.code = path, word(weights)
        self.denoiser = load_denoiser(weights)
        known = json.loads(path.read_text()) if path.is_file() else {}
        self.known = known.get("results", {}) if known.get("code") == self.code else {}
        self.scenes = {}

    def scene(self, name, guide, noise):
        key = f"{name} {guide} {noise}"
        if key not in self.scenes:
            cube = quality.read_cube(name)
            made = None
            if min(cube[1].shape) // RATIO >= quality.MIN_COARSE:
                made = quality.simulate(*cube, RATIO, guide, noise, zlib.crc32(name.encode()))
            self.scenes = {key: made}
        return self.scenes[key]

    def get(self, name, what, guide="pan", noise=None):
        """Return PSNR, SAM, seconds and facts of settings or of a classical method; None for too small a cube."""
        key = f"{name} {guide} {noise} {what}"
        if key not in self.known:
            made = self.scene(name, guide, noise)
            if made is None:
                self.known[key] = None
            else:
                scene, truth, mask = made
                started = time.perf_counter()
                if isinstance(what, str):
                    image, facts = classical(what, scene, truth), {}
                else:
                    prior = sample_prior(scene, what, Control(), self.denoiser)
                    image = prior.image()
                    facts = {"unexplained": prior.facts["unexplained_by_bands"], **prior.facts["data_terms"]}
                seconds = round(time.perf_counter() - started, 2)
                self.known[key] = {**indices(image, truth, mask), "seconds": seconds, "facts": facts}
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.write_text(json.dumps({"code": self.code, "results": self.known}, indent=0))
        return self.known[key]

    def row(self, label, what, guide="pan", noise=None):
        """Return a line: means over the cubes, and PSNR by cube."""
        found = [self.get(name, what, guide, noise) for name in CUBES]
        found = [v for v in found if v is not None]
        cells = [
            f"{statistics.fmean(v['PSNR'] for v in found):.2f}",
            f"{statistics.fmean(v['SAM'] for v in found):.2f}",
        ]
        ends = [v["facts"] for v in found if v["facts"].get("hs")]
        for term in ("hs", "guide"):
            values = [e[term]["end"] for e in ends]
            cells.append(f"{statistics.fmean(values):.3f}" if values else "")
        cells.append(f"{statistics.fmean(v['seconds'] for v in found):.1f}")
        cells.append(" / ".join(f"{v['PSNR']:.1f}" for v in found))
        print(label, cells, flush=True)
        return f"| {label} | " + " | ".join(cells) + " |"


def tables(table):
    """Return the Markdown."""
    config = json.loads((SHIPPED / "prior" / "config.json").read_text())["training"]
    used = [n for n in CUBES if table.get(n, "bicubic") is not None]
    left = [n for n in CUBES if n not in used]
    lines = [
        f"Ratio {RATIO}, simulated pairs of {', '.join(used)}"
        + (f" ({', '.join(left)}: too few pixels)" if left else "")
        + f"; none had a part in training. Shipped weights: {config['steps']} steps of {config['batch']} crops. Means; "
        "PSNR in dB, SAM in degrees, a border of one coarse pixel left out; data terms at the end as root mean squares "
        "in standard deviations of the bands; seconds with one thread on a busy machine; at the right PSNR by cube. "
        "Preset standard (20 steps) where nothing else is said, seed 0.",
    ]
    head = ["| | PSNR | SAM | HS term | guide term | s | PSNR by cube |", "|---|---|---|---|---|---|---|"]
    lines += ["", "**Beside (PAN, no noise)**", "", *head]
    lines += [table.row(f"`{m}`", m) for m in ("bicubic", "lmmse")]
    for title, rows in GROUPS.items():
        lines += ["", f"**{title}**", "", *head]
        lines += [table.row(label, settings) for label, settings in rows.items()]
    for title, (guide, noise) in OTHER_PAIRS.items():
        lines += ["", f"**{title}**", "", *head]
        lines += [table.row(f"`{m}`", m, guide, noise) for m in ("bicubic", "lmmse")]
        lines += [table.row(label, settings, guide, noise) for label, settings in ROWS.items()]
    lines += ["", "**Residual of the low-rank model on the HS image itself, |Y - E Y_B| / |Y|**", ""]
    lines += ["| rule | " + " | ".join(used) + " |", "|---|" + "---|" * len(used)]
    for rule in ("pca", "rrqr", "mvpca", "equal"):
        values = [table.get(n, replace(MINE, rule=rule))["facts"]["unexplained"] for n in used]
        lines.append(f"| {rule} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    return "\n".join(lines) + "\n"


def stretched(images, reference):
    """Return `[3, rows, cols]` images as RGB, all stretched as the reference is."""
    low = np.percentile(reference, 1, axis=(1, 2))[:, None, None]
    high = np.percentile(reference, 99, axis=(1, 2))[:, None, None]
    return [np.clip((i - low) / np.maximum(high - low, 1e-9), 0, 1).transpose(1, 2, 0) for i in images]


def sheet(path, titles, images, scale=3):
    """Write images side by side, every pixel `scale` screen pixels, with titles."""
    rows, cols = images[0].shape[:2]
    width = cols * scale * len(images) / 100
    figure, axes = plt.subplots(
        1, len(images), figsize=(width, rows * scale / 100 + 0.3), dpi=100, squeeze=False
    )
    for axis, title, image in zip(axes[0], titles, images):
        axis.imshow(image, interpolation="nearest")
        axis.set_title(title, fontsize=9)
        axis.axis("off")
    figure.subplots_adjust(0, 0, 1, 0.93, 0.01, 0)
    figure.savefig(path)
    plt.close(figure)


def sheets(folder, denoiser):
    """Render unguided samples, and priors beside truth, bicubic and lmmse."""
    folder.mkdir(parents=True, exist_ok=True)
    scene, _, _ = quality.simulate(*quality.read_cube(CUBES[0]), RATIO, "pan", None, 0)
    terms = make_problem(scene, Control()).terms
    free = SamplerSettings(steps=50, terms=())
    samples = []
    for seed in range(6):
        sample = draw(TiledNoise(denoiser), terms, free, Control(), seed).base.numpy()
        samples.append(np.clip(sample, 0, 1).transpose(1, 2, 0))
    sheet(folder / "unguided.png", [f"seed {i}" for i in range(6)], samples, 2)
    for name in CUBES:
        cube = quality.read_cube(name)
        if min(cube[1].shape) // RATIO < quality.MIN_COARSE:
            continue
        scene, truth, _ = quality.simulate(*cube, RATIO, "pan", None, zlib.crc32(name.encode()))
        prior, alone = (sample_prior(scene, s, Control(), denoiser) for s in (MINE, ALONE))
        images = [truth, prior.image(), alone.image(), classical("lmmse", scene, truth)]
        images += [classical("bicubic", scene, truth)]
        chosen = [i[prior.bands].numpy() for i in images]
        titles = ["truth", "prior", "network and data alone", "lmmse", "bicubic"]
        sheet(folder / f"{name}.png", titles, stretched(chosen, chosen[0]))
    hs, guide = (quality.DATA / "pairs" / f for f in ("paris_hyperion_hs_30m.tif", "paris_ali_pan_10m.tif"))
    gains = {"mtf_hs": DEFAULT_MTF_HS, "mtf_guide": DEFAULT_MTF_GUIDE}
    with Pair(str(hs), str(guide), control=Control(), **gains) as pair:
        scene = pair.scene
        rows, cols = scene.shape
        pan = scene.guide.read((0, rows), (0, cols))[0].numpy().repeat(3, 0)
        prior, alone = (sample_prior(scene, s, Control(), denoiser) for s in (MINE, ALONE))
        blank = torch.empty(0, rows, cols)
        images = [prior.image(), alone.image()]
        images += [classical(m, scene, blank) for m in ("lmmse", "bicubic")]
        chosen = stretched([i[prior.bands].numpy() for i in images], images[2][prior.bands].numpy())
    titles = ["guide", "prior", "network and data alone", "lmmse", "bicubic"]
    sheet(folder / "paris.png", titles, [*stretched([pan], pan), *chosen], 2)


def main():
    """Compute, print and write."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--weights", default="prior", help="name of shipped weights, or a folder")
    parser.add_argument("--results", type=Path, default=quality.ROOT / "build" / "prior.json")
    parser.add_argument("--sheets", type=Path, help="render pictures into this folder instead")
    options = parser.parse_args()
    check_data(quality.DATA)
    weights = find_weights(options.weights)
    data = json.loads((weights / "config.json").read_text())["training"]["data"]
    seen = set(data["cubes"]) & set(CUBES)
    if seen:
        parser.exit(2, f"error: the weights were trained on {', '.join(sorted(seen))}\nhint: name others\n")
    if options.sheets:
        sheets(options.sheets, load_denoiser(weights))
        return
    text = tables(Table(options.results, weights))
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
