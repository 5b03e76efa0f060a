# SPDX-License-Identifier: GPL-2.0-or-later
"""What holds for the whole scene, whatever part of it is drawn: PSF, shift, response, base bands, loadings, scales."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Optional

import torch
from torch import Tensor

from ..control import Control
from ..degradation import INTERPOLATION_REACH, Range, separable
from ..errors import ErrorCode, HyperSharpError
from ..methods.linear_model import LinearModel
from ..methods.lmmse import LMMSE
from ..methods.registration import TAPS, Registration
from ..methods.subspace import coarse_guide, grown
from ..scene import COARSE_TILE, FILL_REACH, FULL_COVERAGE, MomentAccumulator, Scene, Tile, tile_windows
from .anchor import ErrorStatistics
from .bands import band_loadings, select_bands, unexplained
from .terms import mix

MIDDLE = (0.005, 0.995)
"""Quantiles of a base band's coarse values that its range is taken from, as the network's training crops were
scaled: a single bright roof must not squeeze everything else."""
MOST_SAMPLES = 1_000_000
"""Coarse pixels that the range and the closed form's error are taken from, of a scene in one window."""
WINDOWED_SAMPLES = 200_000
"""The same of a scene in many windows."""
MARGIN = 0.1
"""By this share the range is widened at both ends: fine detail goes beyond it."""
RESIDUALS = ("itp", "lmmse", "none")


class PairModel(LinearModel):
    """PSF, shift and the guide's response of a pair, estimated or nominal, on the HS image's ground by default."""

    defaults: ClassVar[Mapping[str, Any]] = {**LinearModel.defaults, "rank": 16, "frame": "hs"}


@dataclass
class LowRank:
    """X = offset + loadings base (+ R); attributes as in `SceneModel`."""

    bands: list[int]
    low: Tensor
    span: Tensor
    loadings: Tensor
    offset: Tensor

    def as_base(self, image: Tensor) -> Tensor:
        """Return the base `[s, rows, cols]` of an image `[S, rows, cols]` in the HS image's units."""
        chosen = image[self.bands]
        return (chosen - self.low.to(chosen)[:, None, None]) / self.span.to(chosen)[:, None, None]


class SceneReader:
    """Reads windows of a scene in register; the last one is kept."""

    def __init__(self, scene: Scene, registration: Registration) -> None:
        self._scene, self._registration = scene, registration
        self._known: tuple[Range, Range] | None = None
        self._tile: Tile | None = None

    def __call__(self, rows: Range, cols: Range) -> Tile:
        """Return the tile of coarse pixels, with the context that interpolation and filling look at."""
        if self._tile is None or self._known != (rows, cols):
            self._tile = None  # the one before goes first
            ratio = self._scene.ratio
            fine = [(a * ratio, b * ratio) for a, b in (rows, cols)]
            halo = INTERPOLATION_REACH + self._registration.margin
            self._tile = self._registration.apply(self._scene.tile(*fine, halo))
            self._known = rows, cols
        return self._tile

    def forget(self) -> None:
        """Let the last window go."""
        self._tile = None


