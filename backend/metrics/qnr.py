# SPDX-License-Identifier: GPL-2.0-or-later
"""QNR, HQNR and RQNR: quality without reference, the product of a spectral and a spatial part."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .base import MetricValue, NoReferenceMetric, ResolutionTile
from .d_lambda import DLambda
from .d_lambda_k import DLambdaK
from .d_s import DS
from .d_s_r import DSR


class QualityProduct(NoReferenceMetric):
    """`(1 - spectral distortion)(1 - spatial distortion)` of two other indices."""

    parts: ClassVar[tuple[type[NoReferenceMetric], type[NoReferenceMetric]]]
    better = "higher"
    range = "up to 1 (best)"

    def reset(self) -> None:
        """Forget every tile."""
        self._metrics = [part(self.ratio, self.assignment) for part in self.parts]

    def update_tile(self, tile: ResolutionTile) -> None:
        """Add a tile."""
        for metric in self._metrics:
            metric.update_tile(tile)

    def compute(self) -> MetricValue:
        """Return the product."""
        return self.combine({metric.key: metric.compute() for metric in self._metrics})

    @classmethod
    def combine(cls, values: Mapping[str, MetricValue]) -> MetricValue:
        """Return the product of values that are already known, by key."""
        product = 1.0
        notes = []
        for part in cls.parts:
            value = values[part.key]
            if value.value is None:
                return MetricValue(None, f"{part.key}: {value.reason}")
            product *= 1 - value.value
            if value.reason:
                notes.append(f"{part.key}: {value.reason}")
        return MetricValue(product, "; ".join(notes) or None)


class QNR(QualityProduct):
    """`(1 - D_lambda)(1 - D_s)`, Alparone's original; it favours plain interpolation."""

    key = "QNR"
    variant = "(1 - D_lambda)(1 - D_s)"
    source = "Alparone et al., PE&RS 74(2), 2008"
    parts = (DLambda, DS)
    needs_pairs = True


class HQNR(QualityProduct):
    """`(1 - D_lambda_K)(1 - D_s)`, the hybrid with Khan's spectral part."""

    key = "HQNR"
    variant = "(1 - D_lambda_K)(1 - D_s)"
    source = "Aiazzi et al., Proc. SPIE 9244, 2014"
    parts = (DLambdaK, DS)


class RQNR(QualityProduct):
    """`(1 - D_lambda_K)(1 - D_s_R)`, with the regression's spatial part."""

    key = "RQNR"
    variant = "(1 - D_lambda_K)(1 - D_s_R)"
    source = "Alparone, Garzelli and Vivone, IGARSS 2018"
    parts = (DLambdaK, DSR)
    needs_pairs = True
