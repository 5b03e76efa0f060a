# SPDX-License-Identifier: GPL-2.0-or-later
"""The learned methods' input contract: one component of the HS image's own subspace at a time.

A network sees a handful of planes that say what the closed form (`lmmse`) made of one component, what the coarse
image and the guide know of it, and how far they can be trusted; it returns a correction of that component, in
units of its expected detail. The components share the weights, so neither the number of bands, nor that of
the guide's bands, nor the ratio is built in. docs/models.md says what was tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from ..control import Control
from ..degradation import Range, degrade, interpolate
from ..io.source import Source
from ..scene import MomentAccumulator, Scene
from .injection import ridge_solve

FORM = "subspace-4"
"""Name of this contract in config.json; weights of another one are refused."""
KERNEL_FORM = "kernel"
OTHER_FORMS = (KERNEL_FORM, "lmmse-local", "gsa", "sfim-hs")
"""Results that a network may lean towards: kernel regression on learned features; the closed form itself with gains
that are all but local; and injections of the guide's detail that know of no noise. What they get wrong is not what
`lmmse` gets wrong."""
COARSE_PLANES = 7
ACTIVITY_PLANE = 8
"""Fine plane of what all components do together."""
CONSTANT_PLANES = tuple(range(9, 15))
"""Fine planes that say one thing of a component, the same everywhere: explained share, roughness, detail over scale,
place, ratio, guide bands."""
OTHER_PLANES = tuple(range(15, 15 + len(OTHER_FORMS)))
"""Fine planes that say how each of `OTHER_FORMS` differs."""
SMOOTHED_PLANES = tuple(plane + len(OTHER_FORMS) for plane in OTHER_PLANES)
"""Fine planes with `OTHER_PLANES` averaged over `SMOOTHING` pixels: what is wrong with a closed form has about the size
of coarse pixels."""
READ = (1, 3, 4, 5, 6, *OTHER_PLANES, *SMOOTHED_PLANES)
"""Fine planes whose weighted sum is part of a correction: the closed form's detail, that less a linear, less a
non-linear and less a multiplicative injection of the guide's, a sharpening, and how the other forms differ, as they are
and smoothed."""
_TRUSTED = READ[: -len(SMOOTHED_PLANES)]
TRUST_PLANES = tuple(SMOOTHED_PLANES[-1] + 1 + i for i in range(len(_TRUSTED)))
"""Fine planes that say of each plane of `READ` but the smoothed ones how small it is around a pixel, 0 (large) to 1:
where two forms lie far apart, one of them is far off."""
FINE_PLANES = TRUST_PLANES[-1] + 1
SMOOTHING, SURROUNDINGS = 5, 25
"""Sides, in fine pixels, of the windows of `SMOOTHED_PLANES` and `TRUST_PLANES`."""
TRUST_OF = (*range(len(_TRUSTED)), *range(len(_TRUSTED) - len(OTHER_FORMS), len(_TRUSTED)))
"""Which of `TRUST_PLANES` belongs to each plane of `READ`."""
START_SHAPE = (len(READ), 2 * (1 + len(CONSTANT_PLANES)) + len(OTHER_FORMS) + 3)
"""Shape of the weights that a network starts from: for each plane of `READ`, those of 1 and the constants, of these
times the plane's trust, and of what is the case around a pixel (`_surroundings`)."""
BRIGHT = 3.0
"""Standard deviations to which the start follows the first component."""
SIZE_FLOOR = 0.05
"""Planes smaller than this, root mean square, count as this large."""
OUTPUTS = len(READ) + 1
"""What a network returns: weights of the planes `READ` and a free term; with a prior, one more before the last: the
weight of how the prior differs."""
PRIOR_PLANES = 2
"""Planes of a prior (MPSRNet-Diff): how it differs from the closed form, in units, and its detail."""
CONTRAST_FLOOR = 0.1
"""The guide's local brightness counts as at least this share of its mean, so that its contrast stays finite."""
LEAST_UNIT = 0.03
"""Where the guide explains a component's detail, corrections are small: to this share of the detail."""
DARKEST, BRIGHTEST = 0.05, 20.0
"""Range of a guide band over its mean within which its logarithm is taken."""
LINEAR_RIDGE, NONLINEAR_RIDGE = 1e-4, 1e-3
FREE = 0.5
"""Size of the free term, relative to the detail to expect."""
MANY_BANDS = 8
"""Bands from which on a guide tells a network nothing new by their number."""
CENTRED_AT_ONCE = 65_536
"""Pixels whose bands are centred at once."""
LIMIT = 8.0
"""Planes are clipped to this many units: a dead pixel must not drive a network."""
ROUGHNESS_OF_NOISE = 1.9544
"""Mean absolute second difference of white Gaussian noise over its standard deviation, sqrt(6) sqrt(2 / pi)."""


