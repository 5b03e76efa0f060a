# SPDX-License-Identifier: GPL-2.0-or-later
"""Trains the shipped part of kernel regression that is learned; may be stopped and started again.

    .venv/bin/python .ci/train_kernel.py               train or go on, in build/kernel, then write the weights there
    .venv/bin/python .ci/train_kernel.py --member 1    train or go on with one member only: members may be trained
                                                       side by side, by so many processes, before all else
    .venv/bin/python .ci/train_kernel.py --few         train what ships anew for scenes of few pixels alone, the last
                                                       stage of the training (some minutes; starts over if stopped)
    .venv/bin/python .ci/train_kernel.py --install     copy what was trained into resources/weights

Members are networks trained apart, on other pairs, and put side by side. The same cubes and photographs as the
networks' (train_weights.py), before which it comes. The last stage learns what a lack of pixels changes; all else
stays as it is.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))
import quality_table as quality
from hypersharp.backend.control import Control
from hypersharp.backend.methods.kernel_regression import KERNEL_COMPONENTS, WEIGHTS
from hypersharp.backend.models.kernel_features import KernelFeatures, joined
from hypersharp.backend.models.pretrained import from_pretrained, read_config
from hypersharp.backend.training.card import weights_card
from hypersharp.backend.training.cubes import Cube, read_cubes
from hypersharp.backend.training.kernel import (
    CONFIG,
    FewPixelsStream,
    FewPixelsTrainer,
    KernelStream,
    KernelTrainer,
    kernel_gain,
)
from hypersharp.backend.training.pairs import PairSettings
from hypersharp.backend.training.photographs import read_photographs
from hypersharp.backend.training.run import split_cubes
from hypersharp.backend.training.trainer import TrainOutcome, TrainSettings
from hypersharp.backend.weights import SHIPPED
from learned_table import HELD_OUT
from pages import check_data
from train_weights import VALIDATED_ON

BUILT = quality.ROOT / "build" / WEIGHTS
SEED, VALIDATION_SEED, VALIDATION_BLOCKS, FEW_BLOCKS = 1129, 98, 64, 96
TITLE = (
    "kernel regression, part of every learned method: {} networks, each trained as told here, side by side, and {} "
    "steps of a last stage for scenes of few pixels"
)
TAKES = (
    "a pixel's guide and closed-form coefficients, and a scene's coarse pixels (docs/models.md): any sensor"
)


MEMBERS = 2
STEPS, RATE, LEARNED_COMPONENTS = 1500, 2e-3, 6
"""Of a member. More components take longer, and what is learned on six serves twelve as well."""
PAIRS = PairSettings(guide_noise=0.15)
PHOTOGRAPHED = 0.35
FEW_STEPS, FEW_RATE, FEW_SEED = 300, 2e-3, 1142


@dataclass(frozen=True)
class Plan:
    """What to train on, where, and for how long.

    Attributes:
        training, validation: cubes.
        photographs: encoded.
        folder: where states are kept.
        photographed: share of the blocks that take their structure from a photograph.
        members, steps: their number, and steps of each.
        few_steps: of the last stage.
    """

    training: list[Cube]
    validation: list[Cube]
    photographs: list[bytes]
    folder: Path
    photographed: float = PHOTOGRAPHED
    members: int = MEMBERS
    steps: int = STEPS
    few_steps: int = FEW_STEPS


def shipped_plan(photographed):
    """Return how the shipped weights are trained."""
    check_data(quality.DATA)
    cubes = read_cubes(quality.DATA / "cubes", tuple(HELD_OUT))
    training, validation = split_cubes(cubes, VALIDATED_ON, SEED)
    return Plan(training, validation, read_photographs(quality.DATA / "rgb"), BUILT, photographed)


def validation_blocks(plan):
    """Return the blocks on which members, and all of them together, are judged."""
    stream = KernelStream(
        plan.validation, PairSettings(), LEARNED_COMPONENTS, VALIDATION_SEED, window=VALIDATION_BLOCKS
    )
    return [stream.example(i) for i in range(VALIDATION_BLOCKS)]


def train_member(plan, number):
    """Train a member, from where it was left; return it, what happened, for the card, and the seconds."""
    torch.manual_seed(SEED + number)
    model = KernelFeatures(CONFIG)
    more = {"photographs": plan.photographs, "photographed": plan.photographed}
    pool = PAIRS, LEARNED_COMPONENTS, SEED + number
    stream = KernelStream(plan.training, *pool, window=128, renew=1, **more)
    settings = TrainSettings(
        plan.steps,
        4,
        learning_rate=RATE,
        average=0.99,
        seed=SEED + number,
        validate_every=plan.steps // 8,
        mixed=False,
    )
    trainer = KernelTrainer(model, stream, settings, validation_blocks(plan))
    outcome, seconds = run(trainer, plan.folder / f"member-{number}")
    trainer.load_best()
    return model, {"settings": asdict(settings), "outcome": asdict(outcome)}, seconds


def train_all(plan):
    """Train the members and put them together; return the model, what happened in each, and the seconds."""
    members, records, seconds = zip(*(train_member(plan, number) for number in range(plan.members)))
    model = joined(members)
    few, more = train_few(plan, model)
    return model, records, few, sum(seconds) + more


def train_few(plan, model):
    """Train the last stage, scenes of few pixels; return what happened, for the card, and the seconds."""
    started = time.monotonic()
    more = {"photographs": plan.photographs, "photographed": plan.photographed}
    stream = FewPixelsStream(plan.training, PAIRS, KERNEL_COMPONENTS, FEW_SEED, window=256, renew=1, **more)
    judged = FewPixelsStream(plan.validation, PAIRS, KERNEL_COMPONENTS, VALIDATION_SEED)
    settings = TrainSettings(
        plan.few_steps,
        4,
        learning_rate=FEW_RATE,
        average=0.97,
        seed=FEW_SEED,
        validate_every=max(1, plan.few_steps // 6),
        mixed=False,
    )
    trainer = FewPixelsTrainer(model, stream, settings, [judged.example(i) for i in range(FEW_BLOCKS)])

    def say(step, gain):
        gains = [trainer.score(model.eval(), block) for block in trainer.validation]
        print(f"few pixels, step {step}: {gain:+.3f} dB on validation, worst {min(gains):+.2f}", flush=True)

    say(0, trainer.validate())
    outcome = trainer.run(Control(), on_validation=say)
    trainer.load_best()
    model.eval()
    record = {"settings": asdict(settings), "components": KERNEL_COMPONENTS, "outcome": asdict(outcome)}
    seconds = time.monotonic() - started
    return {**record, "seconds": round(seconds, 1)}, seconds


@torch.no_grad()
def validated(plan, model):
    """Return the model's mean gain on the validation blocks, in dB."""
    return statistics.fmean(float(kernel_gain(model, block)) for block in validation_blocks(plan))


