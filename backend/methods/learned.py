# SPDX-License-Identifier: GPL-2.0-or-later
"""The learned methods: a network corrects the closed form's coefficients in the HS image's own subspace."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import INTERPOLATION_REACH, psf_reach
from ..device import PRECISIONS, give_back_memory, inference_precision
from ..errors import ErrorCode, HyperSharpError
from ..job import DEFAULT_MEMORY_GB, FULL_BAND
from ..models import hyfusion, mbfn
from ..models.pretrained import PretrainedModel, from_pretrained, read_config
from ..scene import FILL_REACH, Scene, Tile
from ..weights import find_weights
from .base import FusionMethod
from .context import (
    Area,
    coarse_around,
    fine_range,
    inner,
    narrowed,
    widened,
    within,
)
from .full_band import FullBandFusion, input_form, load_full_band
from .kernel_regression import KERNEL_COMPONENTS
from .learned_base import ClosedForm, fit_closed_form
from .learned_planes import (
    COARSE_PLANES,
    FINE_PLANES,
    FORM,
    OTHER_FORMS,
    OUTPUTS,
    START_SHAPE,
    SURROUNDINGS,
    consistent,
    draft_planes,
    prior_planes,
    read_output,
    with_start,
)
from .subspace import grown

if TYPE_CHECKING:
    from ..diffusion.prior import Prior

CLOSED_FORM, PRIOR = "closed_form", "prior"
"""Stages that learned methods tell of."""
ADAPTING_SHARE = 0.12
"""Duration of a step of adaptation for the progress, where fusing (about half a megapixel) counts 6."""
PLANE_COPIES = 3
"""Copies of one component's fine planes that there are at a time."""
COARSE_COPIES = 2
"""Copies of the HS image of a tile's context that there are at a time."""
DRAFT_PLANES = len(OTHER_FORMS) + 9
"""Planes of every component that are held while they are worked off: the forms' and what the others are made of."""


