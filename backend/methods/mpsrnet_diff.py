# SPDX-License-Identifier: GPL-2.0-or-later
"""MPSRNet-Diff: a prior drawn by diffusion, then a progressive, mutually guided Mamba network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ..control import Control
from ..diffusion.cache import cached_prior
from ..diffusion.prior import PRESETS, STAGE, Prior, PriorSettings, sample_prior
from ..errors import ErrorCode, HyperSharpError
from ..models.mpsrnet import MPSRNet
from ..ops.selective_scan import KERNEL, scan_name
from ..scene import Scene
from .context import Area
from .learned import CLOSED_FORM, PRIOR, LearnedFusion
from .learned_planes import PRIOR_PLANES

MOST_RANK = 12
"""Base bands beyond this cost time and tell nothing new: four groups of three go through the denoiser."""
PLAN = {"learning": 3.0, "fusing": 5.0, "assessing": 4.0}
"""Seconds that the parts of a run took on the Paris pair, for the progress."""
STEP_SECONDS = 2.4
"""The same of a step of the diffusion."""

TRAINING_PRIOR = PriorSettings(preset="quick")
"""Of training pairs and of adaptation, where many are drawn."""


def prior_drawer(settings: PriorSettings = TRAINING_PRIOR) -> Callable[[Scene], Callable[[Tensor], Tensor]]:
    """Return how the priors of training pairs are drawn (see `training.examples.DrawPrior`)."""

    def draw(scene: Scene) -> Callable[[Tensor], Tensor]:
        prior = sample_prior(scene, replace(settings, seed=scene.seed), Control())
        rows, cols = scene.shape
        return lambda image: prior.refine(image, (0, rows), (0, cols))

    return draw


class MPSRNetDiff(LearnedFusion):
    """MPSRNet-Diff (Wu et al., IEEE JSTARS 19, 2026, doi 10.1109/JSTARS.2026.3655787), as far as it is public.

    Stage one draws a prior image (`backend/diffusion/`), stage two is MPSRNet in the subspace form (docs/models.md).

    Options, beside those of every learned method:
        preset: "quick", "standard" or "fine": 10, 20 or 50 steps of the diffusion.
        prior_rank: base bands of the prior, 1 to `MOST_RANK`; beyond three they go through the denoiser in groups of
            three, and each group costs as much time again.
        prior_weights: of the denoiser: name of shipped ones, or a folder.
        cache: keep the prior, so that a second run on the same pair is quick.

    Raises:
        HyperSharpError: an option of no meaning (code `usage`).
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        **LearnedFusion.defaults,
        "preset": "quick",
        "prior_rank": 3,
        "prior_weights": PriorSettings.weights,
        "cache": True,
    }
    network = MPSRNet
    own_weights = "mpsrnet-diff"
    stage_names = (CLOSED_FORM, PRIOR)

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self.prior_settings = PriorSettings(
            preset=_choice("preset", self.parameters["preset"], PRESETS),
            rank=_rank(self.parameters["prior_rank"]),
            weights=str(self.parameters["prior_weights"]),
        )
        self.use_cache = _yes_or_no("cache", self.parameters["cache"])
        self.from_cache = False
        groups = -(-self.prior_settings.rank // 3)
        drawing = STEP_SECONDS * self.prior_settings.step_count * groups
        # The assessment draws a prior too, one scale down.
        self.plan = {**PLAN, STAGE: drawing, "assessing": PLAN["assessing"] + 0.15 * drawing}

    def fit(self, scene: Scene, control: Control) -> None:
        """Draw the prior beside what every learned method does; see `LearnedFusion.fit`.

        Raises:
            HyperSharpError: also no weights of the denoiser, or a scene too poor for the rank.
        """
        self.scan = scan_name(scene.device)
        if scene.device.type == "cuda" and self.scan != KERNEL:
            control.warn(f"mamba-ssm's CUDA kernel is not there: the {self.scan} runs instead, slower")
        super().fit(scene, control)
        if self.prior is not None:
            # Of every component the prior's planes, and of every fine pixel the base (a large scene's lies on disk).
            floats = self.components * PRIOR_PLANES + 2 * len(self.prior.bands)
            self.pixel_bytes += 4 * floats

    def draw_prior(self, scene: Scene, control: Control) -> Prior | None:
        """Return the scene's prior, from the cache where it is known; None for weights that take none."""
        if not self.model.config.prior:
            _passed_over(control)
            return None
        settings = replace(self.prior_settings, seed=scene.seed)
        if not self.use_cache:
            return sample_prior(scene, settings, control)
        prior, self.from_cache = cached_prior(scene, settings, control)
        if self.from_cache:
            _passed_over(control)
        return prior

    def prior_of_pairs(self) -> Callable[[Scene], Callable[[Tensor], Tensor]] | None:
        """Return how the priors of training pairs are drawn; None for weights that take none."""
        if not self.model.config.prior:
            return None
        return prior_drawer(replace(TRAINING_PRIOR, weights=self.prior_settings.weights))

    def _run(self, inputs: list[Tensor], origin: tuple[int, int], keep: Area | None = None) -> Tensor:
        return self.model(*inputs, origin=origin, keep=keep)[0]

    def describe(self) -> dict[str, Any]:
        """Return what both stages found, and which scan ran; the prior's data terms step by step under `prior`."""
        facts = {**super().describe(), "selective_scan": self.scan}
        if self.prior is not None:
            curves = {k: [round(v, 5) for v in values] for k, values in self.prior.curves.items()}
            facts["prior"] = {**self.prior.facts, "curves": curves, "from_cache": self.from_cache}
        return facts


def _passed_over(control: Control) -> None:
    """Let the progress go on as if the prior had been drawn."""
    control.stage(STAGE, 1)
    control.step()


def _choice(name: str, value: Any, known: Mapping[str, Any]) -> str:
    if not isinstance(value, str) or value not in known:
        raise HyperSharpError(f"unknown {name} {value!r}", f"use one of {', '.join(known)}", ErrorCode.USAGE)
    return value


def _rank(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= MOST_RANK:
        raise HyperSharpError(
            f"the rank of the prior is {value!r}", f"give an integer from 1 to {MOST_RANK}", ErrorCode.USAGE
        )
    return value


def _yes_or_no(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise HyperSharpError(f"the option {name} is {value!r}", "use true or false", ErrorCode.USAGE)
    return value