def train_few_anew(plan):
    """Train the last stage of what ships anew; return the same as `train_all`."""
    model = from_pretrained(SHIPPED / WEIGHTS, KernelFeatures)
    known = read_config(SHIPPED / WEIGHTS)["training"]
    with torch.no_grad():
        model.table[-1] = 0.0
    few, seconds = train_few(plan, model)
    return model, known["members"], few, known["seconds"] - known.get("few", {}).get("seconds", 0.0) + seconds


def write(plan, model, records, few, seconds):
    """Write the weights with their card."""
    facts = {
        "data": {
            "cubes": [c.name for c in plan.training],
            "validated_on": [c.name for c in plan.validation],
            "left_out": HELD_OUT,
            "photographs": len(plan.photographs),
            "photographed": plan.photographed,
            "pairs": asdict(PAIRS),
        },
        "settings": records[0]["settings"],
        "components": LEARNED_COMPONENTS,
        "members": records,
        "few": few,
        "seconds": round(seconds, 1),
        "device": "CPU",
    }
    outcome = TrainOutcome(**{**records[0]["outcome"], "gain_db": validated(plan, model)})
    card = weights_card(TITLE.format(plan.members, plan.few_steps), model, facts, outcome, TAKES)
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
    parser.add_argument(
        "--photographed", type=float, default=PHOTOGRAPHED, help="share of blocks from photographs"
    )
    parser.add_argument("--member", type=int, choices=range(MEMBERS), help="train this member, nothing else")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--few", action="store_true", help="train the last stage of what ships anew")
    parser.add_argument("--install", action="store_true", help="copy what was trained, train nothing")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.install:
        install()
        return
    plan = shipped_plan(options.photographed)
    if options.member is not None:
        train_member(plan, options.member)
    else:
        write(plan, *(train_few_anew(plan) if options.few else train_all(plan)))


if __name__ == "__main__":
    main()
