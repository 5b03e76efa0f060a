# SPDX-License-Identifier: GPL-2.0-or-later
"""PSNR, SAM and ERGAS of the learned methods beside classical ones, on scenes kept out of their training.

    make learned-table        or        .venv/bin/python .ci/learned_table.py --into docs/benchmarks.md

Simulated pairs from the kept-out cubes (as in quality_table.py) and the three real pairs at reduced resolution.
What was kept out stands in each weights folder's config.json; a scene that had any part in training or validation
of any of the weights is refused. Results are kept in build/learned.json until the arithmetic changes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
import sys
import time
import zlib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.job import DEFAULT_MTF_GUIDE, DEFAULT_MTF_HS
from hypersharp.backend.metrics.sets import FullReferenceSet
from hypersharp.backend.models.pretrained import read_config
from hypersharp.backend.pair import Pair
from hypersharp.backend.registry import METHODS, load_method
from hypersharp.backend.scene import Scene
from hypersharp.backend.weights import SHIPPED

HELD_OUT = [
    "aviris_abu_urban-4",
    "aviris_jasper_ridge",
    "aviris_moffett",
    "rosis_pavia_bridge",
    "enmap_potsdam",
    "neon_sjer_1m",
]
PAIRS = {
    "Paris, Hyperion + ALI PAN": ("paris_hyperion_hs_30m.tif", "paris_ali_pan_10m.tif"),
    "Berlin, EnMAP (simulated) + HyMap MSI": ("berlin_enmapsim_hs_30m.tif", "berlin_hymap_msi_3p6m.tif"),
    "Harvard Forest, NEON + RGB": (
        "harvard_forest_neon_hs_1m.tif",
        "harvard_forest_neon_rgb_0p1m.tif",
    ),
}
CLASSICAL = ["bicubic", "gsa", "mtf-glp-hpm", "lmmse"]
BASE = "lmmse"
RATIOS = (3, 4, 6)
BEGIN, END = "<!-- learned:begin -->", "<!-- learned:end -->"


def check_kept_out():
    """Refuse scenes that had a part in training any of the shipped weights."""
    for folder in SHIPPED.iterdir():
        if not folder.is_dir():
            continue
        data = read_config(folder)["training"]["data"]
        used = set(data.get("cubes", [])) | set(data.get("validated_on", []))
        seen = used & set(HELD_OUT)
        if seen:
            sys.exit(f"error: {folder.name} was trained or validated on {', '.join(sorted(seen))}")


def weights_word(method):
    """Return a word that changes with the code and the weights behind a method's results."""
    word = quality.digest(method)
    for path in sorted(SHIPPED.glob("*/model.safetensors")):
        if METHODS[method].needs_weights:
            word += hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    return word


def cases(cubes):
    """Yield a key and a function that makes (scene, truth, mask)."""
    for name in HELD_OUT:
        for ratio in RATIOS:
            for guide in quality.GUIDES:
                for noise in quality.NOISES:

                    def make(name=name, ratio=ratio, guide=guide, noise=noise):
                        if name not in cubes:
                            cubes[name] = quality.read_cube(name)
                        cube = cubes[name]
                        if min(cube[1].shape) // ratio < quality.MIN_COARSE:
                            return None
                        return quality.simulate(*cube, ratio, guide, noise, zlib.crc32(name.encode()))

                    yield f"cube|{ratio}|{guide}|{noise}|{name}", make
    for title, files in PAIRS.items():

        def make_pair(files=files):
            hs, guide = (str(quality.DATA / "pairs" / f) for f in files)
            with Pair(
                hs, guide, mtf_hs=DEFAULT_MTF_HS, mtf_guide=DEFAULT_MTF_GUIDE, control=Control()
            ) as pair:
                reduced = pair.scene.reduced
                rows, cols = reduced.shape
                truth, mask = pair.scene.reference.read((0, rows), (0, cols))
                low = reduced.hs.read((0, reduced.hs.rows), (0, reduced.hs.cols))
                fine = reduced.guide.read((0, rows), (0, cols))
            scene = Scene(
                TensorSource(*low), TensorSource(*fine), reduced.ratio, reduced.mtf_hs, reduced.mtf_guide
            )
            return scene, truth, mask

        yield f"pair|{title}", make_pair


def score(method, scene, truth, mask, parameters):
    """Return the indices of a method, a border of one coarse pixel left out, and its seconds."""
    started = time.perf_counter()
    engine = load_method(method)(parameters)
    engine.fit(scene, Control())
    tile = scene.tile((0, truth.shape[1]), (0, truth.shape[2]), engine.halo)
    fused = engine.fuse(tile)
    seconds = time.perf_counter() - started
    inner = slice(scene.ratio, -scene.ratio)
    indices = FullReferenceSet(scene.ratio, quality.INDICES)
    indices.update(fused[:, inner, inner], truth[:, inner, inner], (mask & tile.mask)[inner, inner])
    values = {k: v.value for k, v in indices.compute().items()}
    return {**values, "seconds": round(seconds, 3), "adaptation": getattr(engine, "adaptation", None)}


