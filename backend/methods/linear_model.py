# SPDX-License-Identifier: GPL-2.0-or-later
"""What the model-based methods share: both images as linear, noisy views of one fine image in the subspace.

    z = D x + noise of variance `hs_noise`          (the HS image's coefficients)
    g - mean = A x + noise of variance `guide_noise` (the guide)

D is the HS sensor's degradation, A the guide's spectral response in the subspace.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..control import Control
from ..degradation import gaussian_sigma, separable
from ..errors import ErrorCode, HyperSharpError
from ..nominal_response import nominal_srf, scaled_to_guide
from ..response_estimation import ResponseEstimate, estimate_response, estimate_srf
from ..scene import FILL_REACH, MomentAccumulator, Scene, SceneStatistics, Tile
from .base import Configured, FusionMethod
from .blocks import Side
from .injection import summary
from .registration import Registration
from .subspace import (
    CoarsePair,
    CoarseWindow,
    Subspace,
    apply,
    coarse_pair,
    coarse_windows,
    detail_context,
    fit_subspace,
    grown,
    one_scale_down,
)

CLEARLY_BETTER = 0.05
"""Share of what the nominal PSF leaves unexplained that an estimated one must explain to be used."""
LEAST_GAIN = 1e-4
"""The same as a share of the guide's variance."""
FRAMES = ("hs", "guide")
DOUBT = 0.02
"""Unexplained share of the guide at which the estimated PSF counts as much as the nominal one."""
WORTH_SAYING = 0.1
"""Shift in fine pixels from which on a person is told."""
NOISE_FLOOR = 1e-6
"""Least noise variance relative to the signal's, so that noise-free pairs stay solvable in single precision."""
ROUNDING = 1e-5
"""Deviation of a guide, relative to its mean, below which it is single-precision rounding and no detail."""
DETAIL_FLOOR = 1e-4
"""Least detail variance relative to a component's own variance."""
BLOCK_MARGIN = 6
"""Coarse pixels around a block that are solved with it: an error at its border has died out within them."""


def find_registration(
    scene: Scene, subspace: Subspace, wanted: bool, control: Control
) -> tuple[Registration, ResponseEstimate | None]:
    """Find the PSF's gain and the shift; take them where they explain the pair clearly better than the nominal.

    Returns:
        What to use, and the estimate (None when not wanted or when the scene is too small).
    """
    nominal = Registration(scene.ratio, scene.mtf_hs, (0.0, 0.0), scene.mtf_hs)
    found = estimate_response(scene, subspace, control) if wanted else None
    if found is None:
        return nominal, None
    gained = found.nominal_unexplained - found.unexplained
    if gained < max(CLEARLY_BETTER * found.nominal_unexplained, LEAST_GAIN):
        return nominal, found
    if max(abs(s) for s in found.shift) > WORTH_SAYING:
        control.warn(
            f"the guide lies {found.shift[0]:.2f} pixels (rows) and {found.shift[1]:.2f} pixels (columns) off "
            "the HS image: they are brought into register (option frame: the result lies on the guide's ground, or "
            "with frame=hs on the HS image's)"
        )
    # What the HS image does not explain of the guide (parallax, seasons, moving things) looks like blur: the less
    # is explained, the more the nominal PSF counts.
    trust = 1.0 / (1.0 + found.unexplained / DOUBT)
    width = (
        trust * gaussian_sigma(1, found.mtf_gain) ** 2 + (1 - trust) * gaussian_sigma(1, scene.mtf_hs) ** 2
    )
    gain = math.exp(-0.5 * math.pi**2 * width)
    return Registration(scene.ratio, gain, found.shift, scene.mtf_hs), found


def check_frame(parameters: Mapping[str, Any]) -> None:
    """Refuse a frame that is none.

    Raises:
        HyperSharpError: with the choices.
    """
    if parameters["frame"] not in FRAMES:
        raise HyperSharpError(
            f"unknown frame {parameters['frame']!r}", f"use one of {', '.join(FRAMES)}", ErrorCode.USAGE
        )


def moves_back(parameters: Mapping[str, Any], registration: Registration) -> bool:
    """Return whether the result is to be moved onto the guide's ground."""
    return parameters["frame"] == "guide" and not registration.still


