# SPDX-License-Identifier: GPL-2.0-or-later
"""Runs a training job: from a folder of cubes or from one pair, to a weights folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..device import choose_device
from ..errors import ErrorCode, HyperSharpError
from ..io.writer import make_folder
from ..job import FORMS, FULL_BAND, TRAINABLE, TrainJob
from ..methods.learned import load_network
from ..methods.learned_planes import FORM, START_SHAPE
from ..models.pretrained import PretrainedModel, from_pretrained, read_config
from ..protocol import Result
from ..registry import METHODS, why_unavailable
from ..weights import find_weights
from .adapt import OneScene, parts_of, reduced_pair
from .card import SUBSPACE_BASE, SUBSPACE_INPUT, weights_card
from .cubes import Cube, read_cubes
from .examples import DrawPrior, Example, ExampleStream, make_example
from .full_band import full_band_setup
from .pairs import PairSettings
from .photographs import read_photographs
from .presets import COMPONENTS, PRESETS, build
from .setup import (
    Setup,
    job_pair,
    pair_facts,
    reading_images,
    shared_settings,
    taken_over,
    too_small,
)
from .start import fit_start
from .trainer import STATE_NAME, Trainer, TrainOutcome, TrainSettings

VALIDATION_EXAMPLES = 32
VALIDATION_SEED = 99
VALIDATION_PAIRS = PairSettings(ratios=(3, 4, 6), side=100, known_mtf=1.0)
START_EXAMPLES = 320
"""Pairs to which the weights are fitted that the networks start from; twice the steps where that is fewer."""
STARTED_RATE = 6e-4
"""Learning rate of networks with a start: a higher one loses what the start has."""
HELD_OUT = 0.2
"""Share of the cubes that is held out of training where the job names none."""
TEACHER_NAME = "teacher"
"""Folder, in the student's, of the teacher that it was trained with."""


def run_train(job: TrainJob, control: Control | None = None) -> Result:
    """Train a learned method and write its weights folder.

    Returns:
        The folder, and in the metrics the rise of PSNR over the closed form on what was held out.

    Raises:
        HyperSharpError: bad input or settings, or training diverged.
        Cancelled: stopped before the first weights worth keeping; later, the best so far are written.
    """
    control = control or Control()
    started = time.monotonic()
    _check(job)
    device, note = choose_device(job.device)
    control.info(f"training on {note}")
    control.plan({"reading": 1, **({"starting": 10} if _start_count(job) else {}), "training": 30})
    control.stage("reading", 1)
    make = full_band_setup if job.form == FULL_BAND else _subspace_setup
    setup = make(job, control, device)
    control.step()
    folder = Path(job.output)
    make_folder(folder)
    trainer = setup.trainer
    state = folder / STATE_NAME
    if job.resume and state.is_file():
        trainer.resume(state)
        control.info(f"resumed at step {trainer.step}")

    def tell(step: int, gain: float) -> None:
        loss = f"loss {trainer.running:.3f}, " if step else ""
        control.info(f"step {step}: {loss}{gain:+.2f} dB over lmmse where not trained on")

    if trainer.step == 0 and trainer.model.start is not None and trainer.model.start.any():
        tell(0, trainer.validate())  # the start alone may be the best there is
    with reading_images():
        outcome = trainer.run(control, state, on_validation=tell)
    if outcome.stopped == "cancelled" and outcome.steps == 0:
        control.check()
    trainer.load_best()
    facts = {
        "data": setup.data,
        "settings": asdict(trainer.settings),
        "outcome": {**asdict(outcome), "history": outcome.history},
        "seconds": round(time.monotonic() - started, 1),
        "device": note,
    }
    _write(job, folder, setup, facts, outcome)
    if outcome.stopped != "cancelled":
        state.unlink(missing_ok=True)
    return Result(
        {"WEIGHTS": str(folder)}, {"training": facts, "warnings": control.warnings}, control.warnings
    )


