# SPDX-License-Identifier: GPL-2.0-or-later
"""The verdict in words: what the indices say about a fused image, and how much that is worth."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .. import ranking
from .indices import IndexRow, index_rows, number, plain, short_name, show

GOOD, MIXED, POOR, UNKNOWN = "good", "mixed", "poor", "unknown"
LABELS = {
    GOOD: "Better than interpolation",
    MIXED: "Mixed",
    POOR: "No better than interpolation",
    UNKNOWN: "Not judged",
}
DECIDING = ("ERGAS", "Q2n", "SAM")
"""Full-reference indices that decide: error over all bands, whole spectra, shape of spectra."""
SAM_TOLERANCE = 1.02
"""A spectral angle within 2 % of interpolation's counts as kept."""
CONSISTENT, INCONSISTENT = 0.05, 0.15
"""Rules of thumb for D_λ,K: below the first the fused image, seen by the HS sensor, is nearly the HS image."""
MIN_PIXELS = 8
"""With fewer reduced HS pixels along a side, Wald's protocol learns from too little to decide anything."""
EXPLANATION = (
    "How the verdict is reached: the deciding indices are ERGAS, Q2n and SAM against a truth (a true image where one "
    "was given, else Wald's protocol at reduced resolution), each compared with plain interpolation of the HS image "
    "through the same steps. All three at least as good: better. Some better, some worse: mixed. None better: "
    "no better than interpolation. Where all indices that were seen to rank best, taken together, say otherwise, the "
    "verdict is mixed. There are no thresholds of quality that hold for every sensor and scene. "
    "Full-resolution indices need no truth but can favour interpolation, so they only support the verdict; "
    f"the bounds on D_λ,K ({CONSISTENT:g} and {INCONSISTENT:g}) are rules of thumb."
)


@dataclass
class Verdict:
    """What the indices say.

    Attributes:
        level: "good", "mixed", "poor" or "unknown".
        headline: one sentence.
        sentences: what it rests on.
    """

    level: str
    headline: str
    sentences: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The level in words."""
        return LABELS[self.level]


def judge(metrics: dict[str, Any]) -> Verdict:
    """Return the verdict on a fused image from its metrics."""
    rows = index_rows(metrics)
    name = short_name(metrics)
    if metrics.get("method") == "bicubic":
        verdict = Verdict(
            UNKNOWN,
            "This is plain interpolation itself: the control that other methods are compared with.",
        )
        _add_full(rows, verdict)
        return verdict
    for protocol in ("reference", "reduced_resolution"):
        deciding = [r for r in rows if r.protocol == protocol and r.key in DECIDING and r.gain is not None]
        if deciding:
            verdict = _compare(name, protocol, deciding, [r for r in rows if r.protocol == protocol])
            _weigh(metrics, name, verdict)
            if protocol == "reduced_resolution":
                _doubt(metrics, verdict)
            break
    else:
        verdict = _without_control(name, rows)
    _add_full(rows, verdict)
    return verdict


def _compare(name: str, protocol: str, deciding: list[IndexRow], rows: list[IndexRow]) -> Verdict:
    better = [r for r in deciding if r.gain == 1]
    worse = [r for r in deciding if r.gain == -1 and not _kept(r)]
    where = "Against the true image" if protocol == "reference" else "At reduced resolution"
    if better and not worse:
        level, headline = GOOD, f"{name} restores the HS image better than plain interpolation."
    elif better:
        level, headline = (
            MIXED,
            f"{name} is better than plain interpolation in {_names(better)} but worse in {_names(worse)}.",
        )
    else:
        level, headline = POOR, f"{name} does no better than plain interpolation on this pair."
    shown = [
        r for r in rows if r.key in ("PSNR", *DECIDING) and r.fused is not None and r.control is not None
    ]
    parts = [
        f"{r.text.title} {show(r.key, r.fused, True)} (interpolation {show(r.key, r.control, True)}{_change(r)})"
        for r in shown
    ]
    verdict = Verdict(level, headline, [f"{where}: {'; '.join(parts)}."])
    if level == POOR:
        verdict.sentences.append(
            "The guide may not fit (other date, shift, other spectral range), or the scene has little detail to add."
        )
    return verdict


def _weigh(metrics: dict[str, Any], name: str, verdict: Verdict) -> None:
    """Add the score that ranks methods (`ranking.py`), and soften a verdict that it contradicts."""
    basis = ranking.basis_of(metrics)
    score = ranking.score(metrics, basis)
    times = ranking.factor(score)
    if score is None or times is None or basis not in (ranking.REFERENCE, ranking.REDUCED):
        return
    better = score > ranking.SAME
    if (verdict.level == GOOD and not better) or (verdict.level == POOR and better):
        verdict.level = MIXED
        verdict.headline = (
            f"{name} is {'better' if better else 'no better'} than plain interpolation by the indices that rank best "
            f"together, but {'not' if better else 'better'} by ERGAS, Q2n and SAM each."
        )
    said = f"{times:.2f} times smaller than" if times >= 1 else f"{1 / times:.2f} times as large as"
    verdict.sentences.insert(
        1,
        f"Taken together, its errors are {said} plain interpolation's. {ranking.explain(basis, ranks=False)}",
    )


def _doubt(metrics: dict[str, Any], verdict: Verdict) -> None:
    """Take the verdict back where it rests on a handful of pixels."""
    hs, ratio = (metrics.get("inputs") or {}).get("hs") or {}, number(metrics.get("ratio"))
    rows, cols = number(hs.get("rows")), number(hs.get("cols"))
    if not ratio or not rows or not cols:
        return
    size = int(rows // ratio), int(cols // ratio)
    if min(size) < MIN_PIXELS:
        verdict.level = UNKNOWN
        verdict.headline = (
            f"Too small to judge: reduced by the ratio, the HS image has only {size[1]} × {size[0]} pixels."
        )
        verdict.sentences[0] += " With so few pixels this is a hint, no proof."
        del verdict.sentences[1:]


def _kept(row: IndexRow) -> bool:
    """Return whether a spectral angle is no worse than interpolation's but for a trifle."""
    return (
        row.key == "SAM"
        and row.fused is not None
        and row.control is not None
        and row.fused <= SAM_TOLERANCE * row.control
    )