def describe_registration(used: Registration, found: ResponseEstimate | None) -> dict[str, Any]:
    """Return the PSF and the shift, nominal and used, for the report."""
    return {
        "mtf_gain": {"nominal": used.nominal_gain, "used": round(used.mtf_gain, 3)},
        "guide_shift_pixels": [round(s, 2) for s in used.shift],
        "mtf_gain_estimated": None if found is None else round(found.mtf_gain, 3),
        "guide_unexplained": None if found is None else round(found.unexplained, 5),
    }


def describe_subspace(subspace: Subspace) -> dict[str, Any]:
    """Return the subspace's size and the noise found, for the report."""
    relative = subspace.noise / subspace.mean.abs().clamp_min(1e-300)
    return {"rank": subspace.rank, "median_relative_noise": round(float(relative.median()), 5)}


class LinearModel(Configured):
    """The linear model above of a pair, as it is learned from the whole scene.

    Options:
        rank: most components of the subspace.
        register: estimate the PSF's gain and the shift between the images (see `find_registration`).
        frame: "hs" or "guide": on whose ground the result lies where the two are shifted against each other.
        srf: the guide's nominal spectral response (a sensor's id, or FILE.csv[:COLUMN,...]); None estimates it.
    """

    defaults: ClassVar[Mapping[str, Any]] = {"rank": 12, "register": True, "frame": "guide", "srf": None}

    def __init__(self, parameters: Mapping[str, Any] | None = None) -> None:
        super().__init__(parameters)
        check_frame(self.parameters)

    def fit(self, scene: Scene, control: Control) -> None:
        """Learn subspace, PSF, shift, the guide's response, noise and the covariance of the detail."""
        statistics = scene.statistics(scene.mtf_hs, control)
        source = self.parameters["srf"]
        self.nominal = (
            nominal_srf(str(source), scene.wavelength_nm, scene.guide.bands) if source is not None else None
        )
        self.guide_mean = statistics.guide_mean
        self.subspace = fit_subspace(statistics, int(self.parameters["rank"]))
        self.registration, self.estimate = find_registration(
            scene, self.subspace, bool(self.parameters["register"]), control
        )
        self.halo = BLOCK_MARGIN + self.registration.psf_pixels + self.registration.margin
        self.moves_back = moves_back(self.parameters, self.registration)
        self.halo += self.registration.margin if self.moves_back else 0
        joint, detail = MomentAccumulator(), MomentAccumulator()
        context = detail_context(scene.ratio)
        for window in coarse_windows(
            scene, self.subspace, self.guide_mean, context, control, self.registration
        ):
            keep = window.own(window.pair.mask)
            both = torch.cat([window.pair.coefficients, window.pair.guide])
            joint.update(window.own(both)[:, keep])
            gain = self.registration.mtf_gain
            detail.update(one_scale_down(window, window.pair.coefficients, scene, gain)[:, keep])
            self.observe(window)
        self._learn(statistics, *joint.compute(), detail.compute()[1])

    def observe(self, window: CoarseWindow) -> None:
        """Look at a window of the first pass; for subclasses that need more than moments."""

    def _learn(self, statistics: SceneStatistics, mean: Tensor, joint: Tensor, detail: Tensor) -> None:
        rank = self.subspace.rank
        variance = joint.diagonal()[:rank]
        self.joint, self.joint_mean = joint, mean
        self.hs_noise = torch.maximum(self.subspace.component_noise, NOISE_FLOOR * variance)
        # The guide's response is fitted to the images in register, seen through the subspace.
        covariance = statistics.covariance.clone()
        bands = statistics.bands
        cross = self.subspace.decode @ joint[:rank, rank:]
        covariance[:bands, bands:], covariance[bands:, :bands] = cross, cross.T
        covariance[bands:, bands:] = joint[rank:, rank:]
        self.estimated, _ = estimate_srf(replace(statistics, covariance=covariance))
        self.response = (
            self.estimated
            if self.nominal is None
            else scaled_to_guide(self.nominal, covariance[:bands, :bands], cross)
        )
        self.mixing = self.response @ self.subspace.decode
        through = self.mixing @ joint[:rank, rank:]
        left = joint[rank:, rank:] - through - through.T + self.mixing @ joint[:rank, :rank] @ self.mixing.T
        self.guide_offset = mean[rank:] - self.mixing @ mean[:rank]
        guide_variance = joint.diagonal()[rank:]
        rounding = (ROUNDING * self.guide_mean) ** 2 + 1e-30
        self.guide_noise = torch.maximum(left.diagonal(), NOISE_FLOOR * guide_variance + rounding)
        explained = 1.0 - left.diagonal() / guide_variance.clamp_min(1e-300)
        self.explained = torch.where(guide_variance > rounding, explained.clamp(0, 1), 0.0)
        self.detail = positive_definite(
            detail - torch.diag(0.95 * self.subspace.component_noise), DETAIL_FLOOR * variance
        )

    def describe(self) -> dict[str, Any]:
        """Return the subspace, how much of the guide its response explains, the response, PSF and shift."""
        weights = self.estimated / self.estimated.sum(dim=1, keepdim=True).clamp_min(1e-300)
        nominal = None if self.nominal is None else [summary(row) for row in self.nominal]
        return {
            **describe_subspace(self.subspace),
            "guide_explained": summary(self.explained),
            "guide_response_estimated": [summary(row) for row in weights],
            "guide_response_nominal": nominal,
            **describe_registration(self.registration, self.estimate),
        }