@dataclass
class Subspace:
    """A basis of the HS image.

    Attributes:
        basis: `[bands, K]`, `image = mean + basis @ coefficients` (plus what lies outside).
        projector: `[K, bands]`, `coefficients = projector @ (image - mean)`.
        mean: `[bands]`.
    """

    basis: Tensor
    projector: Tensor
    mean: Tensor

    def coefficients(self, image: Tensor) -> Tensor:
        """Return `[K, rows, cols]` of `[bands, rows, cols]`."""
        projector, mean = self.projector.to(image), self.mean.to(image)[:, None]
        # In parts: the centred image would be as large as the image itself.
        parts = image.reshape(len(image), -1).split(CENTRED_AT_ONCE, dim=1)
        return torch.cat([projector @ (part - mean) for part in parts], dim=1).view(-1, *image.shape[1:])

    def add_to(self, image: Tensor, coefficients: Tensor, bands: Sequence[int] | None = None) -> None:
        """Add what coefficients `[K, rows, cols]` mean in the bands to `[bands, rows, cols]`, in place.

        Args:
            bands: which ones the image has; None for all.
        """
        basis = self.basis if bands is None else self.basis[list(bands)]
        image.view(len(image), -1).addmm_(basis.to(image), coefficients.flatten(1))


@dataclass
class ComponentStatistics:
    """What the coarse scene tells of each component; all `[K]` but the predictor.

    Attributes:
        scale: standard deviation of the coarse coefficients.
        detail: standard deviation of what one more step of coarsening takes away: the detail to expect.
        explained: share of that detail that a linear regression on the guide's explains, 0 to 1.
        roughness: share of the scale that looks like white noise, 0 to 1 (second differences).
        predictor: `[K, guide bands]`, regression of the coefficients on the degraded guide.
        nonlinear: `[K, 2 guide bands]`, regression of their detail on that of the expanded guide, as far from the
            linear one as the halves of the scene confirm.
        origin: coefficients of an image that is 0 everywhere.
        guide_mean: `[guide bands]`.
        guide_axis: `[guide bands]`, the guide's first principal axis, scaled to unit variance, of the sign that
            makes it a brightness.
        sign: of the covariance of the coefficients and that axis: -1 or 1.
        expanded_mean, expanded_covariance: `[2 guide bands]` and its square, float64: moments of the degraded guide
            and its logarithms (see `expanded`).
    """

    scale: Tensor
    detail: Tensor
    explained: Tensor
    roughness: Tensor
    predictor: Tensor
    nonlinear: Tensor
    origin: Tensor
    guide_mean: Tensor
    guide_axis: Tensor
    sign: Tensor
    expanded_mean: Tensor
    expanded_covariance: Tensor


def expanded(guide: Tensor, mean: Tensor) -> Tensor:
    """Return the guide's bands and their logarithms, `[2 guide bands, rows, cols]`; 0 for a band of no brightness.

    Materials lie on curves, not planes, in the space of the guide's bands; regressing on logarithms as well, whose
    differences are band ratios, follows them.

    Args:
        guide: `[guide bands, rows, cols]`.
        mean: `[guide bands]`, their means over the scene.
    """
    column = mean.to(guide)[:, None, None]
    relative = (guide / column.clamp_min(1e-30)).clamp(DARKEST, BRIGHTEST).log()
    return torch.cat([guide, torch.where(column > 0, relative, torch.zeros_like(relative))])


