# SPDX-License-Identifier: GPL-2.0-or-later
"""The Gaussian process of one block of kernel regression: its kernels, its data, its mean at fine pixels.

The model stands in `kernel_regression`, which cuts a scene into such blocks. Everything here can be differentiated:
training goes through it (`training/kernel.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..degradation import separable
from ..models.kernel_features import KernelFeatures

SMOOTH, EVERYWHERE = "smooth", math.inf
TERMS: tuple[tuple[str, float], ...] = (
    ("linear", EVERYWHERE),
    ("linear", 1.0),
    ("linear", 2.0),
    ("linear", 6.0),
    ("expanded", EVERYWHERE),
    ("expanded", 3.0),
    ("estimate", EVERYWHERE),
    ("learned", EVERYWHERE),
    ("learned", 4.0),
    ("learned", 1.5),
    (SMOOTH, 0.6),
    (SMOOTH, 1.2),
    (SMOOTH, 3.0),
)
"""Kernels: of which features (the guide, it and its logarithms, the closed form's coefficients, the learned ones, or
none at all), and over how many coarse pixels they hold together."""
JITTERS = (2e-4, 5e-3, 5e-2)
"""Share of the kernels' variance that is added to the noise, tried in turn until the system can be solved."""
CHUNK = 512
"""Pixels whose kernels are held at once."""
AREA_CHUNK = 1024
"""Fine pixels of an area that are predicted at once."""
FEW_FEATURES = 24
"""Features of a kind up to which an area is predicted feature by feature, not by pairs of pixels."""
LEFT_OUT = 1e-5
"""Share of the learned features' variance that an area may be predicted without."""


@dataclass
class KernelBlock:
    """What a block's regression sees; coefficients are centred and in units of their own coarse deviation.

    Attributes:
        image: `[INPUTS, rows, cols]` of the block's fine pixels with context.
        fixed: features that are not learned, `[n, rows, cols]`, by name.
        down: what degrades rows and columns to the coarse pixels, shift included: `[h, rows]`, `[w, cols]`.
        valid: `[h, w]`, True where a coarse pixel takes part.
        target: `[K, valid pixels]`.
        noise: `[K]`, what is known of the target's noise variance.
        spoilt: `[valid pixels]`, noise variance that gaps add.
        known: `[rows, cols]`, True where both images are valid.
        facts: `[K, FACTS]`.
        coarse_places, fine_places: (rows, cols): centres in coarse pixels of the HS grid, `[h]`, `[w]` and `[rows]`,
            `[cols]`.
        psf: variance of the PSF, in coarse pixels squared.
        mixing: `[guide bands, K]`: the standardised guide of the coefficients.
        unexplained: `[guide bands]`: variance that it leaves of the guide.
        guide: `[guide bands, rows, cols]`: what of the standardised guide these coefficients have to explain.
        estimate: `[K, rows, cols]`: the closed form's coefficients.
        centre, scale: `[K]`: coefficients = centre + scale * what is regressed.
    """

    image: Tensor
    fixed: dict[str, Tensor]
    down: tuple[Tensor, Tensor]
    valid: Tensor
    target: Tensor
    noise: Tensor
    spoilt: Tensor
    known: Tensor
    facts: Tensor
    coarse_places: tuple[Tensor, Tensor]
    fine_places: tuple[Tensor, Tensor]
    psf: float
    mixing: Tensor
    unexplained: Tensor
    guide: Tensor
    estimate: Tensor
    centre: Tensor
    scale: Tensor

    def features(self, model: KernelFeatures) -> dict[str, FeatureKind]:
        """Return every kind of features by name: those of `fixed`, and "learned"."""
        found = {name: FeatureKind([self._seen(fine)], [fine]) for name, fine in self.fixed.items()}
        seen, kept = [], []
        for fine in model.views(self.image):
            seen.append(self._seen(fine))
            # By far the largest arrays of a block; half of their digits are enough to predict by.
            kept.append(fine if fine.requires_grad else fine.half())
        return {**found, "learned": FeatureKind(seen, kept)}

    def _seen(self, fine: Tensor) -> Tensor:
        """Return features `[n, rows, cols]` as the HS sensor sees them, `[n, valid pixels]`."""
        return separable(*self.down, fine)[:, self.valid]