class LinearModelMethod(LinearModel, FusionMethod):
    """A method on the linear model; subclasses say how to solve a block."""

    def block(self, tile: Tile) -> Block:
        """Return the tile in register, as a block of the linear model."""
        return Block(self.registration.apply(tile), self)

    def assemble(self, block: Block, coefficients: Tensor) -> Tensor:
        """Return the fused tile of fine coefficients `[rank, rows, cols]`: what lies outside is interpolated."""
        tile, rows, cols = block.tile, block.rows, block.cols
        centred = self.subspace.centred(tile.hs) * grown(tile.hs_mask, FILL_REACH)
        outside = apply(self.subspace.residual, centred) + self.subspace.mean.to(centred)[:, None, None]
        if self.moves_back:
            back = self.registration.back((rows.fine, cols.fine), (rows.own, cols.own))
            fused = separable(back[0] @ rows.up, back[1] @ cols.up, outside)
            own = separable(*back, coefficients)
        else:
            fused, own = tile.upsample(outside), coefficients[:, rows.own, cols.own]
        flat = fused.view(len(fused), -1)
        flat.addmm_(self.subspace.decode.to(flat), own.reshape(len(own), -1))
        return fused


class Block:
    """A tile of a linear model method.

    Attributes:
        tile: in register.
        rows, cols: the operators of both axes.
        pair: both images on the tile's coarse pixels.
        start: the interpolated coefficients on the block's fine pixels, `[rank, rows, cols]`.
        missing: the guide less what `start` explains of it, 0 where invalid, `[guide bands, rows, cols]`.
        seen: `[rows, cols]`: where the guide is valid.
    """

    def __init__(self, tile: Tile, method: LinearModelMethod) -> None:
        self.tile = tile
        psf = method.registration.psf_pixels
        self.rows, self.cols = Side(tile, 0, FILL_REACH, psf), Side(tile, 1, FILL_REACH, psf)
        self.pair: CoarsePair = coarse_pair(tile, method.subspace, method.guide_mean)
        self.start = separable(self.rows.up, self.cols.up, self.pair.coefficients)
        centre = (method.guide_mean + method.guide_offset).to(tile.guide)[:, None, None]
        self.guide = tile.guide[:, self.rows.guide, self.cols.guide] - centre
        self.seen = tile.guide_mask[self.rows.guide, self.cols.guide]
        self.missing = (self.guide - apply(method.mixing, self.start)) * self.seen

    @property
    def inner(self) -> tuple[slice, slice, slice]:
        """Where, on the tile's coarse pixels, the block's degradation is known."""
        return slice(None), self.rows.inner, self.cols.inner

    @property
    def target(self) -> Tensor:
        """The coefficients on `inner`, `[rank, rows, cols]`."""
        return self.pair.coefficients[self.inner]

    @property
    def hs_seen(self) -> Tensor:
        """Validity of the coarse pixels of `inner`."""
        return self.pair.hs_mask[self.inner[1:]]

    def degrade(self, image: Tensor) -> Tensor:
        """Return a fine image of the block degraded to `inner`."""
        return separable(self.rows.down, self.cols.down, image)


def positive_definite(matrix: Tensor, floor: Tensor) -> Tensor:
    """Return the nearest matrix whose variances, in units of `floor` `[n]`, are at least 1."""
    scale = floor.clamp_min(1e-300).sqrt()
    values, vectors = torch.linalg.eigh(matrix / scale[:, None] / scale[None, :])
    return (vectors * values.clamp_min(1.0)) @ vectors.T * scale[:, None] * scale[None, :]