class ExpandedSource(Source):
    """A guide with its logarithms beside it; see `expanded`."""

    def __init__(self, guide: Source, mean: Tensor) -> None:
        self._guide, self._mean = guide, mean
        self.bands, self.rows, self.cols = 2 * guide.bands, guide.rows, guide.cols

    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Read a window; see `Source.read`."""
        values, mask = self._guide.read(rows, cols)
        return expanded(values, self._mean), mask


def expanded_scene(scene: Scene, control: Control) -> tuple[Scene, Tensor]:
    """Return a scene with the guide's logarithms beside the guide, and the guide's means (see `expanded`)."""
    mean = scene.statistics(scene.mtf_hs, control).guide_mean.float()
    guide = ExpandedSource(scene.guide, mean)
    wide = Scene(
        scene.hs, guide, scene.ratio, scene.mtf_hs, scene.mtf_guide, device=scene.device, seed=scene.seed
    )
    return wide, mean


def component_statistics(scene: Scene, subspace: Subspace, control: Control) -> ComponentStatistics:
    """Look at the coarse scene once, tile by tile.

    Raises:
        ValueError: no coarse pixel is valid.
    """
    ratio, gain = scene.ratio, scene.mtf_hs
    k, m = len(subspace.projector), scene.guide.bands
    wide, _ = expanded_scene(scene, control)
    values, details = MomentAccumulator(), MomentAccumulator()
    halves = MomentAccumulator(), MomentAccumulator()
    rough, count = torch.zeros(k, dtype=torch.float64), 0
    for tile in wide.coarse_tiles(gain, control=control):
        joint = torch.cat([subspace.coefficients(tile.hs), tile.guide])
        joint = torch.where(tile.mask, joint, torch.zeros((), device=joint.device))
        values.update(joint[:, tile.mask])
        rows, cols = joint.shape[1] // ratio * ratio, joint.shape[2] // ratio * ratio
        if min(rows, cols) >= 2 * ratio:
            part, mask = joint[:, :rows, :cols], tile.mask[:rows, :cols]
            low, _ = degrade(part, ratio, gain, mask)
            high, middle = part - interpolate(low, ratio), cols // 2
            details.update(high[:, mask])
            halves[0].update(high[:, :, :middle][:, mask[:, :middle]])
            halves[1].update(high[:, :, middle:][:, mask[:, middle:]])
        if joint.shape[2] >= 3:
            second = joint[:k, :, 2:] - 2 * joint[:k, :, 1:-1] + joint[:k, :, :-2]
            valid = tile.mask[:, 2:] & tile.mask[:, 1:-1] & tile.mask[:, :-2]
            rough += second[:, valid].abs().sum(dim=1).double().cpu()
            count += int(valid.sum())
    mean, covariance = values.compute()
    scale = covariance.diagonal()[:k].clamp_min(1e-30).sqrt()
    if details.count:
        _, fine = details.compute()
    else:  # too small to look one step down: half of the scale is a usual share
        fine = 0.25 * covariance
    detail = torch.maximum(fine.diagonal()[:k].clamp_min(0).sqrt(), 0.02 * scale)
    end = k + m
    gains = ridge_solve(fine[k:end, k:end], fine[k:end, :k], LINEAR_RIDGE).T
    nonlinear = functional.pad(gains, (0, m))
    if all(half.count > 2 * m for half in halves):
        share = nonlinear_share([half.compute()[1] for half in halves], k, m)
        whole = ridge_solve(fine[k:, k:], fine[k:, :k], NONLINEAR_RIDGE).T
        nonlinear = nonlinear + share[:, None] * (whole - nonlinear)
    explained = ((gains * fine[:k, k:end]).sum(dim=1) / detail.square()).clamp(0, 1)
    # Adjusted for the number of guide bands: with few pixels, anything is explained.
    seen = max(1, details.count)
    explained = 1 - (1 - explained) * seen / max(1, seen - m - 1)
    eigenvalues, vectors = torch.linalg.eigh(covariance[k:end, k:end])
    axis = vectors[:, -1] / eigenvalues[-1].clamp_min(1e-30).sqrt()
    axis = -axis if float(axis.sum()) < 0 else axis
    # A basis vector's sign is arbitrary; a network would have to learn that, so it is fixed here.
    sign = torch.where(covariance[:k, k:end] @ axis < 0, -1.0, 1.0)
    return ComponentStatistics(
        scale.float(),
        detail.float(),
        explained.clamp(0, 1).float(),
        (rough / max(1, count) / ROUGHNESS_OF_NOISE / scale).clamp(0, 1).float(),
        ridge_solve(covariance[k:end, k:end], covariance[k:end, :k], 1e-4).T.float(),
        nonlinear.float(),
        -(subspace.projector @ subspace.mean).float().cpu(),
        mean[k:end].float(),
        axis.float(),
        sign.float(),
        mean[k:],
        covariance[k:, k:],
    )


def nonlinear_share(halves: Sequence[Tensor], k: int, m: int) -> Tensor:
    """Return how far to go from a linear to a non-linear regression, `[k]`, 0 to 1, as each half judges the other.

    With few pixels, or dark ones, logarithms fit what they see and fail elsewhere.

    Args:
        halves: covariances `[k + 2 m, k + 2 m]` of k coefficients, m guide bands and their logarithms in two halves of
            the scene.
        k, m: see there.
    """
    end, found, size = k + m, torch.zeros(k, dtype=torch.float64), torch.zeros(k, dtype=torch.float64)
    for own, other in (halves, reversed(halves)):
        linear = functional.pad(ridge_solve(own[k:end, k:end], own[k:end, :k], LINEAR_RIDGE).T, (0, m))
        step = ridge_solve(own[k:, k:], own[k:, :k], NONLINEAR_RIDGE).T - linear
        left = other[:k, k:] - linear @ other[k:, k:]
        found += (step * left).sum(dim=1)
        size += ((step @ other[k:, k:]) * step).sum(dim=1)
    return torch.where(size > 0, found / size.clamp_min(1e-300), 0.0).clamp(0.0, 1.0)


@dataclass
class Planes:
    """A network's input and how to read its output.

    Attributes:
        coarse: `[K, COARSE_PLANES, rows, cols]`.
        fine: `[K, FINE_PLANES, rows * ratio, cols * ratio]`.
        unit: `[K]`: one unit of a correction, in coefficients: the detail that a linear regression on the guide
            leaves unexplained; its sign is the component's.
    """

    coarse: Tensor
    fine: Tensor
    unit: Tensor


def start_facts(fine: Tensor) -> Tensor:
    """Return what the start's weights are linear in, `[K, READ, facts, rows, cols]`; see `START_SHAPE`.

    Args:
        fine: fine planes, `[K, FINE_PLANES, rows, cols]`.
    """
    told = torch.cat([torch.ones_like(fine[:, :1]), fine[:, list(CONSTANT_PLANES)]], dim=1)[:, None]
    own = fine[:, list(TRUST_PLANES)][:, list(TRUST_OF), None]
    shape = (-1, len(READ), -1, -1, -1)
    return torch.cat([told.expand(shape), own * told, _surroundings(fine)[:, None].expand(shape)], dim=2)


def _surroundings(fine: Tensor, first: Tensor | None = None) -> Tensor:
    """Return what is the case around a pixel, `[K, OTHER_FORMS + 3, rows, cols]`.

    Logarithms of how large the other forms' planes are, the activity (0 to 1), the first component (how bright it is,
    as a rule) and its square.
    """
    of_others = fine[:, list(TRUST_PLANES[-len(OTHER_FORMS) :])].clamp(1e-3, 1.0)
    sizes = 0.5 * (1.0 / of_others - 1.0 + SIZE_FLOOR**2).log()
    active = fine[:, ACTIVITY_PLANE : ACTIVITY_PLANE + 1]
    first = (fine[:1, :1] if first is None else first).clamp(-BRIGHT, BRIGHT).expand_as(active)
    return torch.cat([sizes, active / (1 + active), first, first.square() / BRIGHT], dim=1)


def with_start(output: Tensor, fine: Tensor, start: Tensor | None, first: Tensor | None = None) -> Tensor:
    """Return a network's output with the weights added that it started from.

    The sum of `start_facts`, weighed, written so that a tile's facts (25 planes of 27 each) need not be held.

    Args:
        output: `[K, OUTPUTS or more, rows, cols]`.
        fine: the fine planes that it was given.
        start: `START_SHAPE`; None for none.
        first: the first component's first plane, `[1, 1, rows, cols]`; None where `fine` begins with that component.
    """
    if start is None:
        return output
    constants, count = list(CONSTANT_PLANES), 1 + len(CONSTANT_PLANES)
    told = torch.cat([torch.ones_like(fine[:, :1, 0, 0]), fine[:, constants, 0, 0]], dim=1)
    alone, trusted, local = start.to(fine).split((count, count, START_SHAPE[1] - 2 * count), dim=1)
    weights = torch.einsum("jm,kmyx->kjyx", local, _surroundings(fine, first))
    own = fine[:, list(TRUST_PLANES)][:, list(TRUST_OF)]
    weights = torch.addcmul(weights, (told @ trusted.T)[:, :, None, None], own)
    weights = weights + (told @ alone.T)[:, :, None, None]
    return torch.cat([output[:, : len(READ)] + weights, output[:, len(READ) :]], dim=1)


def read_output(output: Tensor, fine: Tensor, prior: Tensor | None = None) -> Tensor:
    """Return the correction that a network means, in units, `[K, rows, cols]`.

    Args:
        output: `[K, OUTPUTS, rows, cols]`, with a prior one more.
        fine: the fine planes that it was given.
        prior: the prior's planes that it was given.
    """
    weighted = (output[:, : len(READ)] * fine[:, list(READ)]).sum(dim=1)
    if prior is not None:
        weighted = weighted + output[:, len(READ)] * prior[:, 0]
    return weighted + FREE * output[:, -1]


def prior_planes(
    prior: Tensor, estimate: Tensor, statistics: ComponentStatistics, unit: Tensor, ratio: int, gain: float
) -> Tensor:
    """Return the planes of a prior image, `[K, PRIOR_PLANES, rows, cols]`.

    Args:
        prior: its coefficients, `[K, rows, cols]`.
        estimate: the closed form's.
        statistics: of at least K components.
        unit: `[K]`, see `Planes`.
        ratio, gain: as in `make_planes`.
    """
    k = len(estimate)
    differs = (prior - estimate) / unit.to(prior)[:, None, None]
    signed = statistics.detail[:k] * statistics.sign[:k]
    detail = (prior - low(prior, ratio, gain)) / signed.to(prior)[:, None, None]
    return torch.stack([differs, detail], dim=1).clamp(-LIMIT, LIMIT)


def sharpening(image: Tensor) -> Tensor:
    """Return `[K, rows, cols]` less its 3 x 3 binomial mean, borders replicated."""
    kernel = torch.tensor([1.0, 2.0, 1.0], dtype=image.dtype, device=image.device) / 4.0
    padded = functional.pad(image[:, None], (1, 1, 1, 1), mode="replicate")
    mean = functional.conv2d(functional.conv2d(padded, kernel.view(1, 1, 3, 1)), kernel.view(1, 1, 1, 3))
    return image - mean[:, 0]


def windowed_mean(image: Tensor, side: int) -> Tensor:
    """Return `[K, planes, rows, cols]` averaged over windows of an odd side, cut at the borders."""
    for window in ((side, 1), (1, side)):
        padding = (window[0] // 2, window[1] // 2)
        image = functional.avg_pool2d(image, window, 1, padding, count_include_pad=False)
    return image


def low(image: Tensor, ratio: int, gain: float) -> Tensor:
    """Return `[..., rows, cols]` as the HS sensor sees it, interpolated back."""
    return interpolate(degrade(image, ratio, gain)[0], ratio)


def contrast(guide: Tensor, statistics: ComponentStatistics, ratio: int, gain: float) -> Tensor:
    """Return by what share the guide is brighter than its own low-pass, `[1, rows, cols]`.

    Brightness is the mean of the guide's bands, each over its own mean over the scene; 0 for a guide without a
    positive one.
    """
    mean = statistics.guide_mean.to(guide)
    positive = mean > 0
    if not bool(positive.any()):
        return torch.zeros_like(guide[:1])
    brightness = (guide[positive] / mean[positive][:, None, None]).mean(dim=0, keepdim=True)
    smooth = low(brightness, ratio, gain)
    return ((brightness - smooth) / smooth.clamp_min(CONTRAST_FLOOR)).clamp(-1.0, 3.0)


def make_planes(
    estimate: Tensor,
    coarse: Tensor,
    guide: Tensor,
    others: Sequence[Tensor],
    statistics: ComponentStatistics,
    ratio: int,
    gain: float,
) -> Planes:
    """Return the planes of the first K components, all at once; see `draft_planes`."""
    draft = draft_planes(estimate, coarse, guide, others, statistics, ratio, gain)
    fine = torch.cat([draft.fine(k) for k in range(len(estimate))])
    return Planes(draft.coarse, fine, draft.unit)


@dataclass
class PlaneDraft:
    """What the planes are made of, before they are put together component by component: all at once they are large.

    Attributes:
        coarse, unit: see `Planes`.
        parts: the fine planes up to those of the other forms, each `[K, rows, cols]` (or of one column, row or
            component where they are the same everywhere).
        others: the other forms' coefficients, each `[K or more, rows, cols]`.
        estimate: the closed form's, of settled signs, `[K, rows, cols]`.
        signs, other_unit: of the others' differences, `[K, 1, 1]`.
    """

    coarse: Tensor
    unit: Tensor
    parts: list[Tensor]
    others: Sequence[Tensor]
    estimate: Tensor
    signs: Tensor
    other_unit: Tensor

    @property
    def first(self) -> Tensor:
        """How bright it is: the first component's first plane, `[1, 1, rows, cols]`."""
        return self.parts[0][:1, None].clamp(-LIMIT, LIMIT)

    def fine(self, k: int) -> Tensor:
        """Return the fine planes of a component, `[1, FINE_PLANES, rows, cols]`."""
        shape = self.estimate.shape[1:]
        fine = self.estimate.new_empty(1, FINE_PLANES, *shape)
        for i, part in enumerate(self.parts):
            fine[0, i] = part[min(k, len(part) - 1)]
        for i, other in zip(OTHER_PLANES, self.others):
            fine[0, i] = (other[k] * self.signs[k] - self.estimate[k]) / self.other_unit[k]
        fine[:, : SMOOTHED_PLANES[0]].clamp_(-LIMIT, LIMIT)
        fine[:, list(SMOOTHED_PLANES)] = windowed_mean(fine[:, list(OTHER_PLANES)], SMOOTHING)
        fine[:, list(TRUST_PLANES)] = 1.0 / (
            1.0 + windowed_mean(fine[:, list(_TRUSTED)].square(), SURROUNDINGS)
        )
        return fine


