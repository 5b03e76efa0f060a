# SPDX-License-Identifier: GPL-2.0-or-later
"""Which of several fused images is best: one score from the indices that were seen to rank right.

The score says by what factor an image's errors are smaller than plain interpolation's through the same steps: the
natural logarithm of a weighted geometric mean over indices, each taken as its distance from perfect. 0 is
interpolation's own; ln 2 = 0.69 means errors half as large. Being a ratio it has no unit and needs no thresholds.

Which indices, and with which weights, was measured (`make ranking`, docs/metrics.md, "Do the indices rank right?"):
on simulated scenes, where the truth is known, every index was asked to rank the methods.

Standard library only: report, comparison and tests use it without torch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

REFERENCE, REDUCED, FULL = "reference", "reduced_resolution", "full_resolution"


@dataclass(frozen=True)
class Part:
    """One index of a score.

    Attributes:
        section, key: where it stands in metrics.json.
        weight: its share in the mean of logarithms.
        floor: the error below which all images count as equal.
    """

    section: str
    key: str
    weight: float
    floor: float = 1e-6

    @property
    def name(self) -> str:
        """Name within a score, e.g. "reduced_resolution.SAM"."""
        return f"{self.section}.{self.key}"


BASES: dict[str, tuple[Part, ...]] = {
    REFERENCE: (Part(REFERENCE, "PSNR", 1.0), Part(REFERENCE, "SAM", 1.0), Part(REFERENCE, "Q2n", 1.0)),
    REDUCED: (
        Part(REDUCED, "PSNR", 2.0),
        Part(REDUCED, "SAM", 1.0),
        Part(REDUCED, "Q2n", 1.0),
        Part(FULL, "D_lambda_K", 0.5, 0.01),
    ),
    FULL: (Part(FULL, "D_lambda_K", 1.0, 0.002), Part(FULL, "D_s_R", 0.25, 0.001)),
}
"""What a score rests on, best basis first: the true image; Wald's protocol; the inputs alone."""
TITLES = {
    REFERENCE: "the true image",
    REDUCED: "the reduced-resolution protocol (Wald), with a check of consistency at full resolution",
    FULL: "full-resolution indices alone",
}
MEASURED: dict[str, tuple[float, float]] = {REDUCED: (0.78, 0.04), FULL: (0.60, 0.18)}
"""Kendall's tau on the scenes not used to find the weights, and the mean loss of true quality of the first ranked."""
AMPLITUDE = {"PSNR"}
DISTANCES = {"SAM", "ERGAS", "RMSE", "D_lambda", "D_lambda_K", "D_s", "D_s_R", "D_rho"}
MIN_WEIGHT = 0.5
"""A score that lacks more than this share of its weights is none."""
SAME = 0.01
"""Scores nearer than this (1 % of the errors) are not told apart."""


