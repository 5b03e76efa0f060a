# SPDX-License-Identifier: GPL-2.0-or-later
"""All indices of a kind at once, so that they share one pass over the data and what they have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from torch import Tensor

from ..errors import ErrorCode, HyperSharpError
from .base import (
    Core,
    FullReferenceMetric,
    MetricInfo,
    MetricValue,
    NoReferenceMetric,
    PairTile,
    ResolutionTile,
)
from .cc import CC
from .d_lambda import DLambda
from .d_lambda_k import DLambdaK
from .d_rho import DRho
from .d_s import DS
from .d_s_r import DSR
from .ergas import ERGAS
from .joint import JointMetric, block_pairs
from .psnr import PSNR
from .q2n import Q2n
from .qnr import HQNR, QNR, RQNR, QualityProduct
from .rmse import RMSE
from .sam import SAM
from .scc import SCC
from .ssim import SSIM
from .uiqi import UIQI

FULL_REFERENCE: dict[str, type[FullReferenceMetric]] = {
    m.key: m for m in (PSNR, SAM, ERGAS, RMSE, CC, SSIM, UIQI, Q2n, SCC)
}
"""Indices that need the true image, by key, in the order of metrics.json."""
NO_REFERENCE: dict[str, type[NoReferenceMetric]] = {
    m.key: m for m in (DLambda, DLambdaK, DS, DSR, DRho, QNR, HQNR, RQNR)
}
"""Indices that need only what the fused image was made from, by key, in the order of metrics.json."""


def describe() -> list[MetricInfo]:
    """Return what every index is, in the order of metrics.json."""
    return [metric.info() for metric in (*FULL_REFERENCE.values(), *NO_REFERENCE.values())]


def choose(keys: Optional[Iterable[str]], known: Iterable[str]) -> list[str]:
    """Return the wanted keys in the known order; all of them for None.

    Raises:
        HyperSharpError: a key that is not known.
    """
    known = list(known)
    wanted = known if keys is None else list(keys)
    unknown = [key for key in wanted if key not in known]
    if unknown:
        raise HyperSharpError(
            f"unknown index {', '.join(unknown)}", f"the indices are {', '.join(known)}", ErrorCode.USAGE
        )
    return [key for key in known if key in wanted]


class FullReferenceSet:
    """The full-reference indices in one pass.

    Args:
        ratio: coarse over fine pixel size (for ERGAS).
        keys: the wanted indices; None for all.
        data_range: `[2, bands]` range of the reference bands (`ssim.reference_range`), for SSIM over several
            tiles; without it SSIM has a value only when one tile is the whole scene.
    """

    def __init__(
        self, ratio: float, keys: Optional[Iterable[str]] = None, data_range: Optional[Tensor] = None
    ) -> None:
        self.metrics: dict[str, FullReferenceMetric] = {
            key: make_full_reference(key, ratio, data_range) for key in choose(keys, FULL_REFERENCE)
        }

    @property
    def halo(self) -> int:
        """The context in pixels that a tile needs around its core."""
        return max(metric.halo for metric in self.metrics.values())

    def reset(self) -> None:
        """Forget every tile."""
        for metric in self.metrics.values():
            metric.reset()

    def update(self, fused: Tensor, reference: Tensor, mask: Tensor, core: Optional[Core] = None) -> None:
        """Add a tile to every index (as `FullReferenceMetric.update`)."""
        tile = PairTile(fused, reference, mask, core)
        pointwise = [metric for metric in self.metrics.values() if metric.halo == 0]
        for metric in self.metrics.values():
            if metric.halo > 0:
                metric.update_tile(tile)
        for chunk in tile.chunks() if pointwise else ():
            for metric in pointwise:
                metric.update_tile(chunk)

    def compute(self) -> dict[str, MetricValue]:
        """Return each index's value."""
        return {key: metric.compute() for key, metric in self.metrics.items()}


class NoReferenceSet:
    """The no-reference indices in one pass.

    Args:
        ratio: integer ratio of the pixel sizes, at least 2.
        assignment: `[bands]` index of the guide band for each HS band; None when the guide has one band.
        keys: the wanted indices; None for all. Leaving out D_lambda, QNR, D_s_R and RQNR saves the products of
            all band pairs.
    """

    def __init__(
        self, ratio: int, assignment: Optional[Tensor] = None, keys: Optional[Iterable[str]] = None
    ) -> None:
        self.ratio, self.assignment = ratio, assignment
        self.keys = choose(keys, NO_REFERENCE)
        classes = [NO_REFERENCE[key] for key in self.keys]
        parts = {part for cls in classes if issubclass(cls, QualityProduct) for part in cls.parts}
        self.metrics: dict[str, NoReferenceMetric] = {
            cls.key: cls(ratio, assignment)
            for cls in NO_REFERENCE.values()
            if (cls in classes or cls in parts) and not issubclass(cls, QualityProduct)
        }

    @property
    def halo(self) -> int:
        """The context in fine pixels that a tile needs around its core."""
        return max(metric.halo for metric in self.metrics.values())

    def reset(self) -> None:
        """Forget every tile."""
        for metric in self.metrics.values():
            metric.reset()

    def update(
        self,
        fused: Tensor,
        guide: Tensor,
        mask: Tensor,
        fused_lr: Tensor,
        hs: Tensor,
        guide_lr: Tensor,
        mask_lr: Tensor,
        core: Optional[Core] = None,
    ) -> None:
        """Add a tile to every index (as `NoReferenceMetric.update`)."""
        tile = ResolutionTile(
            fused, guide, mask, fused_lr, hs, guide_lr, mask_lr, core, self.ratio, self.assignment
        )
        joint = [metric for metric in self.metrics.values() if isinstance(metric, JointMetric)]
        for metric in self.metrics.values():
            if metric not in joint:
                metric.update_tile(tile)
        for block in block_pairs(tile, any(m.needs_pairs for m in joint)) if joint else ():
            for metric in joint:
                metric.update_block(block)

    def compute(self) -> dict[str, MetricValue]:
        """Return each wanted index's value."""
        values = {key: metric.compute() for key, metric in self.metrics.items()}
        for key in self.keys:
            cls = NO_REFERENCE[key]
            if issubclass(cls, QualityProduct):
                values[key] = cls.combine(values)
        return {key: values[key] for key in self.keys}


def make_full_reference(key: str, ratio: float, data_range: Optional[Tensor] = None) -> FullReferenceMetric:
    """Return a fresh full-reference index."""
    if key == ERGAS.key:
        return ERGAS(ratio)
    if key == SSIM.key:
        return SSIM(data_range)
    return FULL_REFERENCE[key]()
