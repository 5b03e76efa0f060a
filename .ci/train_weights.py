# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains the weights that ship, one method after another.

    .venv/bin/python .ci/train_weights.py [--methods csakd,hyfusion,mpsrnet-diff] [--steps N]

Each ends in build/weights/METHOD; a run that was stopped goes on where it was. `--install` copies what is there into
resources/weights: csakd's teacher becomes s3rnet, whose network and training it is. Kernel regression
(train_kernel.py) and the denoiser of mpsrnet-diff's prior (train_prior.py) have scripts of their own and come first.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.job import TRAIN_STATE, TrainJob
from hypersharp.backend.training.run import TEACHER_NAME, run_train
from hypersharp.backend.weights import SHIPPED
from learned_table import HELD_OUT

VALIDATED_ON = ["aviris_abu_urban-1", "aviris_abu_airport-2", "aviris_abu_beach-2"]
STEPS = {"csakd": 400, "hyfusion": 120, "mpsrnet-diff": 200}
"""With more steps on so few cubes, gains on what is trained on grow and those on validation fall (docs/models.md)."""
SCENES_A_STEP = 4
BUILT = quality.ROOT / "build" / "weights"


def job(method: str, steps: int, device: str) -> TrainJob:
    """Return the training of a method."""
    folder = BUILT / method
    # The start depends on the pairs alone: what was fitted for one method serves all.
    trained = [BUILT / m for m in STEPS if m != method and (BUILT / m / "config.json").is_file()]
    return TrainJob(
        output=str(folder),
        method=method,
        cubes=str(quality.DATA / "cubes"),
        photographs=str(quality.DATA / "rgb"),
        steps=steps,
        batch=SCENES_A_STEP,
        resume=(folder / TRAIN_STATE).is_file(),
        leave_out=HELD_OUT,
        validate_on=VALIDATED_ON,
        validate_every=100 if method == "csakd" else 50,
        patience=0,
        device=device,
        start_from=str(trained[0]) if trained else None,
    )


def install(method: str) -> None:
    """Copy trained weights to where the shipped ones lie."""
    pairs = [(BUILT / method, SHIPPED / method)]
    if method == "csakd":
        pairs.append((BUILT / method / TEACHER_NAME, SHIPPED / "s3rnet"))
    for source, target in pairs:
        target.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "model.safetensors", "card.md"):
            shutil.copyfile(source / name, target / name)
        size = (target / "model.safetensors").stat().st_size
        print(
            f"{target.name}: {size / 2**20:.2f} MiB, {json.loads((target / 'config.json').read_text())['class']}"
        )


def main() -> None:
    """Train what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(STEPS), help="ids by comma")
    parser.add_argument("--steps", type=int, help="instead of what each method ships with")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N")
    parser.add_argument("--install", action="store_true", help="copy what was trained, train nothing")
    options = parser.parse_args()
    for method in options.methods.split(","):
        if options.install:
            install(method)
        else:
            result = run_train(job(method, options.steps or STEPS[method], options.device), Control())
            print(method, json.dumps(result.metrics["training"]["outcome"]))


if __name__ == "__main__":
    main()
