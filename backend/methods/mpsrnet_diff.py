# SPDX-License-Identifier: GPL-2.0-or-later
"""MPSRNet-Diff: a prior drawn by diffusion, then a progressive, mutually guided Mamba network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from torch import Tensor

from ..control import Control
from ..diffusion.cache import cached_prior
from ..diffusion.prior import Prior, PriorSettings, sample_prior
from ..models.mpsrnet import MPSRNet
from ..scene import Scene
from .learned import LearnedFusion

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

    Options:
        preset: "quick", "standard" or "fine": 10, 20 or 50 steps of the diffusion.
        prior_rank: base bands of the prior; beyond three they go through the denoiser in groups of three.
        prior_weights: of the denoiser: name of shipped ones, or a folder.
        cache: keep the prior, so that a second run on the same pair is quick.
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

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self.prior_settings = PriorSettings(
            preset=str(self.parameters["preset"]),
            rank=int(self.parameters["prior_rank"]),
            weights=str(self.parameters["prior_weights"]),
        )
        self.from_cache = False

    def draw_prior(self, scene: Scene, control: Control) -> Prior:
        """Return the scene's prior, from the cache where it is known."""
        settings = replace(self.prior_settings, seed=scene.seed)
        if not self.parameters["cache"]:
            return sample_prior(scene, settings, control)
        prior, self.from_cache = cached_prior(scene, settings, control)
        return prior

    def prior_of_pairs(self) -> Callable[[Scene], Callable[[Tensor], Tensor]]:
        """Return how the priors of training pairs are drawn."""
        return prior_drawer(replace(TRAINING_PRIOR, weights=self.prior_settings.weights))

    def _run(self, inputs: list[Tensor], origin: tuple[int, int]) -> Tensor:
        return self.model(*inputs, origin=origin)[0]

    def describe(self) -> dict[str, Any]:
        """Return what both stages found; the prior's data terms step by step under `prior`."""
        facts = super().describe()
        if self.prior is not None:
            curves = {k: [round(v, 5) for v in values] for k, values in self.prior.curves.items()}
            facts["prior"] = {**self.prior.facts, "curves": curves, "from_cache": self.from_cache}
        return facts