class FeatureKind:
    """Features of one kind, less their mean over the coarse pixels.

    Args:
        coarse_parts: on the coarse pixels, each `[n, valid pixels]`.
        fine_parts: on the fine ones, each `[n, rows, cols]`.

    Attributes:
        coarse: on the coarse pixels, `[all n, valid pixels]`, less the mean.
        fine_parts: as given, with the mean.
    """

    def __init__(self, coarse_parts: list[Tensor], fine_parts: list[Tensor]) -> None:
        coarse = torch.cat(coarse_parts)
        self._mean = coarse.mean(dim=1, keepdim=True)
        self._axes: Tensor | None = None
        self.coarse, self.fine_parts = coarse - self._mean, fine_parts

    def narrow(self, left_out: float) -> None:
        """Replace the features by fewer ones whose products with the coarse pixels are all but the same.

        What of a feature lies outside the space that the coarse pixels span is never asked for.

        Args:
            left_out: share of the coarse features' variance that may be lost.
        """
        values, vectors = torch.linalg.eigh(self.coarse @ self.coarse.T)
        lost = values.clamp_min(0.0).cumsum(0) <= left_out * values.clamp_min(0.0).sum()
        axes = vectors[:, ~lost].T
        self.coarse, self._mean, self._axes = axes @ self.coarse, axes @ self._mean, axes

    def at(self, rows: Tensor | slice, cols: Tensor | slice) -> Tensor:
        """Return those of some fine pixels, `[all n, pixels]` (or `[all n, rows, cols]` of slices), less the mean."""
        parts = [part[:, rows, cols].to(self._mean) for part in self.fine_parts]
        mean = self._mean.view(-1, *[1] * (parts[0].ndim - 1))
        if self._axes is None:
            return torch.cat(parts) - mean
        axes = self._axes.split([len(part) for part in parts], dim=1)
        found = -mean
        for own, part in zip(axes, parts):
            found = found + (own @ part.flatten(1)).view(-1, *part.shape[1:])
        return found


def _nearness(
    pixels: tuple[Tensor, Tensor], axes: tuple[Tensor, Tensor], valid: Tensor, variance: float
) -> Tensor:
    """Return `exp(-distance^2 / (2 variance))` between pixels and the valid coarse ones, `[pixels, valid pixels]`.

    Args:
        pixels: their places (rows, cols), `[pixels]`.
        axes: places of the coarse rows and columns, `[h]` and `[w]`.
        valid: `[h, w]`.
        variance: in coarse pixels squared.
    """
    # A Gaussian is a product over the axes: few exponentials instead of one for each pair of pixels.
    rows, cols = (
        torch.exp((a[:, None] - b[None, :]).square() * (-0.5 / variance)) for a, b in zip(pixels, axes)
    )
    near = (rows[:, :, None] * cols[:, None, :]).flatten(1)
    return near if bool(valid.all()) else near[:, valid.flatten()]


def _smooth(pixels: tuple[Tensor, Tensor], block: KernelBlock, length: float, blurs: int) -> Tensor:
    """Return the kernel of no features: a Gaussian one seen through Gaussian PSFs, so a wider and lower one.

    Args:
        pixels: see `_nearness`.
        block: where they are.
        length: of the kernel, in coarse pixels.
        blurs: PSFs that it is seen through: 2 between coarse pixels, 1 to fine ones.
    """
    wide = length**2 + blurs * block.psf
    return _nearness(pixels, block.coarse_places, block.valid, wide).mul_(length**2 / wide)


