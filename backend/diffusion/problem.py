# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scene to what the sampler works on: base bands, loadings, residual, and the data terms in register."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import decimation_matrix, interpolation_matrix, separable
from ..errors import ErrorCode, HyperSharpError
from ..methods.linear_model import LinearModelMethod
from ..methods.lmmse import LMMSE
from ..methods.registration import shift_matrix
from ..methods.subspace import coarse_guide, grown
from ..scene import FILL_REACH, FULL_COVERAGE, Scene, Tile, tile_windows
from .anchor import error_precision
from .bands import band_loadings, select_bands, unexplained
from .terms import DataTerms, mix

MIDDLE = (0.005, 0.995)
"""Quantiles of a base band's coarse values that its range is taken from, as the network's training crops were
scaled: a single bright roof must not squeeze everything else."""
MOST_SAMPLES = 1_000_000
MARGIN = 0.1
"""By this share the range is widened at both ends: fine detail goes beyond it."""
RESIDUALS = ("itp", "lmmse", "none")
WINDOW = 384
"""Side, in fine pixels, of the windows in which the closed form is computed."""


class PairModel(LinearModelMethod):
    """PSF, shift and the guide's response of a pair (estimated or nominal); it fuses nothing."""

    defaults: ClassVar[Mapping[str, Any]] = {**LinearModelMethod.defaults, "rank": 16, "frame": "hs"}

    def fuse(self, tile: Tile) -> Tensor:
        """Refuse: this is a model of a pair, not a method.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("a pair model does not fuse")


@dataclass
class Problem:
    """A scene as the sampler sees it; everything lies on the HS image's ground.

    Attributes:
        bands: the selected bands.
        low, span: `[s]`: a selected band is `low + span * base`, base in [0, 1].
        loadings: `[S, s]`: of every band on the base, in the HS image's units.
        offset: `[S]`: X = offset + loadings base + residual.
        residual: `[S, coarse rows, coarse cols]`, to be interpolated; zeros where there is none.
        terms: both data terms.
        interpolated: `[s, rows, cols]`: the selected bands, interpolated, as base.
        closed: the closed form's result; None where nothing asked for it.
        up: interpolation, `[fine rows, coarse rows]` and `[fine cols, coarse cols]`.
        back: what moves a result onto the guide's ground; None where nothing has to move.
        facts: for the report.
        model: PSF, shift and response.
    """

    bands: list[int]
    low: Tensor
    span: Tensor
    loadings: Tensor
    offset: Tensor
    residual: Tensor
    terms: DataTerms
    interpolated: Tensor
    closed: ClosedResult | None
    up: tuple[Tensor, Tensor]
    back: tuple[Tensor, Tensor] | None
    facts: dict[str, Any]
    model: PairModel


@dataclass
class ClosedResult:
    """The closed form `lmmse` of a scene.

    Attributes:
        method: fitted; its result lies on the ground that was asked for.
        base: `[s, rows, cols]`: its selected bands as base, on the HS image's ground.
    """

    method: LMMSE
    base: Tensor


@dataclass
class _Residual:
    """R, as both sensors see it: `[S, coarse rows, coarse cols]` and rho R `[guide bands, rows, cols]`."""

    hs: Tensor
    guide: Tensor


@torch.no_grad()
def make_problem(
    scene: Scene,
    control: Control,
    rank: int = 3,
    rule: str = "pca",
    residual: str = "itp",
    register: bool = True,
    frame: str = "guide",
    srf: str | None = None,
    closed: bool = False,
) -> Problem:
    """Estimate what is unknown of a pair and set up its data terms.

    Args:
        scene: the pair.
        control: cancel and warnings.
        rank: number of base bands.
        rule: see `bands.select_bands`.
        residual: what is added to what the base explains. "itp": what it does not explain of the HS image,
            interpolated (PLRDiff); "lmmse": what it does not explain of the closed form's result; "none": nothing.
        register: estimate PSF and shift.
        frame: ground of the result, "guide" or "hs".
        srf: the guide's nominal response; None estimates it.
        closed: compute the closed form in any case.

    Raises:
        HyperSharpError: an unknown choice, or a scene too poor for this rank.
    """
    if residual not in RESIDUALS:
        raise HyperSharpError(
            f"unknown residual {residual!r}", f"use one of {', '.join(RESIDUALS)}", ErrorCode.USAGE
        )
    model = PairModel({"register": register, "srf": srf, "frame": frame})
    model.fit(scene, control)
    statistics = scene.statistics(scene.mtf_hs, control)
    covariance, mean = statistics.hs_covariance, statistics.hs_mean
    alive = int((covariance.diagonal() > 0).sum())
    if alive < rank:
        raise HyperSharpError(
            f"the prior needs {rank} bands that vary, the scene has {alive}", "use a lower rank"
        )
    bands = select_bands(covariance, rank, rule)
    ratio, (height, width) = scene.ratio, scene.shape
    tile = model.registration.apply(scene.tile((0, height), (0, width), 0))
    hs, hs_mask = tile.hs, tile.hs_mask
    chosen = hs[bands][:, hs_mask].double().cpu()
    chosen = chosen[:, :: max(1, chosen.shape[1] // MOST_SAMPLES)]
    low, high = (torch.quantile(chosen, q, dim=1) for q in MIDDLE)
    span = (high - low).clamp_min(1e-6 * high.abs().clamp_min(1e-30)) * (1 + 2 * MARGIN)
    low = low - MARGIN / (1 + 2 * MARGIN) * span
    share = band_loadings(covariance, bands)
    loadings = share * span[None, :].to(share)
    offset = mean + share @ (low.to(mean) - mean[bands])
    near = grown(hs_mask, FILL_REACH)
    base_low = (hs[bands] - low.to(hs)[:, None, None]) / span.to(hs)[:, None, None]
    base_low = torch.where(near, base_low, base_low.new_full((), 0.5))
    shape = (tile.coarse_rows[1], tile.coarse_cols[1])
    left = (hs - offset.to(hs)[:, None, None] - mix(loadings, base_low)) * near
    left = left if residual == "itp" else torch.zeros_like(left)
    up = tuple(interpolation_matrix((0, n * ratio), (0, n), ratio, n).to(hs) for n in shape)
    gain = model.registration.mtf_gain
    down = tuple(decimation_matrix((0, n), (0, n * ratio), ratio, n * ratio, gain).to(hs) for n in shape)
    model_of_image = _LowRank(bands, low, span, loadings, offset)
    if residual == "lmmse" or closed:
        result, seen = _closed_form(scene, model_of_image, model, down, control, frame)
    else:
        result, seen = None, None
    if residual != "lmmse" or seen is None:
        # The interpolated residual seen by the sensor is not the residual: what is missing is part of the data.
        seen = _Residual(
            separable(down[0] @ up[0], down[1] @ up[1], left), separable(*up, mix(model.response, left))
        )
    spread = float(
        (covariance.diagonal()[bands].clamp_min(0).sqrt() / span.to(covariance)).square().mean().sqrt()
    )
    terms = _terms(tile, model, model_of_image, seen, covariance, down, spread)
    if result is not None:
        low_guide, coverage = coarse_guide(tile, gain)
        both = hs_mask & (coverage >= FULL_COVERAGE)
        terms.known = result.base
        terms.precision = error_precision(base_low, low_guide, both, ratio, gain).to(hs)
    back = None
    if model.moves_back:
        back = tuple(shift_matrix(n * ratio, -s).to(hs) for n, s in zip(shape, model.registration.shift))
    facts = {
        "bands": bands,
        "wavelength_nm": [scene.wavelength_nm[b] for b in bands],
        "band_rule": rule,
        "unexplained_by_bands": round(unexplained(covariance, bands), 5),
        **{k: v for k, v in model.describe().items() if k != "guide_response_estimated"},
    }
    interpolated = separable(*up, base_low)
    return Problem(
        bands, low, span, loadings, offset, left, terms, interpolated, result, up, back, facts, model
    )


@dataclass
class _LowRank:
    """X = offset + loadings base (+ R); attributes as in `Problem`."""

    bands: list[int]
    low: Tensor
    span: Tensor
    loadings: Tensor
    offset: Tensor

    def as_base(self, image: Tensor) -> Tensor:
        chosen = image[self.bands]
        return (chosen - self.low.to(chosen)[:, None, None]) / self.span.to(chosen)[:, None, None]


def _closed_form(
    scene: Scene,
    low_rank: _LowRank,
    model: PairModel,
    down: tuple[Tensor, ...],
    control: Control,
    frame: str,
) -> tuple[ClosedResult, _Residual]:
    """Fit and run the closed form, window by window; return its base, and its residual as the sensors see it."""
    method = LMMSE({"frame": frame, "register": bool(model.parameters["register"])})
    method.fit(scene, control)
    still = copy.copy(method)
    still.moves_back = False
    height, width = scene.shape
    base = torch.zeros(len(low_rank.bands), height, width, device=scene.device)
    hs = torch.zeros(scene.hs.bands, *scene.coarse_shape, device=scene.device)
    guide = torch.zeros(scene.guide.bands, height, width, device=scene.device)
    for rows, cols in tile_windows((0, height), (0, width), WINDOW):
        control.check()
        image = still.fuse(scene.tile(rows, cols, still.halo))
        own = slice(*rows), slice(*cols)
        part = low_rank.as_base(image)
        base[(slice(None), *own)] = part
        image -= mix(low_rank.loadings, part)
        image -= low_rank.offset.to(image)[:, None, None]
        guide[(slice(None), *own)] = mix(model.response, image)
        # The degradation is linear: every window adds what it contributes to the coarse pixels.
        hs += separable(down[0][:, own[0]], down[1][:, own[1]], image)
    return ClosedResult(method, base), _Residual(hs, guide)


def _terms(
    tile: Tile,
    model: PairModel,
    low_rank: _LowRank,
    seen: _Residual,
    covariance: Tensor,
    down: tuple[Tensor, ...],
    spread: float,
) -> DataTerms:
    """Set up the data terms from the tile in register and the low-rank model of the image."""
    loadings, offset, hs = low_rank.loadings, low_rank.offset, tile.hs
    deviation = covariance.diagonal().clamp_min(0).sqrt()
    weight = torch.where(deviation > 0, 1.0 / deviation.clamp_min(1e-300), 0.0)
    q, mixing = torch.linalg.qr(weight[:, None] * loadings)
    missing = (hs - offset.to(hs)[:, None, None] - seen.hs) * tile.hs_mask
    target = mix(q.T * weight[None, :], missing)
    whole = float((missing.double().square().sum(dim=(1, 2)) * weight.to(hs.device).square()).sum())
    rest = max(0.0, whole - float(target.double().square().sum()))
    guide_mask = tile.guide_mask
    scale = tile.guide[:, guide_mask].double().std(dim=1).clamp_min(1e-30).cpu()
    response = model.response / scale[:, None]
    constant = (model.guide_mean + model.guide_offset) / scale + response @ (offset - model.subspace.mean)
    guide = (tile.guide - seen.guide) / scale.to(hs)[:, None, None] - constant.to(hs)[:, None, None]
    return DataTerms(
        (down[0], down[1]),
        target,
        mixing.to(hs),
        rest,
        tile.hs_mask.to(hs),
        float(tile.hs_mask.sum()) * int((deviation > 0).sum()),
        torch.where(guide_mask, guide, guide.new_zeros(())),
        (response @ loadings).to(hs),
        guide_mask.to(hs),
        spread,
        (
            float((model.subspace.noise * weight).median()),
            float((1.0 - model.explained).clamp_min(0).mean().sqrt()),
        ),
    )
