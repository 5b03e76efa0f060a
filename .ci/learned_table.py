# SPDX-License-Identifier: GPL-2.0-or-later
"""PSNR, SAM and ERGAS of the learned methods beside classical ones, on scenes kept out of their training.

    make learned-table        or        .venv/bin/python .ci/learned_table.py --into docs/benchmarks.md

Simulated pairs from the kept-out cubes (as in quality_table.py), pairs drawn from the same cubes with random PSF,
bands, guide, noise and shift (as in training), and the three real pairs at reduced resolution.
What was kept out stands in each weights folder's config.json; a scene that had any part in training or validation
of any of the weights is refused. Results are kept in build/learned.json until the arithmetic changes.
"""

from __future__ import annotations

import hashlib
import json
import statistics
import sys
import time
import zlib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import plain_lmmse
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.job import DEFAULT_MTF_GUIDE, DEFAULT_MTF_HS
from hypersharp.backend.methods.kernel_regression import WEIGHTS as KERNEL
from hypersharp.backend.metrics.sets import FullReferenceSet
from hypersharp.backend.models.pretrained import read_config
from hypersharp.backend.pair import Pair
from hypersharp.backend.registry import METHODS, load_method
from hypersharp.backend.scene import Scene
from hypersharp.backend.training.cubes import read_cube as read_training_cube
from hypersharp.backend.training.examples import mixed_seed
from hypersharp.backend.training.pairs import PairSettings, draw_pair
from hypersharp.backend.weights import SHIPPED, shipped_for
from pages import check_data, page_parser, publish

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
CLASSICAL = [m for m, info in METHODS.items() if not info.needs_weights]
BASE = "lmmse"
PLAIN = "lmmse as first specified"
"""See plain_lmmse.py: the base that the aims were set against; on the simulated pairs of one PSF only."""
RATIOS = (3, 4, 6, 8)
DRAWN = 60
"""Pairs drawn under random conditions."""
DRAWN_SEED = 4242
FAST = ["bicubic", "gsa", "mtf-glp-hpm", "sylvester", "hysure", "lmmse"]
"""Classical methods on the pairs under random conditions."""
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
    names = [*shipped_for(method)[:1], KERNEL] if METHODS[method].needs_weights else []
    if names and METHODS[method].needs:  # the diffusion prior's denoiser
        names.append("prior")
    for name in names:
        for path in sorted((SHIPPED / name).glob("*.safetensors")):
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
    for number in range(DRAWN):

        def draw(number=number):
            name = HELD_OUT[number % len(HELD_OUT)]
            path = quality.DATA / "cubes" / f"{name}.tif"
            generator = torch.Generator().manual_seed(mixed_seed(DRAWN_SEED, number))
            pair = draw_pair(read_training_cube(path), PairSettings(), generator)
            rows, cols = pair.scene.shape
            return pair.scene, pair.truth[:, :rows, :cols], pair.mask, pair.facts

        yield f"drawn|{number}", draw
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