class LearnedFusion(FusionMethod):
    """A network in the subspace form, on top of `lmmse` (docs/models.md).

    Weights of the full-band form run in its place, through `full_band.FullBandFusion` (docs/full-band.md).

    Subclasses name the network's class and the weights used when none are given.

    Options:
        weights: name of shipped weights, or a folder; None for the method's own.
        adapt: training steps on the pair itself, one scale down, before fusing.
        precision: of the network: "float32", "bfloat16", "float16", or "auto" for what is fast where it runs.
        memory_gb: bound of working memory in GiB; only networks that need the whole scene at once ask for it.
    """

    defaults: ClassVar[Mapping[str, Any]] = {
        "weights": None,
        "adapt": 0,
        "precision": "auto",
        "memory_gb": DEFAULT_MEMORY_GB,
    }
    stage_names = (CLOSED_FORM,)
    network: ClassVar[type[PretrainedModel]]
    own_weights: ClassVar[str]

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        self.steps = adapt_steps(self.parameters["adapt"])
        self.weights = str(self.parameters["weights"] or self.own_weights)
        self.precision = check_precision(self.parameters["precision"])
        self.memory_gb = check_memory(self.parameters["memory_gb"])
        self.adaptation: dict[str, Any] | None = None
        self.prior: Prior | None = None
        self.full_band: FullBandFusion | None = None
        if self.steps:
            # The assessment adapts again, one scale down.
            share = ADAPTING_SHARE * self.steps
            self.plan = {**self.plan, "training": share, "assessing": 6 + share}

    def fit(self, scene: Scene, control: Control) -> None:
        """Load the weights, fit the closed form, and tune the network on the pair where that is asked for.

        Raises:
            HyperSharpError: code `no_weights`; the weights are missing, damaged or of another method.
        """
        folder = find_weights(self.weights)
        if input_form(folder) == FULL_BAND:
            self._fit_full_band(folder, scene, control)
            return
        self.model, self.components = load_network(folder, self.network)
        if self.precision == "auto":
            self.precision = inference_precision(scene.device, self.model.convolutional)
        self._make_ready(scene, control)
        self.closed: ClosedForm = fit_closed_form(scene, control)
        self.statistics = self.closed.statistics
        if self.steps:
            from ..training.adapt import adapt

            self.adaptation = adapt(
                self.model, scene, self.components, self.steps, control, self.prior_of_pairs()
            )
        self.prior = self.draw_prior(scene, control)
        ratio = scene.ratio
        self.low_pass, self.context, self.inner_context = contexts(self.model, ratio, self.closed.mtf_gain)
        self.halo = self.closed.halo + self.context
        planes = PLANE_COPIES * FINE_PLANES + self.components * DRAFT_PLANES + KERNEL_COMPONENTS
        self.pixel_bytes = math.ceil(4 * (planes + COARSE_COPIES * scene.hs.bands / ratio**2))
        self.inner_bytes = self.model.pixel_bytes(ratio)
        self.fixed_bytes = self.closed.kernel.block_bytes

    def _fit_full_band(self, folder: Path, scene: Scene, control: Control) -> None:
        """Hand the scene over to a network that makes the image itself; there are no stages before it."""
        if self.steps:
            raise HyperSharpError(
                f"the weights in {folder} are of the full-band form, which is not adapted while fusing",
                f"leave adaptation out, or train them further on the pair: hypersharp train HS GUIDE "
                f"--form {FULL_BAND} --weights {folder}",
                ErrorCode.USAGE,
            )
        self.model, takes = load_full_band(folder, self.network)
        if self.precision == "auto":
            self.precision = "float32"  # the network makes the image itself: half precision would show
        self._make_ready(scene, control)
        whole = FullBandFusion(self.model, takes, folder, self._run, self.precision)
        whole.fit(scene, control, self.memory_gb)
        self.full_band, self.stage_names = whole, ()
        self.halo, self.context, self.pixel_bytes = whole.halo, whole.halo, whole.pixel_bytes
        self.prior = self.draw_prior(scene, control)  # these networks take none: progress passes over it

    def _make_ready(self, scene: Scene, control: Control) -> None:
        # Convolutions on a CPU are nearly twice as fast with the channels innermost.
        self.model.to(scene.device, memory_format=torch.channels_last)
        # A component of a tile takes seconds here: a cancel must not wait for its end.
        for module in self.model.modules():
            if not any(module.children()):
                module.register_forward_pre_hook(lambda *_: control.check())
        self._control = control

    def fuse(self, tile: Tile) -> Tensor:
        """Return `[bands, rows, cols]`: the closed form plus the network's correction."""
        if self.full_band is not None:
            return self.full_band.fuse(tile)
        watch = self.watch
        return self._fuse(tile, None if watch is None else lambda name, image: watch(tile, name, image))

    def stages(self, tile: Tile) -> dict[str, Tensor]:
        """Return the closed form, the prior where there is one, and the result; see `FusionMethod.stages`."""
        if self.full_band is not None:
            return {"fused": self.full_band.fuse(tile)}
        found: dict[str, Tensor] = {}
        fused = self._fuse(tile, lambda name, image: found.update({name: image.clone()}))
        return {**found, "fused": fused}

    @torch.no_grad()
    def _fuse(self, tile: Tile, tell: Callable[[str, Tensor], None] | None) -> Tensor:
        """Return the result, and tell of what went before it."""
        # With hundreds of bands an image is what takes the memory: of the context there are coefficients alone.
        closed, wide = self.closed, widened(tile, self.context)
        fused = closed.image(narrowed(tile, tile.rows, closed.halo))
        if tell is not None:
            tell(CLOSED_FORM, fused)
        self._control.check()
        own = within(tile.rows, tile.cols, (wide.rows[0], wide.cols[0]))
        estimate, base = closed.estimated(wide, () if self.prior is None else self.prior.bands)
        self._control.check()
        k = min(self.components, len(closed.trust))
        regressed = closed.regressed(wide)
        change = closed.completion(estimate, regressed, tile.ratio, k)
        beyond = closed.part(k, k + len(change))
        beyond.add_to(fused, change[own])
        estimate, regressed = estimate[:k].clone(), regressed[:k].clone()
        prior = None
        if self.prior is not None:
            beyond.add_to(base, change, self.prior.bands)
            projector = closed.subspace.projector[:k]
            prior = self.prior.refined_coefficients(base, estimate, projector, wide.rows, wide.cols)
            if tell is not None:
                tell(PRIOR, self.prior.refine(fused, tile.rows, tile.cols))
        del change, base
        others = closed.other_coefficients(wide, regressed, k)
        self._control.check()
        give_back_memory()
        correction = self.correct(tile, closed.registered(wide), estimate, others, prior)
        closed.part(0, len(correction)).add_to(fused, correction)
        return fused

    def draw_prior(self, scene: Scene, control: Control) -> Prior | None:
        """Return the prior that the network takes; None for none."""
        return None

    def prior_of_pairs(self) -> Callable[[Scene], Callable[[Tensor], Tensor]] | None:
        """Return how priors of training pairs are drawn (see `training.examples.DrawPrior`); None for none."""
        return None

    def correct(
        self, own: Tile, tile: Tile, estimate: Tensor, others: list[Tensor], prior: Tensor | None = None
    ) -> Tensor:
        """Return the correction of the first components on a tile's own pixels, `[K, rows, cols]`.

        Args:
            own: the tile.
            tile: the same with `context` around it, of whole coarse pixels, in register.
            estimate: the closed form's coefficients on all of that, `[K or more, rows, cols]`.
            others: the other forms', each `[K, rows, cols]`.
            prior: the prior's, where the network takes one.
        """
        ratio, gain = tile.ratio, tile.mtf_hs
        k = min(self.components, len(estimate))
        core = inner(tile)
        near = grown(tile.hs_mask, FILL_REACH)[core[1:]]
        coarse = self.closed.subspace.coefficients(tile.hs[core]) * near
        guide = tile.guide_core
        top, left = tile.rows[0] - tile.fine_rows[0], tile.cols[0] - tile.fine_cols[0]
        seen = grown(tile.guide_mask, FILL_REACH)[top : top + guide.shape[1], left : left + guide.shape[2]]
        mean = self.statistics.guide_mean.to(guide)[:, None, None]
        guide = torch.where(seen, guide, mean)
        draft = draft_planes(estimate[:k], coarse, guide, others, self.statistics, ratio, gain)
        seen_prior = None
        if prior is not None:
            seen_prior = prior_planes(prior[:k], estimate[:k], self.statistics, draft.unit, ratio, gain)
        # What is made consistent afterwards, and what the network looks at to make it.
        made = coarse_around(own, self.low_pass, tile)
        looked = coarse_around(own, self.low_pass + max(0, self.model.reach(ratio)), tile)
        start = tile.rows[0], tile.cols[0]
        fine_made, fine_looked = (tuple(fine_range(side, ratio) for side in area) for area in (made, looked))
        part, view = within(*fine_made, start), within(*fine_looked, start)
        coarse_view = within(*looked, (start[0] // ratio, start[1] // ratio))
        origin = fine_looked[0][0], fine_looked[1][0]
        keep = tuple((m[0] - o[0], m[1] - o[0]) for m, o in zip(made, looked))
        # One component at a time: that bounds the memory, and on a CPU it is no slower.
        correction = torch.empty_like(estimate[:k][part])
        half, first = PRECISIONS[self.precision], draft.first[0][part][None]
        for i in range(k):
            self._control.check()
            give_back_memory()
            planes = draft.fine(i)
            inputs = [draft.coarse[i][coarse_view], planes[0][view]]
            inputs += [] if seen_prior is None else [seen_prior[i][view]]
            inputs = [x[None].contiguous(memory_format=torch.channels_last) for x in inputs]
            own_prior = None if seen_prior is None else seen_prior[i][part][None]
            planes = planes[0][part][None].clone()
            with torch.autocast(tile.hs.device.type, half or torch.bfloat16, enabled=half is not None):
                output = self._run(inputs, origin, keep).float()
            del inputs
            output = with_start(output, planes, self.model.start, first)
            correction[i] = read_output(output, planes, own_prior)[0] * draft.unit[i]
        # What was made up in gaps must not come back with what the sensor would see of it.
        covered = tile.hs_mask[core[1:]].repeat_interleave(ratio, 0).repeat_interleave(ratio, 1)
        correction = consistent(correction * (seen & covered)[part[1:]], ratio, gain, self.closed.trust[:k])
        return correction[within(own.rows, own.cols, (fine_made[0][0], fine_made[1][0]))]

    def _run(self, inputs: list[Tensor], origin: tuple[int, int], keep: Area | None = None) -> Tensor:
        """Return the network's output, `[1, planes, rows, cols]`.

        Args:
            inputs: what it takes, beginning with the coarse planes.
            origin: scene coordinates of the first fine pixel.
            keep: rows and columns of the coarse planes whose output is wanted; None for all.
        """
        return kept(self.model(*inputs)[0], inputs[0], keep)

    def describe(self) -> dict[str, Any]:
        """Return which weights were used, what adaptation gained, and what the closed form found."""
        if self.full_band is not None:
            return {"weights": self.weights, **self.full_band.describe()}
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

    def _run(self, inputs: list[Tensor], origin: tuple[int, int], keep: Area | None = None) -> Tensor:
        return kept(self.model(*inputs, origin=origin)[0], inputs[0], keep)


def contexts(model: PretrainedModel, ratio: int, mtf_gain: float) -> tuple[int, int, int]:
    """Return coarse pixels around a tile: what a low-pass looks at, all the context, and that of a network's last step.

    From the outside in it is the planes' low-pass and surroundings, the network, the consistency step.
    """
    low_pass = math.ceil(psf_reach(ratio, mtf_gain) / ratio) + INTERPOLATION_REACH
    around = math.ceil(SURROUNDINGS // 2 / ratio)
    return low_pass, 2 * low_pass + around + model.reach(ratio) + 1, low_pass + model.last_reach(ratio)


def kept(output: Tensor, coarse: Tensor, keep: Area | None) -> Tensor:
    """Return the part of a network's output `[1, planes, rows, cols]` that some of its coarse pixels cover."""
    if keep is None:
        return output
    ratio = output.shape[-1] // coarse.shape[-1]
    rows, cols = (slice(*fine_range(side, ratio)) for side in keep)
    return output[..., rows, cols]


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
            f"weights of the form {FORM!r} are needed here, as hypersharp train writes them",
            ErrorCode.NO_WEIGHTS,
        )
    planes = model.config.hs_bands, model.config.guide_bands, model.config.out_bands
    takes_prior = getattr(model.config, "prior", False)
    starts = model.start is None or tuple(model.start.shape) == START_SHAPE
    if planes != (COARSE_PLANES, FINE_PLANES, OUTPUTS + takes_prior) or not starts:
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


def check_memory(value: Any) -> float:
    """Return a bound of memory in GiB.

    Raises:
        HyperSharpError: no positive number.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise HyperSharpError(
            f"the memory bound is {value!r}", "give a positive number of GiB", ErrorCode.USAGE
        )
    return float(value)


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