def columns(methods, adapt):
    """Return (label, method, options) of every column."""
    found = [(m, m, {}) for m in methods]
    if adapt:
        found += [(f"{m} + adapt {adapt}", m, {"adapt": adapt}) for m in methods if METHODS[m].needs_weights]
    return found


def row(label, values, base):
    """Return a line of a table: means, and the difference to the closed form with its range."""
    means = [statistics.fmean(v[i] for v in values) for i in quality.INDICES]
    gains = [a["PSNR"] - b["PSNR"] for a, b in zip(values, base)]
    angle = means[1] - statistics.fmean(b["SAM"] for b in base)
    against = (
        "" if label == BASE else f"{statistics.fmean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})"
    )
    return (
        f"| {label} | {means[0]:.2f} | {means[1]:.2f} | {means[2]:.2f} | {against} | "
        f"{'' if label == BASE else f'{angle:+.2f}'} |"
    )


def tables(results, labels, labels_of_pairs):
    """Return the Markdown; adaptation is measured on the real pairs alone."""
    head = [
        "| method | PSNR dB | SAM ° | ERGAS | PSNR against `lmmse`, dB: mean (range) | SAM against `lmmse`, ° |",
        "|---|---|---|---|---|---|",
    ]
    lines = [
        "Kept out of training and validation: "
        + ", ".join(HELD_OUT)
        + " (three of them of sensors that training never "
        "saw: ROSIS, EnMAP, NEON), and the three real pairs. Border of one coarse pixel left out.",
    ]
    for ratio in RATIOS:
        for guide, title in quality.GUIDES.items():
            for noise in quality.NOISES:
                prefix = f"cube|{ratio}|{guide}|{noise}|"
                known = [r for k, r in results.items() if k.startswith(prefix) and r]
                known = [r for r in known if all(label in r for label in labels)]
                if not known:
                    continue
                said = "no noise" if noise is None else f"HS noise {noise:.0f} dB"
                lines += ["", f"**{title}, ratio {ratio}, {said} ({len(known)} scenes)**", "", *head]
                base = [r[BASE] for r in known]
                lines += [row(label, [r[label] for r in known], base) for label in labels]
    for title in PAIRS:
        known = results.get(f"pair|{title}")
        if known and all(label in known for label in labels_of_pairs):
            lines += ["", f"**{title}: real pair at reduced resolution**", "", *head]
            lines += [row(label, [known[label]], [known[BASE]]) for label in labels_of_pairs]
    return "\n".join(lines) + "\n"


def main():
    """Compute, print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", help="ids by comma (default: some classical and every learned one)")
    parser.add_argument(
        "--adapt", type=int, default=0, help="on the real pairs also with so many adaptation steps"
    )
    parser.add_argument("--results", type=Path, default=quality.ROOT / "build" / "learned.json")
    parser.add_argument("--into", type=Path, help=f"page to renew between {BEGIN} and {END}")
    options = parser.parse_args()
    if not (quality.DATA / "cubes").is_dir():
        parser.exit(
            2, "error: no cubes\nhint: put them into ../shared/data or name the folder in HYPERSHARP_DATA\n"
        )
    check_kept_out()
    learned = [m for m, info in METHODS.items() if info.needs_weights]
    methods = options.methods.split(",") if options.methods else CLASSICAL + learned
    todo = columns(methods, options.adapt)
    words = {m: weights_word(m) for _, m, _ in todo}
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    cubes = {}
    for key, make in cases(cubes):
        known = results.setdefault(key, {})
        here = todo if key.startswith("pair|") else [c for c in todo if not c[2]]
        missing = [c for c in here if known.get(c[0], {}).get("code") != words[c[1]]]
        made = make() if missing else None
        if made is None:
            continue
        for label, method, parameters in missing:
            known[label] = {**score(method, *made, parameters), "code": words[method]}
        print(key, {c[0]: round(known[c[0]]["PSNR"], 2) for c in here}, flush=True)
        options.results.write_text(json.dumps(results, indent=0))
    text = tables(results, [c[0] for c in todo if not c[2]], [c[0] for c in todo])
    if options.into:
        page = options.into.read_text(encoding="utf-8")
        if BEGIN not in page or END not in page:
            parser.exit(
                2, f"error: {options.into} has no {BEGIN} and {END}\nhint: put both lines where it goes\n"
            )
        before, after = page.split(BEGIN)[0], page.split(END)[1]
        options.into.write_text(f"{before}{BEGIN}\n{text}{END}{after}", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