def by_ratio(results, labels, guide, title, noise):
    """Return the table of a guide and a noise, a column for each ratio."""
    found = {}
    for ratio in RATIOS:
        prefix = f"cube|{ratio}|{guide}|{noise}|"
        known = [r for k, r in results.items() if k.startswith(prefix) and r]
        found[ratio] = [r for r in known if all(label in r for label in [*labels, PLAIN])]
    found = {ratio: known for ratio, known in found.items() if known}
    if not found:
        return []
    said = "no noise" if noise is None else f"HS noise {noise:.0f} dB"
    columns = [f"PSNR dB, ratio {ratio} ({len(known)} scenes)" for ratio, known in found.items()]
    heads = ["method", *columns, "SAM °", "ERGAS", "PSNR, dB: mean (range)", "SAM, °"]
    lines = ["", f"**{title}, {said}**", "", f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    every = [r for known in found.values() for r in known]
    for label in [*labels, PLAIN]:
        psnr = [f"{statistics.fmean(r[label]['PSNR'] for r in known):.2f}" for known in found.values()]
        lines.append(f"| {' | '.join([label, *psnr, *differences(every, label)])} |")
    return lines


def differences(known, label):
    """Return SAM, ERGAS, and the differences of PSNR and SAM to the closed form, as written."""
    means = {i: statistics.fmean(r[label][i] for r in known) for i in ("SAM", "ERGAS")}
    written = [f"{means['SAM']:.2f}", f"{means['ERGAS']:.2f}"]
    if label == BASE:
        return [*written, "", ""]
    gains = [r[label]["PSNR"] - r[BASE]["PSNR"] for r in known]
    angle = means["SAM"] - statistics.fmean(r[BASE]["SAM"] for r in known)
    return [
        *written,
        f"{statistics.fmean(gains):+.2f} ({min(gains):+.2f} to {max(gains):+.2f})",
        f"{angle:+.2f}",
    ]


def drawn(results, labels):
    """Return the table of the pairs under random conditions."""
    known = [r for k, r in results.items() if k.startswith("drawn|") and all(label in r for label in labels)]
    if not known:
        return []
    groups = {
        "PAN": [r for r in known if r["facts"]["guide_bands"] == 1],
        "MSI": [r for r in known if r["facts"]["guide_bands"] > 1],
        "clean": [r for r in known if r["facts"]["snr_db"] is None],
        "noisy": [r for r in known if r["facts"]["snr_db"] is not None],
    }
    heads = ["method", *(f"{g}, {len(v)} pairs: PSNR dB" for g, v in groups.items())]
    heads += ["SAM °", "ERGAS", "PSNR, dB: mean (range)", "SAM, °"]
    lines = [
        "",
        f"**Random conditions** ({len(known)} pairs: ratio 2 to 8, MTF gain 0.15 to 0.45, in four of ten pairs not "
        "known; runs of bands, guides of 1 to 8 bands, noise of 25 to 45 dB in half, shifts of up to half a fine pixel "
        "in a quarter)",
        "",
        f"| {' | '.join(heads)} |",
        "|---" * len(heads) + "|",
    ]
    for label in labels:
        means = [f"{statistics.fmean(r[label]['PSNR'] for r in v):.2f}" if v else "" for v in groups.values()]
        lines.append(f"| {' | '.join([label, *means, *differences(known, label)])} |")
    return lines


def tables(results, labels, labels_of_pairs):
    """Return the Markdown; adaptation is measured on the real pairs alone."""
    lines = [
        "Kept out of training and validation: "
        + ", ".join(HELD_OUT)
        + " (three of them of sensors that training never "
        "saw: ROSIS, EnMAP, NEON), and the three real pairs. Means over the scenes; a border of one coarse pixel is "
        "left out. The last two columns are differences to `lmmse`, over all ratios.",
    ]
    for guide, title in quality.GUIDES.items():
        for noise in quality.NOISES:
            lines += by_ratio(results, labels, guide, title, noise)
    lines += drawn(results, [label for label in labels if label in FAST or label not in CLASSICAL])
    head = [
        "| method | PSNR dB | SAM ° | ERGAS | PSNR against `lmmse`, dB: mean (range) | SAM against `lmmse`, ° |",
        "|---|---|---|---|---|---|",
    ]
    for title in PAIRS:
        known = results.get(f"pair|{title}")
        if known and all(label in known for label in labels_of_pairs):
            lines += ["", f"**{title}: real pair at reduced resolution**", "", *head]
            lines += [row(label, [known[label]], [known[BASE]]) for label in labels_of_pairs]
    return "\n".join(lines) + "\n"


def main():
    """Compute, print and write the tables."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--methods", help="ids by comma (default: some classical and every learned one)")
    parser.add_argument(
        "--adapt", type=int, default=0, help="on the real pairs also with so many adaptation steps"
    )
    parser.add_argument("--results", type=Path, default=quality.ROOT / "build" / "learned.json")
    options = parser.parse_args()
    check_data(quality.DATA)
    check_kept_out()
    # csakd's teacher is s3rnet under another name: the same network with the same weights.
    learned = [m for m, info in METHODS.items() if info.needs_weights and m != "csakd-teacher"]
    methods = options.methods.split(",") if options.methods else CLASSICAL + learned
    todo = columns(methods, options.adapt)
    words = {m: weights_word(m) for _, m, _ in todo}
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    plain_word = hashlib.sha256(Path(plain_lmmse.__file__).read_bytes()).hexdigest()[:16]
    cubes = {}
    for key, make in cases(cubes):
        known = results.setdefault(key, {})
        here = todo if key.startswith("pair|") else [c for c in todo if not c[2]]
        if key.startswith("drawn|"):
            here = [c for c in here if c[0] in FAST or c[0] not in CLASSICAL]
        missing = [c for c in here if known.get(c[0], {}).get("code") != words[c[1]]]
        plain = key.startswith("cube|") and known.get(PLAIN, {}).get("code") != plain_word
        made = make() if missing or plain else None
        if made is None:
            continue
        if len(made) > 3:
            known["facts"] = made[3]
        if plain:
            known[PLAIN] = {**plain_lmmse.score(*made[:3], made[0].ratio), "code": plain_word}
        for label, method, parameters in missing:
            known[label] = {**score(method, *made[:3], parameters), "code": words[method]}
        print(key, {c[0]: round(known[c[0]]["PSNR"], 2) for c in here}, flush=True)
        options.results.write_text(json.dumps(results, indent=0))
    text = tables(results, [c[0] for c in todo if not c[2]], [c[0] for c in todo])
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