@dataclass
class SceneModel:
    """A scene's model, in which every block of it is drawn; all of it lies on the HS image's ground.

    Attributes:
        low_rank: the image on its base bands: a selected band is `low + span * base`, base in [0, 1].
        residual: what is added to what the base explains; see `learn_scene`.
        pair: PSF, shift and response.
        closed: the closed form, its result on the ground that was asked for; None where nothing asked for it.
        precision: `[s, s]`: inverse covariance of the closed form's error; None without one.
        covariance: `[S, S]` of the HS image.
        guide_scale: `[guide bands]`: standard deviations of the guide.
        spread: a base band's standard deviation on the coarse grid, root mean square.
        read: windows in register.
        facts: for the report.
    """

    low_rank: LowRank
    residual: str
    pair: PairModel
    closed: Optional[LMMSE]
    precision: Optional[Tensor]
    covariance: Tensor
    guide_scale: Tensor
    spread: float
    read: SceneReader
    facts: dict[str, Any]

    @property
    def guard(self) -> int:
        """Coarse pixels at a block's border that lack the HS data of its fine pixels, or what lies beyond a shift."""
        registration = self.pair.registration
        moved = _shift_reach(registration) if self.pair.moves_back else 0
        return registration.psf_pixels + -(-moved // registration.ratio)


@torch.no_grad()
def learn_scene(
    scene: Scene,
    control: Control,
    rank: int = 3,
    rule: str = "pca",
    residual: str = "itp",
    register: bool = True,
    frame: str = "guide",
    srf: str | None = None,
    closed: bool = False,
    windowed: bool = False,
) -> SceneModel:
    """Look at the whole scene once.

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
        closed: fit the closed form in any case.
        windowed: look at it window by window, so that memory does not grow with the scene; the numbers then are of
            samples of it.

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
    windows = _Windows(scene, model.registration, control, windowed)
    (low, span), guide_scale = windows.ranges(bands)
    share = band_loadings(covariance, bands)
    loadings = share * span[None, :].to(share)
    offset = mean + share @ (low.to(mean) - mean[bands])
    low_rank = LowRank(bands, low, span, loadings, offset)
    method, precision = None, None
    if residual == "lmmse" or closed:
        method = LMMSE({"frame": frame, "register": bool(model.parameters["register"])})
        method.fit(scene, control)
        precision = windows.error_precision(low_rank)
    spread = covariance.diagonal()[bands].clamp_min(0).sqrt() / span.to(covariance)
    facts = {
        "bands": bands,
        "wavelength_nm": [scene.wavelength_nm[b] for b in bands],
        "band_rule": rule,
        "unexplained_by_bands": round(unexplained(covariance, bands), 5),
        **{k: v for k, v in model.describe().items() if k != "guide_response_estimated"},
    }
    return SceneModel(
        low_rank,
        residual,
        model,
        method,
        precision,
        covariance,
        guide_scale,
        float(spread.square().mean().sqrt()),
        windows.read,
        facts,
    )


class _Windows:
    """The numbers that are taken from the coarse scene, in one window or in many."""

    def __init__(self, scene: Scene, registration: Registration, control: Control, windowed: bool) -> None:
        self.scene, self._gain, self._control = scene, registration.mtf_gain, control
        self.read = SceneReader(scene, registration)
        rows, cols = scene.coarse_shape
        # Whole multiples of the ratio: the closed form's error is looked at one scale down.
        side = -(-max(COARSE_TILE, 8 * scene.ratio) // scene.ratio) * scene.ratio
        self._windowed, self._side = windowed, side if windowed else max(rows, cols)
        # Odd, so that the samples do not always fall into the same columns.
        self._every = max(1, rows * cols // WINDOWED_SAMPLES) | 1 if windowed else 1

    def _tiles(self) -> Iterator[tuple[Tile, Part, Part]]:
        """Iterate over the tiles, and which of their coarse and which of their fine pixels are the window's own."""
        rows, cols = self.scene.coarse_shape
        for window in tile_windows((0, rows), (0, cols), self._side):
            self._control.check()
            tile = self.read(*window)
            yield tile, coarse_part(tile, *window), fine_part(tile, *window)

    def ranges(self, bands: list[int]) -> tuple[tuple[Tensor, Tensor], Tensor]:
        """Return least value and range of the selected bands, both `[s]`, and the guide's deviations."""
        values, moments, deviation = [], MomentAccumulator(), None
        for tile, coarse, fine in self._tiles():
            own = tile.hs_mask[coarse]
            seen = tile.hs[bands][(slice(None), *coarse)]
            values.append(seen[:, own].double().cpu()[:, :: self._every])
            guide = tile.guide[(slice(None), *fine)][:, tile.guide_mask[fine]]
            if self._windowed:
                moments.update(guide)
            else:
                deviation = guide.double().std(dim=1).clamp_min(1e-30).cpu()
        if deviation is None:
            deviation = moments.compute()[1].diagonal().clamp_min(1e-60).sqrt()
        chosen = torch.cat(values, dim=1)
        chosen = chosen[:, :: max(1, chosen.shape[1] // MOST_SAMPLES)]
        low, high = (torch.quantile(chosen, q, dim=1) for q in MIDDLE)
        span = (high - low).clamp_min(1e-6 * high.abs().clamp_min(1e-30)) * (1 + 2 * MARGIN)
        return (low - MARGIN / (1 + 2 * MARGIN) * span, span), deviation

    def error_precision(self, low_rank: LowRank) -> Tensor:
        """Return the inverse covariance of the closed form's error, `[s, s]`."""
        errors = ErrorStatistics(self.scene.ratio, self._gain, self._every)
        for tile, coarse, _ in self._tiles():
            guide, coverage = coarse_guide(tile, self._gain)
            both = (tile.hs_mask & (coverage >= FULL_COVERAGE))[coarse]
            base = coarse_base(tile, low_rank)[0]
            errors.add(base[(slice(None), *coarse)], guide[(slice(None), *coarse)], both)
        return errors.precision()


Part = tuple[slice, slice]
"""Rows and columns of an image."""


def coarse_part(tile: Tile, rows: Range, cols: Range) -> Part:
    """Return where coarse pixels of the scene lie in a tile's `hs`."""
    return _part(tile.coarse_rows, tile.coarse_cols, rows, cols, 1)


def fine_part(tile: Tile, rows: Range, cols: Range) -> Part:
    """Return where the fine pixels of coarse ones lie in a tile's `guide`."""
    return _part(tile.fine_rows, tile.fine_cols, rows, cols, tile.ratio)


def _part(all_rows: Range, all_cols: Range, rows: Range, cols: Range, ratio: int) -> Part:
    first, second = (
        slice(own[0] * ratio - whole[0], own[1] * ratio - whole[0])
        for whole, own in ((all_rows, rows), (all_cols, cols))
    )
    return first, second


def coarse_base(tile: Tile, low_rank: LowRank) -> tuple[Tensor, Tensor]:
    """Return the HS image's own base `[s, rows, cols]` on a tile's coarse pixels, and where it is known.

    Far from any valid pixel it is 0.5, the middle of the range.
    """
    near = grown(tile.hs_mask, FILL_REACH)
    base = low_rank.as_base(tile.hs)
    return torch.where(near, base, base.new_full((), 0.5)), near


def first_estimate(scene: Scene, model: SceneModel) -> Optional[Callable[[Range, Range], Tensor]]:
    """Return what gives the image that a base is put into, `[S, rows, cols]` on fine pixels of the scene.

    X = offset + E A + R, with R what E does not explain of an image, is that image with A in place of its own base.
    It is the closed form's result, or the HS image interpolated; None where nothing is added to E A.
    """
    if model.residual == "none":
        return None
    if model.residual == "lmmse" and model.closed is not None:
        method = model.closed
        return lambda rows, cols: method.fuse(scene.tile(rows, cols, method.halo))
    low_rank, registration = model.low_rank, model.pair.registration
    reach = _shift_reach(registration) if model.pair.moves_back else 0

    def interpolated(rows: Range, cols: Range) -> Tensor:
        wide = [(max(0, a - reach), min(n, b + reach)) for (a, b), n in zip((rows, cols), scene.shape)]
        tile = scene.tile(*wide)
        base, near = coarse_base(tile, low_rank)
        flat = low_rank.offset.to(tile.hs)[:, None, None] + mix(low_rank.loadings, base)
        image = tile.upsample(torch.where(near, tile.hs, flat))
        if not reach:
            return image
        own = [slice(a - w[0], b - w[0]) for (a, b), w in zip((rows, cols), wide)]
        return separable(*registration.back((wide[0], wide[1]), (own[0], own[1])), image)

    return interpolated


def _shift_reach(registration: Registration) -> int:
    """Return how many fine pixels away moving a result onto the guide's ground looks."""
    return math.ceil(max(abs(s) for s in registration.shift)) + TAPS