def _check(job: TrainJob) -> None:
    if job.method not in TRAINABLE:
        raise HyperSharpError(
            f"{job.method} cannot be trained", f"choose one of {', '.join(TRAINABLE)}", ErrorCode.USAGE
        )
    reason = why_unavailable(METHODS[job.method]) if job.method in METHODS else None
    if reason:
        raise HyperSharpError(
            f"{job.method} {reason}", "install it into the backend's environment", ErrorCode.NO_ENVIRONMENT
        )
    if bool(job.cubes) == bool(job.hs and job.guide):
        raise HyperSharpError(
            "training needs a folder of cubes or one pair",
            "give --cubes FOLDER, or an HS raster and its guide",
            ErrorCode.USAGE,
        )
    if job.form not in FORMS:
        raise HyperSharpError(f"unknown form {job.form!r}", f"use {' or '.join(FORMS)}", ErrorCode.USAGE)
    if job.start_from and (job.weights or not job.cubes or job.form == FULL_BAND):
        raise HyperSharpError(
            "a start is taken over for new weights in the subspace form, trained on cubes",
            "leave start_from out",
            ErrorCode.USAGE,
        )
    if job.form == FULL_BAND and job.cubes:
        raise HyperSharpError(
            "the full-band form is not trained on cubes: neither the guide nor the bands are settled there",
            "give one pair, HS and GUIDE, or train the subspace form on the cubes",
            ErrorCode.USAGE,
        )
    if job.photographs and not job.cubes:
        raise HyperSharpError(
            "photographs without cubes: they lend their structure to the cubes' spectra",
            "give --cubes FOLDER as well, or leave --photographs out",
            ErrorCode.USAGE,
        )
    if job.steps < 1 or job.batch < 1:
        raise HyperSharpError(
            f"{job.steps} training steps of {job.batch} scenes", "give 1 or more of both", ErrorCode.USAGE
        )
    if job.validate_every < 1 or job.patience < 0 or job.seed < 0:
        raise HyperSharpError(
            f"a validation every {job.validate_every} steps, a patience of {job.patience}, the seed {job.seed}",
            "give 1 or more steps, and numbers of 0 or more",
            ErrorCode.USAGE,
        )
    if job.resume and not (Path(job.output) / STATE_NAME).is_file():
        raise HyperSharpError(
            f"there is nothing to resume in {job.output}",
            "name the folder of an interrupted run, or leave --resume out to start a new one",
            ErrorCode.USAGE,
        )
    _check_writable(Path(job.output))