def _sizes(block: KernelBlock, coarse: dict[str, Tensor]) -> Tensor:
    """Return every kernel's mean variance at the coarse pixels, `[terms]`."""
    variances = {name: own.square().sum(dim=0).mean() for name, own in coarse.items()}
    return torch.stack(
        [
            block.target.new_tensor(length**2 / (length**2 + 2 * block.psf))
            if name == SMOOTH
            else variances[name]
            for name, length in TERMS
        ]
    )


def _coarse_kernels(block: KernelBlock, coarse: dict[str, Tensor], chosen: slice) -> Tensor:
    """Return every kernel of `TERMS` between some coarse pixels and all, `[terms, chosen pixels, valid pixels]`.

    Args:
        block: where they are.
        coarse: their features, by name.
        chosen: of the valid coarse pixels.
    """
    y, x = (place[chosen] for place in torch.nonzero(block.valid, as_tuple=True))
    here = block.coarse_places[0][y], block.coarse_places[1][x]
    products = {name: own[:, chosen].T @ own for name, own in coarse.items()}
    found = []
    for name, length in TERMS:
        if name == SMOOTH:
            found.append(_smooth(here, block, length, 2))
        elif length == EVERYWHERE:
            found.append(products[name])
        else:
            found.append(products[name] * _nearness(here, block.coarse_places, block.valid, length**2))
    return torch.stack(found)


def _alike(block: KernelBlock, coarse: dict[str, Tensor], strength: Tensor) -> Tensor:
    """Return what the kernels say together of the coarse pixels, `[K, valid pixels, valid pixels]`.

    Args:
        block, coarse: see `_coarse_kernels`.
        strength: what each kernel is multiplied by, `[K, terms]`.
    """
    count = block.target.shape[1]
    found = strength.new_empty(len(strength), count, count)
    for start in range(0, count, CHUNK):
        chosen = slice(start, start + CHUNK)
        kernels = _coarse_kernels(block, coarse, chosen)
        found[:, chosen] = (strength @ kernels.flatten(1)).view(len(strength), -1, count)
    return found


def matrix_bytes(count: int, pixels: int) -> int:
    """Return the memory that regressing `count` components on so many coarse pixels takes at most, in bytes."""
    # A matrix for each component, two while one is solved, and every kernel, twice, of a chunk.
    return 4 * pixels * (pixels * (count + 2) + min(pixels, CHUNK) * 2 * len(TERMS))


def _solved(alike: Tensor, noise: Tensor, power: Tensor, target: Tensor) -> Tensor | None:
    """Return the weights of the coarse pixels of one component, `[valid pixels]`; None if they cannot be solved for.

    Args:
        alike: what its kernels say of the coarse pixels, `[valid pixels, valid pixels]`.
        noise: variance of each, `[valid pixels]`.
        power: variance of the kernels.
        target: `[valid pixels]`.
    """
    for jitter in JITTERS:
        factor, failed = torch.linalg.cholesky_ex(alike + torch.diag(noise + jitter * power))
        if not bool(failed):
            found = torch.cholesky_solve(target[:, None], factor)[:, 0]
            if bool(torch.isfinite(found).all()):
                return found
    return None


def _predict(
    fine: dict[str, Tensor],
    coarse: dict[str, Tensor],
    places: tuple[Tensor, Tensor],
    block: KernelBlock,
    weights: Tensor,
) -> Tensor:
    """Return the sum over kernels and coarse pixels at some fine pixels, `[pixels, K]`.

    Args:
        fine: features of the fine pixels, `[n, pixels]`, by name.
        coarse: those of the coarse ones.
        places: of the fine pixels, (rows, cols).
        block: where they are.
        weights: `[terms, valid pixels, K]`.
    """
    near = {
        length: _nearness(places, block.coarse_places, block.valid, length**2)
        for length in {length for name, length in TERMS if name != SMOOTH and length != EVERYWHERE}
    }
    products: dict[str, Tensor] = {}
    found = torch.zeros(len(places[0]), weights.shape[2], device=weights.device)
    for (name, length), weight in zip(TERMS, weights):
        if name == SMOOTH:
            found = found + _smooth(places, block, length, 1) @ weight
        elif length == EVERYWHERE:
            found = found + fine[name].T @ (coarse[name] @ weight)
        else:
            if name not in products:
                products[name] = fine[name].T @ coarse[name]
            found = found + (products[name] * near[length]) @ weight
    return found


