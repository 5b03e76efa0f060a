# SPDX-License-Identifier: GPL-2.0-or-later
"""All indices of a kind at once, so that they share one pass over the data and what they have in common."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Optional

from torch import Tensor

from ..errors import ErrorCode, HyperSharpError
from .base import Core, FullReferenceMetric, Metric, MetricInfo, MetricValue, PairTile
from .cc import CC
from .ergas import ERGAS
from .psnr import PSNR
from .q2n import Q2n
from .rmse import RMSE
from .sam import SAM

FULL_REFERENCE: dict[str, type[FullReferenceMetric]] = {m.key: m for m in (PSNR, SAM, ERGAS, RMSE, CC, Q2n)}
"""Indices that need the true image, by key, in the order of metrics.json."""


def describe() -> list[MetricInfo]:
    """Return what every index is, in the order of metrics.json."""
    return [metric.info() for metric in FULL_REFERENCE.values()]


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
    """

    def __init__(self, ratio: float, keys: Optional[Iterable[str]] = None) -> None:
        self.metrics: dict[str, FullReferenceMetric] = {
            key: make_full_reference(key, ratio) for key in choose(keys, FULL_REFERENCE)
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


def make_full_reference(key: str, ratio: float) -> FullReferenceMetric:
    """Return a fresh full-reference index."""
    metric: type[Metric] = FULL_REFERENCE[key]
    return metric(ratio) if metric is ERGAS else metric()  # type: ignore[call-arg,return-value]
