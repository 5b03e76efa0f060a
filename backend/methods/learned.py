# SPDX-License-Identifier: GPL-2.0-or-later
"""The learned methods: a network corrects the closed form's coefficients in the HS image's own subspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import INTERPOLATION_REACH, Range, coarse_support, psf_reach
from ..device import PRECISIONS, inference_precision
from ..errors import ErrorCode, HyperSharpError
from ..models import hyfusion, mbfn
from ..models.pretrained import PretrainedModel, from_pretrained, read_config
from ..scene import FILL_REACH, Scene, Tile
from ..weights import find_weights
from .base import FusionMethod
from .learned_base import ClosedForm, fit_closed_form
from .learned_planes import (
    COARSE_PLANES,
    FINE_PLANES,
    FORM,
    OUTPUTS,
    component_statistics,
    consistent,
    make_planes,
    prior_planes,
    read_output,
)
from .subspace import grown

if TYPE_CHECKING:
    from ..diffusion.prior import Prior

CLOSED_FORM, PRIOR = "closed_form", "prior"
"""Stages that learned methods tell of."""
ADAPTING_SHARE = 0.12
"""Duration of a step of adaptation for the progress, where fusing (about half a megapixel) counts 6."""
PLANE_COPIES = 2.5
"""Copies of the fine planes of all components that making them holds at its peak."""


class LearnedFusion(FusionMethod):
    """A network in the subspace form, on top of `lmmse` (docs/models.md).

    Subclasses name the network's class and the weights used when none are given.

    Options:
        weights: name of shipped weights, or a folder; None for the method's own.
        adapt: training steps on the pair itself, one scale down, before fusing.
        precision: of the network: "float32", "bfloat16", "float16", or "auto" for what is fast where it runs.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"weights": None, "adapt": 0, "precision": "auto"}
    stage_names = (CLOSED_FORM,)
    network: ClassVar[type[PretrainedModel]]
    own_weights: ClassVar[str]

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self.steps = adapt_steps(self.parameters["adapt"])
        self.weights = str(self.parameters["weights"] or self.own_weights)
        self.precision = check_precision(self.parameters["precision"])
        self.adaptation: dict[str, Any] | None = None
        if self.steps:
            # The assessment adapts again, one scale down.
            share = ADAPTING_SHARE * self.steps
            self.plan = {**self.plan, "training": share, "assessing": 6 + share}

    def fit(self, scene: Scene, control: Control) -> None:
        """Load the weights, fit the closed form, and tune the network on the pair where that is asked for.

        Raises:
            HyperSharpError: code `no_weights`; the weights are missing, damaged or of another method.
        """
        self.model, self.components = load_network(find_weights(self.weights), self.network)
        # Convolutions on a CPU are nearly twice as fast with the channels innermost.
        self.model.to(scene.device, memory_format=torch.channels_last)
        if self.precision == "auto":
            self.precision = inference_precision(scene.device, self.model.convolutional)
        # A component of a tile takes seconds here: a cancel must not wait for its end.
        for module in self.model.modules():
            if not any(module.children()):
                module.register_forward_pre_hook(lambda *_: control.check())
        self._control = control
        self.closed: ClosedForm = fit_closed_form(scene, control)
        self.statistics = component_statistics(scene, self.closed.subspace, control)
        if self.steps:
            from ..training.adapt import adapt

            self.adaptation = adapt(
                self.model, scene, self.components, self.steps, control, self.prior_of_pairs()
            )
        self.prior = self.draw_prior(scene, control)
        # From the outside in: the planes' low-pass, the network, the consistency step.
        psf = math.ceil(psf_reach(scene.ratio, self.closed.mtf_gain) / scene.ratio)
        low_pass = psf + INTERPOLATION_REACH
        self.margin = 2 * low_pass + self.model.reach(scene.ratio) + 1
        self.halo = self.closed.halo + self.margin
        planes = 4 * self.components * FINE_PLANES
        self.pixel_bytes = round(max(PLANE_COPIES * planes, planes + self.model.pixel_bytes(scene.ratio)))

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the closed form plus the network's correction."""
        watch = self.watch
        return self._fuse(tile, None if watch is None else lambda name, image: watch(tile, name, image))

    def stages(self, tile: Tile) -> dict[str, Tensor]:
        """Return the closed form, the prior where there is one, and the result; see `FusionMethod.stages`."""
        found: dict[str, Tensor] = {}
        fused = self._fuse(tile, lambda name, image: found.update({name: image.clone()}))
        return {**found, "fused": fused}

    @torch.no_grad()
    def _fuse(self, tile: Tile, tell: Callable[[str, Tensor], None] | None) -> Tensor:
        """Return the result, and tell of what went before it."""
        wide = widened(tile, self.margin)
        image = self.closed.image(wide)
        self._control.check()
        top, left = tile.rows[0] - wide.rows[0], tile.cols[0] - wide.cols[0]
        own = (
            slice(None),
            slice(top, top + tile.rows[1] - tile.rows[0]),
            slice(left, left + tile.cols[1] - tile.cols[0]),
        )
        subspace = self.closed.subspace
        prior = None
        if tell is not None:
            tell(CLOSED_FORM, image[own])
        if self.prior is not None:
            drawn = self.prior.refine(image, wide.rows, wide.cols)
            prior = subspace.coefficients(drawn)
            if tell is not None:
                tell(PRIOR, drawn[own])
            del drawn
        estimate = subspace.coefficients(image)
        others = self.closed.other_coefficients(wide, min(self.components, len(estimate)))
        self._control.check()
        correction = self.correct(self.closed.registered(wide), estimate, others, prior)
        fused = image[own].clone()
        flat = fused.view(len(fused), -1)
        basis = subspace.basis[:, : len(correction)].to(flat)
        flat.addmm_(basis, correction[own].reshape(len(correction), -1))
        return fused

    def draw_prior(self, scene: Scene, control: Control) -> Prior | None:
        """Return the prior that the network takes; None for none."""
        return None

    def prior_of_pairs(self) -> Callable[[Scene], Callable[[Tensor], Tensor]] | None:
        """Return how priors of training pairs are drawn (see `training.examples.DrawPrior`); None for none."""
        return None

    def correct(
        self, tile: Tile, estimate: Tensor, others: list[Tensor], prior: Tensor | None = None
    ) -> Tensor:
        """Return the correction of the first components on a tile's own pixels, `[K, rows, cols]`.

        Args:
            tile: of whole coarse pixels, in register.
            estimate: the closed form's coefficients, `[rank, rows, cols]`.
            others: the other forms', each `[K, rows, cols]`.
            prior: the prior's, where the network takes one.
        """
        ratio, gain = tile.ratio, tile.mtf_hs
        k = min(self.components, len(estimate))
        rows, cols = _coarse(tile.rows, ratio), _coarse(tile.cols, ratio)
        inner = (
            slice(None),
            slice(rows[0] - tile.coarse_rows[0], rows[1] - tile.coarse_rows[0]),
            slice(cols[0] - tile.coarse_cols[0], cols[1] - tile.coarse_cols[0]),
        )
        near = grown(tile.hs_mask, FILL_REACH)[inner[1:]]
        coarse = self.closed.subspace.coefficients(tile.hs[inner]) * near
        guide = tile.guide_core
        top, left = tile.rows[0] - tile.fine_rows[0], tile.cols[0] - tile.fine_cols[0]
        seen = grown(tile.guide_mask, FILL_REACH)[top : top + guide.shape[1], left : left + guide.shape[2]]
        mean = self.statistics.guide_mean.to(guide)[:, None, None]
        guide = torch.where(seen, guide, mean)
        planes = make_planes(estimate[:k], coarse, guide, others, self.statistics, ratio, gain)
        inputs = [planes.coarse, planes.fine]
        seen_prior = None
        if prior is not None:
            seen_prior = prior_planes(prior[:k], estimate[:k], self.statistics, planes.unit, ratio, gain)
            inputs.append(seen_prior)
        origin = (tile.rows[0], tile.cols[0])
        # One component at a time: that bounds the memory, and on a CPU it is no slower.
        parts = []
        half = PRECISIONS[self.precision]
        layout = torch.channels_last
        with torch.autocast(tile.hs.device.type, half or torch.bfloat16, enabled=half is not None):
            for i in range(k):
                self._control.check()
                one = [x[i : i + 1].contiguous(memory_format=layout) for x in inputs]
                parts.append(self._run(one, origin).float())
        correction = read_output(torch.cat(parts), planes.fine, seen_prior) * planes.unit[:, None, None]
        return consistent(correction, ratio, gain, self.closed.trust[:k])

    def _run(self, inputs: list[Tensor], origin: tuple[int, int]) -> Tensor:
        return self.model(*inputs)[0]

    def describe(self) -> dict[str, Any]:
        """Return which weights were used, what adaptation gained, and what the closed form found."""
        facts: dict[str, Any] = {
            "weights": self.weights,
            "network_parameters": self.model.parameter_count(),
            "components": min(self.components, len(self.closed.trust)),
            "precision": self.precision,
            "closed_form": self.closed.method.describe(),
        }
        if self.adaptation is not None:
            facts["adaptation"] = self.adaptation
        return facts


