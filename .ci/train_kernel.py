# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains the shipped part of kernel regression that is learned; may be stopped and started again.

    .venv/bin/python .ci/train_kernel.py              train or go on, in build/kernel, then write the weights there
    .venv/bin/python .ci/train_kernel.py --install    copy what was trained into resources/weights

The same cubes, photographs and pairs as the networks' (train_weights.py), before which it comes.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.methods.kernel_regression import KERNEL_COMPONENTS, WEIGHTS
from hypersharp.backend.models.kernel_features import KernelFeatures
from hypersharp.backend.training.card import weights_card
from hypersharp.backend.training.cubes import read_cubes
from hypersharp.backend.training.kernel import CONFIG, KernelStream, KernelTrainer
from hypersharp.backend.training.pairs import PairSettings
from hypersharp.backend.training.photographs import read_photographs
from hypersharp.backend.training.run import split_cubes
from hypersharp.backend.training.trainer import TrainSettings
from hypersharp.backend.weights import SHIPPED
from learned_table import HELD_OUT
from pages import check_data
from train_weights import VALIDATED_ON

BUILT = quality.ROOT / "build" / WEIGHTS
SEED, VALIDATION_SEED, VALIDATION_BLOCKS = 1029, 98, 96
TAKES = (
    "a pixel's guide and closed-form coefficients, and a scene's coarse pixels (docs/models.md): any sensor"
)


STAGES = ((6, 1500, 2e-3), (KERNEL_COMPONENTS, 400, 6e-4))
"""Components, steps and learning rate: more components take longer, and are learned quickly from what fewer taught."""


def train(photographed):
    """Train stage after stage to the end and write the weights."""
    check_data(quality.DATA)
    cubes = read_cubes(quality.DATA / "cubes", tuple(HELD_OUT))
    training, validation = split_cubes(cubes, VALIDATED_ON, SEED)
    photographs = read_photographs(quality.DATA / "rgb")
    pairs = PairSettings()
    torch.manual_seed(SEED)
    model = KernelFeatures(CONFIG)
    seconds, stages = 0.0, []
    for number, (components, steps, rate) in enumerate(STAGES):
        pool = pairs, components, SEED + number
        stream = KernelStream(
            training, *pool, window=128, renew=1, photographs=photographs, photographed=photographed
        )
        seen = KernelStream(validation, pairs, components, VALIDATION_SEED, window=VALIDATION_BLOCKS)
        settings = TrainSettings(
            steps, 4, learning_rate=rate, average=0.99, seed=SEED, validate_every=100, mixed=False
        )
        blocks = [seen.example(i) for i in range(VALIDATION_BLOCKS)]
        trainer = KernelTrainer(model, stream, settings, blocks)
        outcome, took = run(trainer, BUILT / f"stage-{number + 1}")
        trainer.load_best()
        seconds += took
        stages.append({"components": components, "settings": asdict(settings), "outcome": asdict(outcome)})
    facts = {
        "data": {
            "cubes": [c.name for c in training],
            "validated_on": [c.name for c in validation],
            "left_out": HELD_OUT,
            "photographs": len(photographs),
            "photographed": photographed,
            "pairs": asdict(pairs),
        },
        "settings": asdict(settings),
        "stages": stages,
        "seconds": round(seconds, 1),
        "device": "CPU",
    }
    card = weights_card("kernel regression, part of every learned method", model, facts, outcome, TAKES)
    model.save_pretrained(BUILT, {"training": facts}, half=True, card=card)


def run(trainer, folder):
    """Train a stage, from where it was left; return the outcome and the seconds of all its runs."""
    folder.mkdir(parents=True, exist_ok=True)
    state, clock = folder / "state.safetensors", folder / "seconds.json"
    before = json.loads(clock.read_text()) if clock.is_file() else 0.0
    if state.is_file():
        trainer.resume(state)
    started = time.monotonic()

    def say(step, gain):
        seconds = before + time.monotonic() - started
        clock.write_text(json.dumps(seconds))
        print(
            f"step {step}: {gain:+.3f} dB on validation, loss {trainer.running:.3f}, {seconds:.0f} s",
            flush=True,
        )

    if not trainer.step:
        trainer.validate()
    outcome = trainer.run(Control(), state, 50, say)
    return outcome, before + time.monotonic() - started


def install():
    """Copy the trained weights to where the shipped ones lie."""
    target = SHIPPED / WEIGHTS
    target.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "model.safetensors", "card.md"):
        shutil.copyfile(BUILT / name, target / name)


def main():
    """Train, or install what was trained."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photographed", type=float, default=0.35, help="share of blocks from photographs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--install", action="store_true", help="copy what was trained, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.install:
        install()
    else:
        train(options.photographed)


if __name__ == "__main__":
    main()