def draft_planes(
    estimate: Tensor,
    coarse: Tensor,
    guide: Tensor,
    others: Sequence[Tensor],
    statistics: ComponentStatistics,
    ratio: int,
    gain: float,
) -> PlaneDraft:
    """Return what the planes of the first K components are made of.

    Args:
        estimate: the closed form's coefficients, `[K, rows * ratio, cols * ratio]`.
        coarse: coefficients of the coarse HS image, `[K or more, rows, cols]`.
        guide: `[guide bands, rows * ratio, cols * ratio]`, without nodata.
        others: the coefficients of each of `OTHER_FORMS`, `[K or more, rows * ratio, cols * ratio]`.
        statistics: of at least K components.
        ratio: fine pixels per coarse pixel.
        gain: the HS sensor's MTF gain at Nyquist.
    """
    k = len(estimate)
    signs = statistics.sign[:k].to(estimate)[:, None, None]
    estimate, coarse = estimate * signs, coarse[:k] * signs

    def column(values: Tensor) -> Tensor:
        return values[:k].to(estimate)[:, None, None]

    scale, detail = column(statistics.scale), column(statistics.detail)
    explained, roughness = column(statistics.explained), column(statistics.roughness)
    centred = guide - statistics.guide_mean.to(guide)[:, None, None]
    predicted = torch.einsum("km,myx->kyx", statistics.predictor[:k].to(guide), centred) * signs
    axis = torch.einsum("m,myx->yx", statistics.guide_axis.to(guide), centred)[None]
    curved = torch.einsum(
        "km,myx->kyx",
        statistics.nonlinear[:k].to(guide),
        expanded(guide, statistics.guide_mean),
    )
    curved = (curved - low(curved, ratio, gain)) * signs / detail
    seen, predicted_low = degrade(estimate, ratio, gain)[0], degrade(predicted, ratio, gain)[0]
    axis_low = degrade(axis, ratio, gain)[0]
    own = (estimate - interpolate(seen, ratio)) / detail
    linear = (predicted - interpolate(predicted_low, ratio)) / detail
    modulated = (interpolate(seen, ratio) - column(statistics.origin) * signs) * contrast(
        guide, statistics, ratio, gain
    )
    edges = axis - interpolate(axis_low, ratio)
    # What all components do here together: where something happens at all.
    activity = own.square().mean(dim=0, keepdim=True).sqrt()

    remains = (1 - explained).clamp_min(0).sqrt().clamp_min(LEAST_UNIT)

    constants = (explained, roughness, detail / scale)
    place = torch.arange(k, device=estimate.device, dtype=estimate.dtype)[:, None, None] / 8
    inverse_ratio = torch.full_like(place, 2.0 / ratio)
    guide_bands = torch.full_like(place, min(len(guide), MANY_BANDS) / MANY_BANDS)
    parts = [
        estimate / scale,
        own,
        linear,
        (own - linear) / remains,
        (own - curved) / remains,
        (own - modulated / detail) / remains,
        sharpening(estimate) / detail,
        edges * 2,
        activity,
        *constants,
        place,
        inverse_ratio,
        guide_bands,
    ]
    small = torch.stack(
        [
            coarse / scale,
            (coarse - seen) / detail,
            (coarse - predicted_low) / scale,
            axis_low.expand_as(coarse),
            *(c.expand_as(coarse) for c in constants),
        ],
        dim=1,
    )
    unit = (detail * remains * signs)[:, 0, 0]
    small = small.clamp(-LIMIT, LIMIT)
    return PlaneDraft(small, unit, parts, others, estimate, signs, detail * remains)


def consistent(correction: Tensor, ratio: int, gain: float, trust: Tensor) -> Tensor:
    """Return a correction without what the HS sensor would see of it.

    The closed form already agrees with the HS image; what would break that is taken away again, but for the
    share of each component that is noise.

    Args:
        correction: `[K, rows * ratio, cols * ratio]`.
        ratio, gain: as in `make_planes`.
        trust: `[K]`, 0 to 1: share of the coarse coefficients that is signal.
    """
    return correction - trust.to(correction)[:, None, None] * low(correction, ratio, gain)