class S3RNet(LearnedFusion):
    """S3RNet's multi-branch network with SSAWB (Lee et al., IGARSS 2025, arXiv 2501.07953).

    Weights of CSAKD's student or teacher (arXiv 2406.19666) are of the same class and run as well.
    """

    network = mbfn.MBFN
    own_weights = "s3rnet"


class CSAKD(LearnedFusion):
    """CSAKD's student, distilled from its teacher (Hsu et al., arXiv 2406.19666)."""

    network = mbfn.MBFN
    own_weights = "csakd"


class CSAKDTeacher(S3RNet):
    """CSAKD's teacher. It owes its student nothing: its network and weights are S3RNet's."""


class HyFusionMethod(LearnedFusion):
    """HyFusion's coupled streams of shifted-window attention (Lee et al., IGARSS 2025, arXiv 2501.04665)."""

    network = hyfusion.HyFusion
    own_weights = "hyfusion"

    def _run(self, inputs: list[Tensor], origin: tuple[int, int]) -> Tensor:
        return self.model(*inputs, origin=origin)[0]


def load_network(folder: Path, network: type[PretrainedModel]) -> tuple[PretrainedModel, int]:
    """Return a network in the subspace form and how many components it corrects.

    Raises:
        HyperSharpError: code `no_weights`; missing, damaged, of another class or for another input.
    """
    entry = read_config(folder).get("input")
    components = entry.get("components", 1) if isinstance(entry, dict) else None
    if not isinstance(entry, dict) or isinstance(components, bool) or not isinstance(components, int):
        raise HyperSharpError(
            f"the configuration in {folder} is not valid: input is {entry!r}",
            "download or train the weights again",
            ErrorCode.NO_WEIGHTS,
        )
    model = from_pretrained(folder, network)
    if entry.get("form") != FORM:
        raise HyperSharpError(
            f"the weights in {folder} take another input: {entry.get('form')!r}",
            f"this method needs weights of the form {FORM!r}, as hypersharp train writes them",
            ErrorCode.NO_WEIGHTS,
        )
    planes = model.config.hs_bands, model.config.guide_bands, model.config.out_bands
    takes_prior = getattr(model.config, "prior", False)
    if planes != (COARSE_PLANES, FINE_PLANES, OUTPUTS + takes_prior):
        raise HyperSharpError(
            f"the weights in {folder} take other planes: {planes}",
            "they are of another version of HyperSharp: train or download them again",
            ErrorCode.NO_WEIGHTS,
        )
    return model, max(1, components)