def _check_writable(folder: Path) -> None:
    """Refuse a folder that cannot be made or written to before hours are spent; makes nothing.

    Raises:
        HyperSharpError: so it is.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise HyperSharpError(
            f"cannot write into {folder}: {there} is {'not writable' if there.is_dir() else 'no folder'}",
            "choose another folder",
            ErrorCode.OUTPUT,
        )


def _subspace_setup(job: TrainJob, control: Control, device: torch.device) -> Setup:
    """Return the run of a network that corrects the closed form, for any sensor (docs/models.md)."""
    preset = PRESETS[job.method]
    torch.manual_seed(job.seed)
    model = build(preset.config)
    student = build(preset.student) if preset.student else None
    if job.weights:
        start, _ = load_network(find_weights(job.weights), type(model))
        model = taken_over(model, student, start)
    draw = None
    if preset.prior:
        from ..methods.mpsrnet_diff import prior_drawer  # only there are diffusers needed

        draw = prior_drawer()
    with reading_images():
        stream, validation, data = _from_cubes(job, draw) if job.cubes else _from_pair(job, control, draw)
        if isinstance(stream, ExampleStream) and not job.resume:  # what is resumed has its start already
            _give_start(stream, job, (model, student), control)
    rate = STARTED_RATE if job.cubes else TrainSettings.learning_rate
    settings = TrainSettings(**shared_settings(job), swt=preset.swt, learning_rate=rate)
    trainer = Trainer(model, stream, settings, validation, student, device)
    return Setup(trainer, data, {"form": FORM, "components": COMPONENTS}, SUBSPACE_INPUT)


def split_cubes(cubes: Sequence[Cube], held_out: Sequence[str], seed: int) -> tuple[list[Cube], list[Cube]]:
    """Return the cubes to train on and those to validate on.

    Args:
        cubes: all of them.
        held_out: beginnings of the names of those to validate on; empty to draw some. With a single cube, or
            none left, parts of the area are held out instead: the right fifth of each cube.
        seed: of the drawing.
    """
    if held_out:
        validation = [c for c in cubes if c.name.startswith(tuple(held_out))]
    elif len(cubes) >= 4:
        order = torch.randperm(len(cubes), generator=torch.Generator().manual_seed(seed)).tolist()
        validation = [cubes[i] for i in sorted(order[: max(1, round(HELD_OUT * len(cubes)))])]
    else:
        validation = []
    training = [c for c in cubes if not any(c is v for v in validation)]
    if training and validation:
        return training, validation
    left, right = [], []
    for cube in cubes:
        split = round(cube.image.shape[2] * (1 - HELD_OUT))
        split = min(split, cube.image.shape[2] - 24)
        left.append(replace(cube, image=cube.image[:, :, :split], mask=cube.mask[:, :split]))
        right.append(replace(cube, image=cube.image[:, :, split:], mask=cube.mask[:, split:]))
    return left, right


def _from_cubes(
    job: TrainJob, draw_prior: DrawPrior | None
) -> tuple[ExampleStream, list[Example], dict[str, Any]]:
    cubes = read_cubes(str(job.cubes), tuple(job.leave_out))
    for name in job.validate_on:
        if not any(cube.name.startswith(name) for cube in cubes):
            raise HyperSharpError(
                f"there is no cube {name!r} to validate on",
                f"the cubes are {', '.join(cube.name for cube in cubes)}",
                ErrorCode.USAGE,
            )
    training, validation = split_cubes(cubes, job.validate_on, job.seed)
    pairs = PairSettings()
    photographs = read_photographs(job.photographs) if job.photographs else []
    stream = ExampleStream(
        training,
        pairs,
        COMPONENTS,
        job.seed,
        window=96,
        renew=3,
        draw_prior=draw_prior,
        photographs=photographs,
    )
    seen = ExampleStream(validation, VALIDATION_PAIRS, COMPONENTS, VALIDATION_SEED, draw_prior=draw_prior)
    data = {
        "started_from": job.weights,
        "cubes": [c.name for c in training],
        "validated_on": [c.name for c in validation],
        "left_out": list(job.leave_out),
        "photographs": len(photographs),
        "photographed": stream.photographed,
        "pairs": asdict(pairs),
    }
    if job.start_from:
        theirs = read_config(find_weights(job.start_from)).get("training", {})
        data["start_examples"] = theirs.get("data", {}).get("start_examples")
    elif _start_count(job):
        data["start_examples"] = _start_count(job)
    return stream, [seen.example(i) for i in range(VALIDATION_EXAMPLES)], data


def _from_pair(
    job: TrainJob, control: Control, draw_prior: DrawPrior | None
) -> tuple[OneScene, list[Example], dict[str, Any]]:
    with job_pair(job, control) as pair:
        reduced = reduced_pair(pair.scene)
        parts = parts_of(make_example(reduced, COMPONENTS, draw_prior)) if reduced else None
    if parts is None:
        raise too_small()
    return OneScene(parts[0]), [parts[1]], pair_facts(job)


def _start_count(job: TrainJob) -> int:
    """Return to how many pairs the start is fitted: a pair has one example, weights bring their own start."""
    brought = job.weights or job.start_from
    return min(START_EXAMPLES, 2 * job.steps) if job.cubes and not brought else 0


def _give_start(
    stream: ExampleStream, job: TrainJob, nets: Sequence[PretrainedModel | None], control: Control
) -> None:
    """Give the networks the start of other weights, or what fits the first examples best; training goes on with it."""
    count = _start_count(job)
    if job.start_from:
        start = _start_of(job.start_from)
    elif count:
        start = fit_start(control.steps(map(stream.example, range(count)), "starting", count))
    else:
        return
    for net in nets:
        if net is not None:
            net.start = start.clone()


def _start_of(name: str) -> Tensor:
    """Return the start of other weights, of `START_SHAPE`.

    Raises:
        HyperSharpError: code `no_weights`; they cannot be read, or have none of the present shape.
    """
    folder = find_weights(name)
    start = getattr(from_pretrained(folder), "start", None)
    if start is None or tuple(start.shape) != START_SHAPE:
        raise HyperSharpError(
            f"the weights in {folder} have no start that could be taken over",
            "leave it out: a start is then fitted",
            ErrorCode.NO_WEIGHTS,
        )
    return start


def _write(job: TrainJob, folder: Path, setup: Setup, facts: dict[str, Any], outcome: TrainOutcome) -> None:
    entry = {"input": setup.entry, "method": job.method, "training": facts}
    model, student = setup.trainer.model, setup.trainer.student
    main = student or model
    over = "`lmmse`" if job.form == FULL_BAND else SUBSPACE_BASE
    card = weights_card(job.method, main, facts, outcome, setup.takes, over)
    main.save_pretrained(folder, entry, half=True, card=card)
    if student is not None:
        teacher = {**entry, "method": "csakd-teacher"}
        card = weights_card("csakd-teacher", model, facts, outcome, setup.takes, over)
        model.save_pretrained(folder / TEACHER_NAME, teacher, half=True, card=card)