def _names(rows: list[IndexRow]) -> str:
    return " and ".join(r.text.title for r in rows)


def _change(row: IndexRow) -> str:
    if row.fused is None or row.control is None:
        return ""
    if row.key == "PSNR":
        return f", {row.fused - row.control:+.2f} dB".replace("-", "−")
    if row.key == "Q2n" or abs(row.control) < 1e-9:
        return ""
    return f", {100 * (row.fused / row.control - 1):+.0f} %".replace("-", "−")


def _without_control(name: str, rows: list[IndexRow]) -> Verdict:
    against = [r for r in rows if r.protocol in ("reference", "reduced_resolution") and r.fused is not None]
    if against:
        shown = "; ".join(f"{r.text.title} {show(r.key, r.fused, True)}" for r in against[:4])
        return Verdict(
            UNKNOWN,
            f"{name} was scored without a control to compare with.",
            [f"Against the {'true image' if against[0].protocol == 'reference' else 'HS image'}: {shown}."],
        )
    if any(r.protocol == "full_resolution" and r.fused is not None for r in rows):
        return Verdict(
            UNKNOWN,
            "Judged by full-resolution indices only, which cannot tell by themselves whether the image is right.",
            [
                "How the image was made is not known (or the scene is too small), so fusing at reduced resolution "
                "was not possible."
            ],
        )
    return Verdict(UNKNOWN, "No quality index could be computed.")


def _add_full(rows: list[IndexRow], verdict: Verdict) -> None:
    full = {r.key: r for r in rows if r.protocol == "full_resolution"}
    khan = full.get("D_lambda_K")
    if khan is not None and khan.fused is not None:
        if khan.fused <= CONSISTENT:
            word = "keeps the HS image's spectra closely"
        elif khan.fused <= INCONSISTENT:
            word = "departs somewhat from the HS image's spectra"
        else:
            word = "departs clearly from the HS image's spectra"
        control = f"; interpolation {show('D_lambda_K', khan.control)}" if khan.control is not None else ""
        verdict.sentences.append(
            f"Seen again by the HS sensor, the fused image {word} "
            f"(D_λ,K {show('D_lambda_K', khan.fused)}{control}; 0 is perfect)."
        )
    quality = full.get("HQNR")
    if quality is not None and quality.fused is not None:
        control = f", interpolation {show('HQNR', quality.control)}" if quality.control is not None else ""
        verdict.sentences.append(
            f"HQNR at full resolution is {show('HQNR', quality.fused)}{control} (1 is best; it supports the verdict "
            "but does not decide it)."
        )


def verdict(metrics: dict[str, Any]) -> str:
    """Return the verdict as plain ASCII text."""
    judged = judge(metrics)
    return plain(" ".join([judged.headline, *judged.sentences]))
