# SPDX-License-Identifier: GPL-2.0-or-later
"""Tuning a trained network on the pair that is to be fused, one scale down, where the truth is known.

Wald's protocol on the pair itself: what is tuned on one part of the scene must help on the other part, or the
tuned weights are refused.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from ..control import Control
from ..errors import Cancelled
from ..io.source import TensorSource
from ..models.pretrained import PretrainedModel
from ..scene import Scene
from .examples import DrawPrior, Example, make_example
from .pairs import Dice, TrainingPair
from .trainer import Trainer, TrainSettings

LARGEST_SIDE = 240
"""Pixels along a side of the part of the HS image that is tuned on."""
HELD_OUT = 0.35
"""Share of the area on which the tuned weights must prove themselves."""
LEAST_GAIN_DB = 0.02
LEARNING_RATE = 1e-4
"""A sixth of the training's: at 5e-4 networks that gained on one half of Paris lost 0.3 dB on the whole."""
MIN_COARSE = 6


class OneScene:
    """A stream of one example."""

    def __init__(self, example: Example) -> None:
        self._example = example

    def draw(self, step: int, dice: Dice) -> Example:
        """Return the example."""
        return self._example


def reduced_pair(scene: Scene, largest: int = LARGEST_SIDE) -> TrainingPair | None:
    """Return the pair one scale down, with its truth (the middle of a large scene), or None if too small.

    Args:
        scene: the pair.
        largest: pixels along a side of the truth.
    """
    reduced, ratio = scene.reduced, scene.ratio
    sizes = [min(n, largest // ratio) for n in reduced.coarse_shape]
    if min(sizes) < MIN_COARSE:
        return None
    starts = [(n - size) // 2 for n, size in zip(reduced.coarse_shape, sizes)]
    coarse = [(start, start + size) for start, size in zip(starts, sizes)]
    fine = [(a * ratio, b * ratio) for a, b in coarse]
    hs, hs_mask = reduced.hs.read(coarse[0], coarse[1])
    guide, guide_mask = reduced.guide.read(fine[0], fine[1])
    truth, mask = scene.reference.read(fine[0], fine[1])
    small = Scene(
        TensorSource(hs, hs_mask),
        TensorSource(guide, guide_mask),
        ratio,
        scene.mtf_hs,
        scene.mtf_guide,
        seed=scene.seed,
    )
    seen = hs_mask.repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)
    return TrainingPair(small, truth, mask & guide_mask & seen, {})


def parts_of(example: Example) -> tuple[Example, Example] | None:
    """Return an example for the left part of its area and one for the right part, or None if one is no use."""
    split = round(example.mask.shape[1] * (1 - HELD_OUT)) // example.ratio * example.ratio
    left, right = example.mask.clone(), example.mask.clone()
    left[:, split:] = False
    right[:, : split + example.ratio] = False
    parts = replace(example, mask=left), replace(example, mask=right)
    return parts if all(part.usable for part in parts) else None


def adapt(
    model: PretrainedModel,
    scene: Scene,
    components: int,
    steps: int,
    control: Control,
    draw_prior: DrawPrior | None = None,
) -> dict[str, Any]:
    """Tune a network on a pair, in place; keep its weights as they were when that gains nothing.

    Args:
        model: in the subspace form.
        scene: the pair.
        components: that are corrected.
        steps: of training.
        control: progress, cancel, and the word on what came of it.
        draw_prior: for a network that takes a prior.

    Returns:
        What was done, for the report: steps, gain_db on the part of the scene that was not tuned on, used.

    Raises:
        Cancelled: `control` stopped it.
    """
    pair = reduced_pair(scene)
    example = None if pair is None else make_example(pair, components, draw_prior)
    if example is None or not example.usable:
        control.warn("the pair is too small to adapt to: the weights are used as they are")
        return {"steps": 0, "gain_db": None, "used": False}
    parts = parts_of(example)
    if parts is None:
        control.warn("too little of the pair is valid to adapt to: the weights are used as they are")
        return {"steps": 0, "gain_db": None, "used": False}
    tuned_on, tested_on = parts
    before = {k: v.detach().clone() for k, v in model.state_dict().items()}
    settings = TrainSettings(
        steps=steps,
        examples=1,
        learning_rate=LEARNING_RATE,
        average=0.98,
        seed=scene.seed,
        validate_every=max(1, steps // 4),
    )
    with torch.enable_grad():
        trainer = Trainer(model, OneScene(tuned_on), settings, [tested_on], device=scene.device)
        start = trainer.gain()
        outcome = trainer.run(control)
    if outcome.stopped == "cancelled":
        raise Cancelled()
    gain = (outcome.gain_db or 0.0) - start
    used = gain >= LEAST_GAIN_DB
    if used:
        trainer.load_best()
        control.info(f"adaptation gained {gain:.2f} dB on the part of the pair that it was not tuned on")
    else:
        model.load_state_dict(before)
        control.warn(
            f"adaptation gained nothing ({gain:+.2f} dB on the part of the pair that it was not tuned on): "
            "the weights are used as they are"
        )
    model.eval()
    return {"steps": outcome.steps, "gain_db": round(gain, 3), "used": used}