def adapt_steps(value: Any) -> int:
    """Return the number of adaptation steps.

    Raises:
        HyperSharpError: no integer of at least 0.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise HyperSharpError(
            f"the number of adaptation steps is {value!r}", "give an integer, 0 for none", ErrorCode.USAGE
        )
    return value


def check_precision(value: Any) -> str:
    """Return the name of a precision, or "auto".

    Raises:
        HyperSharpError: it is neither.
    """
    if value == "auto" or value in PRECISIONS:
        return str(value)
    raise HyperSharpError(
        f"unknown precision {value!r}", f"use auto, {', '.join(PRECISIONS)}", ErrorCode.USAGE
    )


def _coarse(fine: Range, ratio: int) -> Range:
    return fine[0] // ratio, fine[1] // ratio


def widened(tile: Tile, margin: int) -> Tile:
    """Return the tile with `margin` coarse pixels more of its own on each side, in whole coarse pixels.

    The context must have been read with a halo that is larger by `margin`.
    """
    ratio = tile.ratio
    rows = coarse_support(tile.rows, ratio, tile.scene_coarse[0], margin)
    cols = coarse_support(tile.cols, ratio, tile.scene_coarse[1], margin)
    fine_rows, fine_cols = (rows[0] * ratio, rows[1] * ratio), (cols[0] * ratio, cols[1] * ratio)
    mask = torch.ones(fine_rows[1] - fine_rows[0], fine_cols[1] - fine_cols[0], dtype=torch.bool)
    return replace(tile, rows=fine_rows, cols=fine_cols, mask=mask.to(tile.hs.device), _lowpass={})
