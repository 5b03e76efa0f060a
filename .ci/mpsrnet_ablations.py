# SPDX-License-Identifier: GPL-2.0-or-later
"""What each part of MPSRNet earns: the same short training without it, on the same pairs in the same order.

    .venv/bin/python .ci/mpsrnet_ablations.py [--steps 300] --into docs/models.md

Gains over lmmse on pairs from cubes that are not trained on (those that train_weights.py validates on). Without the
start, which would hide what the network itself can do; the trainings are short, so differences of a few hundredths of
a dB say nothing.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.methods.mpsrnet_diff import prior_drawer
from hypersharp.backend.training.cubes import read_cubes
from hypersharp.backend.training.examples import ExampleStream, psnr_gain
from hypersharp.backend.training.pairs import PairSettings
from hypersharp.backend.training.presets import COMPONENTS, PRESETS, build
from hypersharp.backend.training.run import VALIDATION_PAIRS, VALIDATION_SEED, split_cubes
from hypersharp.backend.training.trainer import Trainer, TrainSettings
from learned_table import HELD_OUT
from pages import page_parser, publish
from train_weights import VALIDATED_ON

BEGIN, END = "<!-- ablations:begin -->", "<!-- ablations:end -->"
VARIANTS = {
    "as published": {},
    "without the prior (PAN or MSI only)": {"prior": False},
    "one step instead of a progression": {"progressive": False},
    "no inter-input scans": {"inter": False},
    "scans replaced by convolutions": {"mixer": "conv"},
}
POOL = 72
VALIDATED = 24


def without_prior(examples):
    """Return the examples for a network that takes none."""
    return [replace(e, prior=None) for e in examples]


class Pool:
    """Ready examples, drawn as an `ExampleStream` draws them."""

    def __init__(self, examples):
        self.examples = examples

    def draw(self, step, dice):
        """Return one of them."""
        return self.examples[dice.integer(0, len(self.examples) - 1)]


def run(config, training, validation, steps):
    """Train a variant; return its parameters, the gains in dB and the seconds a step."""
    torch.manual_seed(1)
    model = build(config)
    settings = TrainSettings(steps=steps, examples=1, validate_every=steps)
    started = time.perf_counter()
    trainer = Trainer(model, Pool(training), settings, validation)
    trainer.run(Control())
    seconds = (time.perf_counter() - started) / steps
    trainer.load_best()
    with torch.no_grad():
        gains = [psnr_gain(trainer.forward(model, e)[0], e) for e in validation]
    return model.parameter_count(), gains, seconds


def main():
    """Train all variants and print the table."""
    parser = page_parser(__doc__, BEGIN, END)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--results", type=Path, default=quality.ROOT / "build" / "ablations.json")
    options = parser.parse_args()
    cubes = read_cubes(str(quality.DATA / "cubes"), tuple(HELD_OUT))
    seen, unseen = split_cubes(cubes, VALIDATED_ON, 0)
    draw = prior_drawer()
    stream = ExampleStream(seen, PairSettings(), COMPONENTS, 1029, draw_prior=draw)
    training = [stream.example(i) for i in range(POOL)]
    stream = ExampleStream(unseen, VALIDATION_PAIRS, COMPONENTS, VALIDATION_SEED, draw_prior=draw)
    validation = [stream.example(i) for i in range(VALIDATED)]
    results = json.loads(options.results.read_text()) if options.results.is_file() else {}
    base = replace(PRESETS["mpsrnet-diff"].config, start=())
    for name, change in VARIANTS.items():
        if results.get(name, {}).get("steps") == options.steps:
            continue
        config = replace(base, **change)
        if not config.prior:
            config = replace(config, out_bands=base.out_bands - 1)
        data = [training, validation] if config.prior else [without_prior(d) for d in (training, validation)]
        count, gains, seconds = run(config, *data, options.steps)
        results[name] = {"steps": options.steps, "parameters": count, "gains": gains, "seconds": seconds}
        options.results.write_text(json.dumps(results))
        print(name, count, round(statistics.fmean(gains), 3), flush=True)
    reference = results["as published"]["gains"]
    lines = [
        f"{options.steps} steps of one scene each, {POOL} training pairs, {VALIDATED} pairs of cubes not trained on.",
        "",
        "| variant | parameters | PSNR over `lmmse`, dB | against the first row, dB (standard error) | s a step |",
        "|---|---|---|---|---|",
    ]
    for name in VARIANTS:
        r = results[name]
        against = [a - b for a, b in zip(r["gains"], reference)]
        error = statistics.stdev(against) / len(against) ** 0.5
        said = "" if name == "as published" else f"{statistics.fmean(against):+.3f} ({error:.3f})"
        lines.append(
            f"| {name} | {r['parameters']:,} | {statistics.fmean(r['gains']):+.3f} | {said} | {r['seconds']:.2f} |"
        )
    text = "\n".join(lines) + "\n"
    publish(options.into, BEGIN, END, text)


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