def error_of(key: str, value: Any) -> Optional[float]:
    """Return an index as a distance from perfect (0 is perfect); None for what is no number.

    PSNR becomes the error's amplitude relative to the peak, an index whose best value is 1 its distance from 1.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    if key in AMPLITUDE:
        return 10.0 ** (-float(value) / 20.0)
    return abs(float(value)) if key in DISTANCES else abs(1.0 - float(value))


def parts_of(metrics: Mapping[str, Any], basis: str) -> dict[str, float]:
    """Return, for each index of a basis that is there, ln(interpolation's error / the image's error)."""
    found: dict[str, float] = {}
    for part in BASES[basis]:
        section = metrics.get(part.section) or {}
        values = [error_of(part.key, (section.get(c) or {}).get(part.key)) for c in ("fused", "interpolated")]
        if values[0] is not None and values[1] is not None:
            fused, control = (max(v, part.floor) for v in values if v is not None)
            found[part.name] = math.log(control / fused)
    return found


def basis_of(metrics: Mapping[str, Any]) -> Optional[str]:
    """Return the best basis for which enough indices are there; None when there is none."""
    return next((b for b in BASES if _weighted(parts_of(metrics, b), b) is not None), None)


def _weighted(
    parts: Mapping[str, float], basis: str, names: Optional[Iterable[str]] = None
) -> Optional[float]:
    """Return the weighted mean over the given names (all of the basis for None) that are there."""
    wanted = None if names is None else set(names)
    used = [p for p in BASES[basis] if p.name in parts and (wanted is None or p.name in wanted)]
    weight = sum(p.weight for p in used)
    if not used or weight < MIN_WEIGHT * sum(p.weight for p in BASES[basis]):
        return None
    return sum(p.weight * parts[p.name] for p in used) / weight


def score(
    metrics: Mapping[str, Any], basis: Optional[str] = None, names: Optional[Iterable[str]] = None
) -> Optional[float]:
    """Return the score of a fused image; see the module.

    Args:
        metrics: content of metrics.json.
        basis: a key of `BASES`; None for the best that is there.
        names: of the parts to use; None for all that are there.

    Returns:
        ln of (interpolation's errors / the image's errors), or None when too few indices are there.
    """
    basis = basis or basis_of(metrics)
    return None if basis is None else _weighted(parts_of(metrics, basis), basis, names)


def factor(value: Optional[float]) -> Optional[float]:
    """Return by what factor the errors are smaller than interpolation's, from a score."""
    return None if value is None else math.exp(value)


@dataclass(frozen=True)
class Ranking:
    """Several images ranked by one measure.

    Attributes:
        basis: key of `BASES`, or None when nothing could be scored.
        names: the parts that every image has, on which the scores rest.
        scores: by image; None where it could not be scored.
        order: images, best first; those without a score last.
    """

    basis: Optional[str]
    names: tuple[str, ...]
    scores: dict[str, Optional[float]]
    order: list[str]

    def place(self, image: str) -> Optional[int]:
        """Return an image's rank from 1; None without a score."""
        return self.order.index(image) + 1 if self.scores.get(image) is not None else None


def rank(images: Mapping[str, Mapping[str, Any]]) -> Ranking:
    """Rank images of one pair by their metrics: on the best basis, and the indices, that all of them have."""
    for basis in BASES:
        parts = {name: parts_of(metrics, basis) for name, metrics in images.items()}
        common = [p.name for p in BASES[basis] if parts and all(p.name in found for found in parts.values())]
        scores = {name: _weighted(found, basis, common) for name, found in parts.items()}
        if scores and all(value is not None for value in scores.values()):
            order = sorted(scores, key=lambda name: -(scores[name] or 0.0))
            return Ranking(basis, tuple(common), scores, order)
    return Ranking(None, (), dict.fromkeys(images), list(images))


def explain(basis: Optional[str], ranks: bool = True) -> str:
    """Return, in words, what a score rests on and how well it was seen to rank.

    Args:
        basis: key of `BASES`; None when nothing could be scored.
        ranks: speak of a ranking; else of the score of one image.
    """
    if basis is None:
        return "No ranking: the indices that it rests on could not be computed."
    means = {
        REFERENCE: "the errors against the true image (PSNR, SAM and Q2n in equal parts)",
        REDUCED: (
            "the errors at reduced resolution (Wald's protocol: PSNR with double weight, SAM, Q2n) and, with half "
            "the weight, the consistency with the HS image at full resolution (D_λ,K)"
        ),
        FULL: "full-resolution indices alone (D_λ,K, and D_s,R with a quarter of the weight)",
    }[basis]
    what = "The ranking" if ranks else "This"
    text = f"{what} rests on {means}, each relative to plain interpolation's."
    if basis in MEASURED:
        tau, loss = MEASURED[basis]
        text += (
            f" On simulated scenes with a known truth it ranked methods with a Kendall's tau of {tau:.2f} "
            f"(1 is perfect, 0 is chance), and its first choice had errors {100 * loss:.0f} % larger than the best's."
        )
    if basis == FULL:
        text += " Without the reduced-resolution protocol this is a weak basis."
    return text
