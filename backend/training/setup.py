# SPDX-License-Identifier: GPL-2.0-or-later
"""What a form of networks brings to a training run, and what both forms need to set it up."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..control import Control
from ..errors import ErrorCode, HyperSharpError
from ..io.raster import source_path
from ..job import TrainJob
from ..models.pretrained import PretrainedModel
from ..pair import Pair
from .trainer import Trainer


@dataclass
class Setup:
    """A training run, ready to go.

    Attributes:
        trainer: holds the networks.
        data: facts on what is trained on, for config.json and the card.
        entry: the weights' input contract, `input` in config.json.
        takes: the same in words, for the card.
    """

    trainer: Trainer
    data: dict[str, Any]
    entry: dict[str, Any]
    takes: str


def shared_settings(job: TrainJob) -> dict[str, Any]:
    """Return what a job says of `TrainSettings`, whatever the form."""
    return {
        "steps": job.steps,
        "examples": job.batch,
        "seed": job.seed,
        "validate_every": job.validate_every,
        "patience": job.patience,
    }


def job_pair(job: TrainJob, control: Control) -> Pair:
    """Return the pair that a job trains on, open."""
    hs, guide = source_path(str(job.hs)), source_path(str(job.guide))
    return Pair(
        hs,
        guide,
        mtf_hs=job.mtf_hs,
        mtf_guide=job.mtf_guide,
        move_hs=None if job.coregister else (0, 0),
        control=control,
    )


def pair_facts(job: TrainJob) -> dict[str, Any]:
    """Return what config.json says of a pair that was trained on."""
    names = [Path(source_path(str(path))).name for path in (job.hs, job.guide)]
    return {"pair": names, "validated_on": "the right part of the pair"}


def too_small() -> HyperSharpError:
    """Return what is said of a pair of which too little is valid, or there."""
    return HyperSharpError(
        "the pair is too small to train on",
        "train on a larger area, or the subspace form on a folder of cubes",
    )


@contextmanager
def reading_images() -> Iterator[None]:
    """Turn what statistics and the drawing of pairs say about images that teach nothing into an error for people.

    Raises:
        HyperSharpError: instead of a ValueError.
    """
    try:
        yield
    except ValueError as error:
        raise HyperSharpError(
            f"the images cannot be trained on: {str(error).splitlines()[0]}",
            "they need valid pixels that differ, in most of the area and in several bands",
        ) from error


def taken_over(
    model: PretrainedModel, student: PretrainedModel | None, start: PretrainedModel
) -> PretrainedModel:
    """Return the network to train from a start; a student takes it over, and its teacher begins anew.

    Weights keep the widths that they were made with, whatever the preset is now, but a student's must fit its
    teacher's.

    Raises:
        HyperSharpError: code `no_weights`; they do not.
    """
    if student is None:
        return start
    if student.config != start.config:
        raise HyperSharpError(
            "the weights to start from are of another configuration",
            "start from weights of the same method and version",
            ErrorCode.NO_WEIGHTS,
        )
    student.load_state_dict(start.state_dict())
    if start.start is not None:
        model.start = start.start.clone()
    return model
