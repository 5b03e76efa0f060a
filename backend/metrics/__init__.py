# SPDX-License-Identifier: GPL-2.0-or-later
"""The quality indices, one a file, all behind `base.Metric`; see docs/metrics.md for what each one is."""

from .base import Metric, MetricInfo, MetricValue
from .sets import FULL_REFERENCE, NO_REFERENCE, FullReferenceSet, NoReferenceSet, describe
from .ssim import reference_range

__all__ = [
    "FULL_REFERENCE",
    "NO_REFERENCE",
    "FullReferenceSet",
    "Metric",
    "MetricInfo",
    "MetricValue",
    "NoReferenceSet",
    "describe",
    "reference_range",
]
