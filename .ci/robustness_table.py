# SPDX-License-Identifier: GPL-2.0-or-later
"""How far methods fall with noise, and with a PSF that is not the one they are told.

    make robustness        or        .venv/bin/python .ci/robustness_table.py --into docs/benchmarks.md

On the scenes kept out of training, ratio 4, PAN and MSI: HS noise of 40 to 20 dB, and an HS sensor whose MTF gain at
Nyquist is 0.15 or 0.45 where the methods are told 0.30. Results are kept in build/robustness.json until the
arithmetic or the weights change.
"""

from __future__ import annotations

import json
import statistics
import sys
import zlib
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.job import DEFAULT_MTF_HS
from hypersharp.backend.registry import METHODS
from learned_table import HELD_OUT, check_kept_out, score, weights_word
from pages import check_data, page_parser, publish

RATIO = 4
CONDITIONS = {
    "clean": (None, DEFAULT_MTF_HS),
    "noise 40 dB": (40.0, DEFAULT_MTF_HS),
    "noise 30 dB": (30.0, DEFAULT_MTF_HS),
    "noise 25 dB": (25.0, DEFAULT_MTF_HS),
    "noise 20 dB": (20.0, DEFAULT_MTF_HS),
    "MTF 0.15": (None, 0.15),
    "MTF 0.45": (None, 0.45),
}
"""Signal-to-noise ratio of the HS image in dB, and the MTF gain that it really has."""
CLASSICAL = ["bicubic", "gsa", "mtf-glp-hpm", "sylvester", "hysure", "lmmse"]
BEGIN, END = "<!-- robustness:begin -->", "<!-- robustness:end -->"


def compute(methods, store):
    """Return {condition|guide|scene: {method: indices}}."""
    results = json.loads(store.read_text()) if store.is_file() else {}
    store.parent.mkdir(parents=True, exist_ok=True)
    words = {m: weights_word(m) for m in methods}
    for name in HELD_OUT:
        cube = quality.read_cube(name)
        if min(cube[1].shape) // RATIO < quality.MIN_COARSE:
            continue
        for guide in quality.GUIDES:
            for condition, (noise, mtf) in CONDITIONS.items():
                known = results.setdefault(f"{condition}|{guide}|{name}", {})
                missing = [m for m in methods if known.get(m, {}).get("code") != words[m]]
                if not missing:
                    continue
                seed = zlib.crc32(name.encode())
                made = quality.simulate(*cube, RATIO, guide, noise, seed, mtf)
                for method in missing:
                    known[method] = {**score(method, *made, {}), "code": words[method]}
                print(condition, guide, name, {m: round(known[m]["PSNR"], 2) for m in methods}, flush=True)
                store.write_text(json.dumps(results, indent=0))
    return results


def tables(results, methods):
    """Return the Markdown."""
    lines = []
    for guide, title in quality.GUIDES.items():
        means = {}
        for condition in CONDITIONS:
            known = [r for k, r in results.items() if k.startswith(f"{condition}|{guide}|")]
            for method in methods:
                means[condition, method] = statistics.fmean(r[method]["PSNR"] for r in known)
        lines += [
            f"**{title}**, mean PSNR in dB over {len(known)} scenes, in brackets against clean",
            "",
            f"| method | {' | '.join(CONDITIONS)} |",
            "|---" * (len(CONDITIONS) + 1) + "|",
        ]
        for method in methods:
            clean = means["clean", method]
            cells = [f"{clean:.2f}"]
            for condition in list(CONDITIONS)[1:]:
                value = means[condition, method]
                cells.append(f"{value:.2f} ({value - clean:+.2f})")
            lines.append(f"| {method} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def main():
    """Compute, print and write the tables."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--methods", help="ids by comma (default: some classical and every learned one)")
    parser.add_argument("--results", type=Path, default=quality.ROOT / "build" / "robustness.json")
    options = parser.parse_args()
    check_data(quality.DATA)
    check_kept_out()
    learned = [m for m, info in METHODS.items() if info.needs_weights and m != "csakd-teacher"]
    methods = options.methods.split(",") if options.methods else CLASSICAL + learned
    text = tables(compute(methods, options.results), methods)
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