def _predict_area(
    features: dict[str, FeatureKind],
    area: tuple[slice, slice],
    block: KernelBlock,
    weights: Tensor,
    check: Callable[[], None],
) -> Tensor:
    """Return the sum over kernels and coarse pixels on a rectangle of fine pixels, `[K, rows, cols]`.

    The same as `_predict`, in less time: how near two pixels are is a product over the axes, so that what coarse
    pixels say, feature by feature, is spread along the rows, then along the columns, and meets the features last.
    Where features are many, pairs of pixels are quicker.

    Args:
        features: by name.
        area: rows and columns.
        block: where they are.
        weights: `[terms, valid pixels, K]`.
        check: see `regress`.
    """
    h, w = block.valid.shape
    places = [place[part] for place, part in zip(block.fine_places, area)]
    height, width, count = len(places[0]), len(places[1]), weights.shape[2]

    def near(axis: int, variance: float, part: slice = slice(None)) -> Tensor:
        apart = places[axis][part, None] - block.coarse_places[axis][None, :]
        return torch.exp(apart.square() * (-0.5 / variance))

    def on_grid(values: Tensor) -> Tensor:  # [n, valid pixels] -> [n, h, w], 0 elsewhere
        grid = values.new_zeros(len(values), h, w)
        grid[:, block.valid] = values
        return grid

    found = weights.new_zeros(count, height, width)
    everywhere: dict[str, Tensor] = {}
    local, pairs = [], []
    for (name, length), weight in zip(TERMS, weights):
        if name == SMOOTH:
            wide = length**2 + block.psf
            spread = near(0, wide) @ on_grid(weight.T) @ near(1, wide).T
            found += spread * (length**2 / wide)
        elif length == EVERYWHERE:
            everywhere[name] = everywhere.get(name, 0.0) + features[name].coarse @ weight
        elif len(features[name].coarse) > FEW_FEATURES:
            pairs.append((name, length**2, weight))
        else:
            said = weight.T[:, None] * features[name].coarse[None]
            # [h, w, K * n]: rows are spread by one product of matrices.
            local.append((name, length**2, on_grid(said.flatten(0, 1)).permute(1, 2, 0).contiguous()))
    rows_at_once = max(1, AREA_CHUNK // width)
    for start in range(0, height, rows_at_once):
        check()
        part = slice(start, min(height, start + rows_at_once))
        own_rows = slice(area[0].start + part.start, area[0].start + part.stop)
        fine = {name: kind.at(own_rows, area[1]) for name, kind in features.items()}
        for name, factor in everywhere.items():
            found[:, part] += torch.einsum("nyx,nk->kyx", fine[name], factor)
        for name, variance, said in local:
            along = (near(0, variance, part) @ said.flatten(1)).view(-1, w, said.shape[2])
            spread = (near(1, variance) @ along).view(len(along), width, count, -1)
            met = spread.mul_(fine[name].permute(1, 2, 0)[:, :, None]).sum(dim=3)
            found[:, part] += met.permute(2, 0, 1)
        there = places[0][part].repeat_interleave(width), places[1].repeat(part.stop - part.start)
        products = {n: fine[n].flatten(1).T @ features[n].coarse for n in {name for name, _, _ in pairs}}
        for name, variance, weight in pairs:
            alike = _nearness(there, block.coarse_places, block.valid, variance).mul_(products[name])
            found[:, part] += (alike @ weight).T.view(count, -1, width)
    return found


@dataclass
class _Solution:
    """What a block's regression comes to.

    Attributes:
        features: by name.
        weights: of kernels and coarse pixels, `[terms, valid pixels, K]`.
        spread, doubt, share: see `KernelFeatures.strengths`.
    """

    features: dict[str, FeatureKind]
    weights: Tensor
    spread: Tensor
    doubt: Tensor
    share: Tensor

    def finished(self, block: KernelBlock, result: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Return the coefficients `[K, pixels]` that come of the regression's at some pixels."""
        # The guide's own equation, as far as it holds: a linear-Gaussian update of each pixel.
        spreads = block.mixing * self.spread
        system = spreads @ block.mixing.T + torch.diag(block.unexplained * self.doubt + 1e-6)
        left = block.guide[:, rows, cols] - block.mixing @ result
        result = result + spreads.T @ torch.linalg.solve(system, left)
        closed = block.estimate[:, rows, cols]
        return closed + self.share[:, None] * (result - closed)


def _solve(
    model: KernelFeatures, block: KernelBlock, check: Callable[[], None], left_out: float | None
) -> _Solution | None:
    """Solve for the weights of a block's coarse pixels; None if that cannot be done.

    Args:
        model, block, check: see `regress`.
        left_out: see `FeatureKind.narrow`; None to keep all learned features.
    """
    strength, noise, spread, doubt, share = model.strengths(block.facts)
    features = block.features(model)
    check()
    if left_out is not None:
        if not bool(torch.isfinite(features["learned"].coarse).all()):
            return None  # of which no axes can be found
        features["learned"].narrow(left_out)
    coarse = {name: kind.coarse for name, kind in features.items()}
    size = _sizes(block, coarse).clamp_min(1e-9)
    power = strength.sum(dim=1).clamp_min(1.0)
    strength = strength / size
    alike = _alike(block, coarse, strength)
    solved = []
    for k, own in enumerate(block.noise + noise):
        check()
        found = _solved(alike[k], own + block.spoilt, power[k], block.target[k])
        if found is None:
            return None
        solved.append(found)
    weights = torch.stack(solved)
    weights = (strength[:, :, None] * weights[:, None, :]).permute(1, 2, 0).contiguous()
    return _Solution(features, weights, spread, doubt, share)


def regress(
    model: KernelFeatures,
    block: KernelBlock,
    rows: Tensor,
    cols: Tensor,
    check: Callable[[], None] = lambda: None,
) -> Tensor | None:
    """Return the regressed coefficients of some fine pixels, `[K, pixels]`, centred and scaled; None if unsolvable.

    Args:
        model: the learned part.
        block: the data.
        rows, cols: the pixels, as indices into the block's fine ones, `[pixels]`.
        check: called now and then, a few times a second; stops the work by raising.
    """
    solution = _solve(model, block, check, None)
    if solution is None:
        return None
    coarse = {name: kind.coarse for name, kind in solution.features.items()}
    parts = []
    for start in range(0, len(rows), CHUNK):
        check()
        r, c = rows[start : start + CHUNK], cols[start : start + CHUNK]
        there = block.fine_places[0][r], block.fine_places[1][c]
        fine = {name: kind.at(r, c) for name, kind in solution.features.items()}
        parts.append(_predict(fine, coarse, there, block, solution.weights))
    return solution.finished(block, torch.cat(parts).T, rows, cols)


def regress_area(
    model: KernelFeatures,
    block: KernelBlock,
    rows: slice,
    cols: slice,
    check: Callable[[], None] = lambda: None,
) -> Tensor | None:
    """Return what `regress` does of a rectangle of fine pixels, `[K, rows, cols]`, sooner; not for training.

    Args:
        model, block, check: see `regress`.
        rows, cols: indices into the block's fine pixels.
    """
    solution = _solve(model, block, check, LEFT_OUT)
    if solution is None:
        return None
    result = _predict_area(solution.features, (rows, cols), block, solution.weights, check)
    every = [torch.arange(s.start, s.stop, device=result.device) for s in (rows, cols)]
    y, x = torch.meshgrid(*every, indexing="ij")
    return solution.finished(block, result.flatten(1), y.flatten(), x.flatten()).view_as(result)
