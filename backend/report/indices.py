# SPDX-License-Identifier: GPL-2.0-or-later
"""The indices as people read them: names, units, digits, which of two values is better, the short table."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any

PROTOCOLS = {
    "reference": "Against the true image",
    "reduced_resolution": "Reduced resolution (Wald's protocol)",
    "full_resolution": "Full resolution (no reference)",
}
"""Sections of metrics.json in the order of reading, with their titles."""
EXPLAINED = {
    "reference": "The fused image against the true fine hyperspectral image.",
    "reduced_resolution": (
        "Both inputs were made coarser by the ratio and fused; the original HS image is then the truth. "
        "What holds there usually, but not always, holds at full resolution."
    ),
    "full_resolution": (
        "The fused image against its own inputs, without a truth: spectral consistency with the HS image (D_λ), "
        "spatial consistency with the guide (D_s), and their products. Plain interpolation is spectrally "
        "consistent by construction, so these indices can favour it."
    ),
}


PLAIN = {"λ": "lambda", "ρ": "rho", "°": " deg", "–": "-", "−": "-", "×": "x"}


@dataclass(frozen=True)
class IndexText:
    """How an index is shown: title, unit, decimals, which direction is better, what it says.

    A title's part after "_" is set below the line.
    """

    title: str
    unit: str
    decimals: int
    better: str
    says: str


INDICES: dict[str, IndexText] = {
    "PSNR": IndexText("PSNR", "dB", 2, "higher", "size of the error relative to the band's maximum"),
    "SAM": IndexText("SAM", "°", 3, "lower", "angle between spectra: distortion of shape"),
    "ERGAS": IndexText("ERGAS", "", 3, "lower", "relative error over all bands"),
    "RMSE": IndexText("RMSE", "", 4, "lower", "absolute error in the data's units"),
    "CC": IndexText("CC", "", 4, "higher", "correlation with the truth"),
    "SSIM": IndexText("SSIM", "", 4, "higher", "similarity of local structure"),
    "UIQI": IndexText("UIQI", "", 4, "higher", "local mean, contrast and correlation"),
    "Q2n": IndexText("Q2n", "", 4, "higher", "UIQI of whole spectra"),
    "SCC": IndexText("SCC", "", 4, "higher", "correlation of edges"),
    "D_lambda": IndexText("D_λ", "", 4, "lower", "change of the relations between bands"),
    "D_lambda_K": IndexText("D_λ,K", "", 4, "lower", "distance of the fused image, degraded, from the HS"),
    "D_s": IndexText("D_s", "", 4, "lower", "change of the relation to the guide across scales"),
    "D_s_R": IndexText("D_s,R", "", 4, "lower", "share of the guide that the fused bands do not explain"),
    "D_rho": IndexText("D_ρ", "", 4, "lower", "lack of local correlation with the guide"),
    "QNR": IndexText("QNR", "", 4, "higher", "spectral times spatial consistency"),
    "HQNR": IndexText("HQNR", "", 4, "higher", "spectral times spatial consistency"),
    "RQNR": IndexText("RQNR", "", 4, "higher", "spectral times spatial consistency"),
}


@dataclass(frozen=True)
class IndexRow:
    """One line of the table.

    Attributes:
        protocol: key of `PROTOCOLS`.
        key: key of metrics.json.
        text: how to show it.
        fused: the method's value, or None.
        control: plain interpolation's value, or None.
        better: "higher" or "lower".
        variant: the exact form of the index.
        reason: why a value is missing.
        gain: +1 the method is better, -1 interpolation is, 0 equal to the digits shown, None unknown.
    """

    protocol: str
    key: str
    text: IndexText
    fused: float | None
    control: float | None
    better: str
    variant: str
    reason: str
    gain: int | None


def number(value: Any) -> float | None:
    """Return a finite float, or None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        return None
    return float(value)


def show(key: str, value: float | None, unit: bool = False) -> str:
    """Return a value with the digits that mean something; a dash for None."""
    if value is None:
        return "–"
    text = INDICES.get(key, IndexText(key, "", 4, "", ""))
    if key == "RMSE":
        shown = f"{value:.4g}" if 1e-4 <= abs(value) < 1e5 or value == 0 else f"{value:.3e}"
    else:
        shown = f"{value:.{text.decimals}f}"
    if not unit or not text.unit:
        return shown
    return shown + ("" if text.unit == "°" else " ") + text.unit


