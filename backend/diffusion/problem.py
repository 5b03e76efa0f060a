# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scene to what the sampler works on: base bands, loadings, residual, and the data terms in register."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import decimation_matrix, interpolation_matrix, separable
from ..errors import ErrorCode, HyperSharpError
from ..methods.linear_model import LinearModelMethod
from ..methods.registration import shift_matrix
from ..methods.subspace import grown
from ..scene import FILL_REACH, Scene, Tile
from .bands import band_loadings, select_bands, unexplained
from .terms import DataTerms, mix

MARGIN = 0.2
"""By this share of its coarse range a base band's range is widened at both ends: fine detail goes beyond it."""
RESIDUALS = ("itp", "none")


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
        start: `[s, rows, cols]`: the selected bands, interpolated, as base.
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
    start: Tensor
    up: tuple[Tensor, Tensor]
    back: tuple[Tensor, Tensor] | None
    facts: dict[str, Any]
    model: PairModel

    def as_base(self, image: Tensor) -> Tensor:
        """Return the base of an image's selected bands, `[S, rows, cols]` to `[s, rows, cols]`."""
        chosen = image[self.bands]
        return (chosen - self.low.to(chosen)[:, None, None]) / self.span.to(chosen)[:, None, None]


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
) -> Problem:
    """Estimate what is unknown of a pair and set up its data terms.

    Args:
        scene: the pair.
        control: cancel and warnings.
        rank: number of base bands.
        rule: see `bands.select_bands`.
        residual: "itp": what the base does not explain of the HS image is interpolated; "none": left out.
        register: estimate PSF and shift.
        frame: ground of the result, "guide" or "hs".
        srf: the guide's nominal response; None estimates it.

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
    chosen = hs[bands][:, hs_mask]
    low, high = chosen.amin(dim=1).double(), chosen.amax(dim=1).double()
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
    spread = float(
        (covariance.diagonal()[bands].clamp_min(0).sqrt() / span.to(covariance)).square().mean().sqrt()
    )
    terms = _terms(tile, model, (loadings, offset, left, down, up), covariance, spread)
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
    start = separable(*up, base_low)
    return Problem(bands, low, span, loadings, offset, left, terms, start, up, back, facts, model)


def _terms(
    tile: Tile,
    model: PairModel,
    image: tuple[Tensor, Tensor, Tensor, tuple[Tensor, ...], tuple[Tensor, ...]],
    covariance: Tensor,
    spread: float,
) -> DataTerms:
    """Set up the data terms from the tile in register and the low-rank model of the image."""
    loadings, offset, left, down, up = image
    hs = tile.hs
    deviation = covariance.diagonal().sqrt()
    weight = torch.where(deviation > 0, 1.0 / deviation.clamp_min(1e-300), 0.0)
    q, mixing = torch.linalg.qr(weight[:, None] * loadings)
    projector = q.T * weight[None, :]
    # The interpolated residual seen by the sensor is not the residual: what is missing is part of the data.
    seen = separable(down[0] @ up[0], down[1] @ up[1], left)
    missing = (hs - offset.to(hs)[:, None, None] - seen) * tile.hs_mask
    target = mix(projector, missing)
    whole = float((missing.double().square().sum(dim=(1, 2)) * weight.square()).sum())
    rest = max(0.0, whole - float(target.double().square().sum()))
    guide_mask = tile.guide_mask
    scale = tile.guide[:, guide_mask].double().std(dim=1).clamp_min(1e-30)
    response = model.response / scale[:, None].to(model.response)
    constant = (model.guide_mean + model.guide_offset) / scale.to(model.guide_mean)
    constant = constant + response @ (offset - model.subspace.mean)
    rest_seen = separable(*up, mix(response, left))
    guide = tile.guide / scale.to(hs)[:, None, None] - constant.to(hs)[:, None, None] - rest_seen
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
    )
