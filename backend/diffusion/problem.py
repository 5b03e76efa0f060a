# SPDX-License-Identifier: GPL-2.0-or-later
"""From a scene, or a block of it, to what the sampler works on: the data terms in register, and what is known."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..control import Control
from ..degradation import Range, decimation_matrix, interpolation_matrix, separable
from ..methods.blocks import shrunk
from ..methods.registration import shift_matrix
from ..scene import Scene, Tile, tile_windows
from .scene_model import (
    LowRank,
    PairModel,
    Part,
    SceneModel,
    coarse_base,
    coarse_part,
    fine_part,
    learn_scene,
)
from .terms import DataTerms, mix

WINDOW = 384
"""Side, in fine pixels, of the windows in which the closed form is computed."""


@dataclass
class Problem:
    """A block of a scene (or all of it) as the sampler sees it; everything lies on the HS image's ground.

    Attributes:
        scene_model: of the whole scene.
        rows, cols: coarse pixels of the scene that it covers.
        terms: both data terms.
        interpolated: `[s, rows, cols]`: the selected bands, interpolated, as base.
        closed: `[s, rows, cols]`: the closed form's selected bands as base; None where nothing asked for it.
        back: what moves a result onto the guide's ground; None where nothing has to move.
    """

    scene_model: SceneModel
    rows: Range
    cols: Range
    terms: DataTerms
    interpolated: Tensor
    closed: Tensor | None
    back: tuple[Tensor, Tensor] | None

    @property
    def low_rank(self) -> LowRank:
        """The image on its base bands."""
        return self.scene_model.low_rank

    @property
    def model(self) -> PairModel:
        """PSF, shift and response."""
        return self.scene_model.pair

    @property
    def facts(self) -> dict[str, Any]:
        """For the report."""
        return self.scene_model.facts


@dataclass
class _Residual:
    """R, as both sensors see it: `[S, coarse rows, coarse cols]` and rho R `[guide bands, rows, cols]`."""

    hs: Tensor
    guide: Tensor


@dataclass
class _Place:
    """Where a block lies.

    Attributes:
        rows, cols: its coarse pixels.
        inner: those, in scene coordinates, whose PSF its fine pixels hold in full.
        coarse: `inner` in the tile's `hs`.
        fine: its fine pixels in the tile's `guide`.
        down: from its fine pixels to `inner`.
        up: from the tile's coarse pixels to its fine ones.
    """

    rows: Range
    cols: Range
    inner: tuple[Range, Range]
    coarse: Part
    fine: Part
    down: tuple[Tensor, Tensor]
    up: tuple[Tensor, Tensor]


def make_problem(scene: Scene, control: Control, *settings: Any, **named: Any) -> Problem:
    """Learn a scene and return it as one problem; the settings are those of `scene_model.learn_scene`.

    Raises:
        HyperSharpError: an unknown choice, or a scene too poor for this rank.
    """
    rows, cols = scene.coarse_shape
    return block_problem(
        scene, learn_scene(scene, control, *settings, **named), (0, rows), (0, cols), control
    )


@torch.no_grad()
def block_problem(scene: Scene, model: SceneModel, rows: Range, cols: Range, control: Control) -> Problem:
    """Set up the data terms of a block.

    Its coarse pixels at a border within the scene, whose PSF looks beyond the block, are no part of the HS term.

    Args:
        scene: the pair.
        model: of the scene.
        rows, cols: coarse pixels of the scene.
        control: cancel.
    """
    tile, low_rank = model.read(rows, cols), model.low_rank
    place = _place(scene, model, tile, rows, cols)
    base_low, near = coarse_base(tile, low_rank)
    interpolated = separable(*place.up, base_low)
    closed = None
    if model.closed is not None:
        closed, seen = _closed_form(scene, model, place, control)
    if model.closed is None or model.residual != "lmmse":
        seen = _interpolated_residual(tile, model, place, base_low, near)
    terms = _terms(tile, model, place, seen)
    model.read.forget()
    if closed is not None and model.precision is not None:
        terms.known, terms.precision = closed, model.precision.to(closed)
    back = None
    if model.pair.moves_back:
        shift = model.pair.registration.shift
        first, second = (
            shift_matrix((b - a) * scene.ratio, -s).to(tile.hs) for (a, b), s in zip((rows, cols), shift)
        )
        back = first, second
    return Problem(model, rows, cols, terms, interpolated, closed, back)


def _place(scene: Scene, model: SceneModel, tile: Tile, rows: Range, cols: Range) -> _Place:
    registration, ratio = model.pair.registration, scene.ratio
    inner, down, up = [], [], []
    for area, context, size in zip((rows, cols), (tile.coarse_rows, tile.coarse_cols), scene.coarse_shape):
        fine = area[0] * ratio, area[1] * ratio
        own = shrunk(area, registration.psf_pixels, size)
        inner.append(own)
        down.append(decimation_matrix(own, fine, ratio, size * ratio, registration.mtf_gain).to(tile.hs))
        up.append(interpolation_matrix(fine, context, ratio, size).to(tile.hs))
    return _Place(
        rows,
        cols,
        (inner[0], inner[1]),
        coarse_part(tile, inner[0], inner[1]),
        fine_part(tile, rows, cols),
        (down[0], down[1]),
        (up[0], up[1]),
    )


def _interpolated_residual(
    tile: Tile, model: SceneModel, place: _Place, base_low: Tensor, near: Tensor
) -> _Residual:
    """Return what the base does not explain of the HS image, interpolated ("itp"), or nothing."""
    low_rank, (first, second), up = model.low_rank, place.down, place.up
    if model.residual == "itp":
        left = tile.hs - low_rank.offset.to(tile.hs)[:, None, None] - mix(low_rank.loadings, base_low)
        left = left * near
    else:
        left = torch.zeros_like(tile.hs)
    # The interpolated residual seen by the sensor is not the residual: what is missing is part of the data.
    return _Residual(
        separable(first @ up[0], second @ up[1], left), separable(*up, mix(model.pair.response, left))
    )


def _closed_form(
    scene: Scene, model: SceneModel, place: _Place, control: Control
) -> tuple[Tensor, _Residual]:
    """Run the closed form, window by window; return its base, and its residual as the sensors see it."""
    low_rank, ratio, down = model.low_rank, scene.ratio, place.down
    still = copy.copy(model.closed)
    still.moves_back = False
    (top, bottom), (left, right) = ((a * ratio, b * ratio) for a, b in (place.rows, place.cols))
    size = bottom - top, right - left
    base = torch.zeros(len(low_rank.bands), *size, device=scene.device)
    hs = torch.zeros(scene.hs.bands, len(down[0]), len(down[1]), device=scene.device)
    guide = torch.zeros(scene.guide.bands, *size, device=scene.device)
    for rows, cols in tile_windows((top, bottom), (left, right), WINDOW):
        control.check()
        image = still.fuse(scene.tile(rows, cols, still.halo))
        own = slice(rows[0] - top, rows[1] - top), slice(cols[0] - left, cols[1] - left)
        part = low_rank.as_base(image)
        base[(slice(None), *own)] = part
        image -= mix(low_rank.loadings, part)
        image -= low_rank.offset.to(image)[:, None, None]
        guide[(slice(None), *own)] = mix(model.pair.response, image)
        # The degradation is linear: every window adds what it contributes to the coarse pixels.
        hs += separable(down[0][:, own[0]], down[1][:, own[1]], image)
    return base, _Residual(hs, guide)


def _terms(tile: Tile, model: SceneModel, place: _Place, seen: _Residual) -> DataTerms:
    """Set up the data terms from the tile in register and the low-rank model of the image."""
    pair, loadings, offset = model.pair, model.low_rank.loadings, model.low_rank.offset
    hs, hs_mask = tile.hs[(slice(None), *place.coarse)], tile.hs_mask[place.coarse]
    deviation = model.covariance.diagonal().clamp_min(0).sqrt()
    weight = torch.where(deviation > 0, 1.0 / deviation.clamp_min(1e-300), 0.0)
    q, mixing = torch.linalg.qr(weight[:, None] * loadings)
    missing = (hs - offset.to(hs)[:, None, None] - seen.hs) * hs_mask
    target = mix(q.T * weight[None, :], missing)
    whole = float((missing.double().square().sum(dim=(1, 2)) * weight.to(hs.device).square()).sum())
    rest = max(0.0, whole - float(target.double().square().sum()))
    guide, guide_mask = tile.guide[(slice(None), *place.fine)], tile.guide_mask[place.fine]
    scale = model.guide_scale
    response = pair.response / scale[:, None]
    constant = (pair.guide_mean + pair.guide_offset) / scale + response @ (offset - pair.subspace.mean)
    guide = (guide - seen.guide) / scale.to(hs)[:, None, None] - constant.to(hs)[:, None, None]
    return DataTerms(
        place.down,
        target,
        mixing.to(hs),
        rest,
        hs_mask.to(hs),
        float(hs_mask.sum()) * int((deviation > 0).sum()),
        torch.where(guide_mask, guide, guide.new_zeros(())),
        (response @ loadings).to(hs),
        guide_mask.to(hs),
        model.spread,
        (
            float((pair.subspace.noise * weight).median()),
            float((1.0 - pair.explained).clamp_min(0).mean().sqrt()),
        ),
    )