def index_rows(metrics: dict[str, Any]) -> list[IndexRow]:
    """Return every index of metrics.json, in reading order, known ones first."""
    rows = []
    for protocol in PROTOCOLS:
        part = metrics.get(protocol) or {}
        fused, control = part.get("fused") or {}, part.get("interpolated") or {}
        keys = [k for k in INDICES if k in fused or k in control]
        keys += [k for k in (*fused, *control) if k not in INDICES and k not in keys]
        for key in keys:
            rows.append(_row(metrics, protocol, key, number(fused.get(key)), number(control.get(key))))
    return rows


def _row(
    metrics: dict[str, Any], protocol: str, key: str, fused: float | None, control: float | None
) -> IndexRow:
    text = INDICES.get(key, IndexText(key, "", 4, "", ""))
    better = str((metrics.get("better") or {}).get(key) or text.better)
    reasons = metrics.get("reasons") or {}
    within = reasons.get(protocol)
    reason = (within.get(key) if isinstance(within, dict) else None) or reasons.get(f"{protocol}.{key}")
    reason = reason or reasons.get(key) or ""
    if not isinstance(reason, str):
        reason = "; ".join(str(v) for v in (reason.values() if isinstance(reason, dict) else reason))
    gain = None
    if fused is not None and control is not None and better in ("higher", "lower"):
        wins = (fused > control) == (better == "higher")
        gain = 0 if show(key, fused) == show(key, control) else 1 if wins else -1
    variant = str((metrics.get("variants") or {}).get(key) or "")
    return IndexRow(protocol, key, text, fused, control, better, variant, reason, gain)


def per_band_protocol(metrics: dict[str, Any]) -> str:
    """Return the protocol that the curves over bands come from: the reduced resolution where there is one."""
    reduced = (metrics.get("reduced_resolution") or {}).get("fused")
    return "reduced_resolution" if reduced else "reference"


def method_name(metrics: dict[str, Any]) -> str:
    """Return the method's title, its id, or "the fused image" when the method is not known."""
    return str(metrics.get("title") or metrics.get("method") or "the fused image")


def with_below(text: str) -> list[tuple[str, str]]:
    """Split text at indices' names into (text, what to set below the line) pairs, for the page."""
    pairs, end = [], 0
    for found in re.finditer(r"\bD_([λρs](?:,[A-Z])?)", text):
        pairs.append((text[end : found.start()] + "D", found.group(1)))
        end = found.end()
    return [*pairs, (text[end:], "")]


def short_name(metrics: dict[str, Any]) -> str:
    """Return the method's title without what stands in brackets, for legends."""
    return method_name(metrics).split(" (")[0]


def summary_table(metrics: dict[str, Any]) -> str:
    """Return a short ASCII table for the terminal: the method's and interpolation's indices."""
    name = str(metrics.get("method") or "fused")
    lines: list[str] = []
    width = max(len(name), 10)
    head = f"{'index':<12}{name:>{width}}  {'interpolation':>13}  better"
    protocol = ""
    for row in index_rows(metrics):
        if row.protocol != protocol:
            protocol = row.protocol
            lines += [*([""] if lines else []), PROTOCOLS[protocol], head, "-" * len(head)]
        unit = {"dB": " (dB)", "°": " (deg)"}.get(row.text.unit, "")
        mark = {1: " +", 0: " =", -1: " -", None: ""}[row.gain]
        lines.append(
            f"{row.key + unit:<12}{show(row.key, row.fused):>{width}}  {show(row.key, row.control):>13}  "
            f"{row.better}{mark}"
        )
    if not lines:
        return "no quality indices were computed"
    lines.append("")
    lines.append(
        "+ the method is better than plain interpolation, - it is not, = no difference in these digits"
    )
    return plain("\n".join(lines))


def plain(text: str) -> str:
    """Return text with what a bare terminal may not know replaced by ASCII."""
    for sign, word in PLAIN.items():
        text = text.replace(sign, word)
    return text
