# SPDX-License-Identifier: GPL-2.0-or-later
"""The table of a comparison: rows in order of rank, its CSV and terminal forms, and the recommendation."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from typing import Any

from . import ranking
from .ranking import Ranking
from .registry import METHODS

CONTROL = "interpolation"
"""Id of the row of plain interpolation where `bicubic` was not among the methods."""
INTERPOLATION = "bicubic"
SECTIONS = ("reference", "reduced_resolution", "full_resolution")
SHOWN = {
    "reference": ("PSNR", "SAM", "ERGAS", "Q2n"),
    "reduced_resolution": ("PSNR", "SAM", "ERGAS", "Q2n"),
    "full_resolution": ("D_lambda_K", "HQNR"),
}
"""Indices of each section in the terminal's table; compare.json and compare.csv hold all of them."""
FEW_PIXELS = 8
"""With fewer reduced HS pixels along a side, Wald's protocol gives a hint and no more."""
FASTER = 1.5
"""That a method as good as the first is faster is only worth a word from this factor on."""
NAMED = 3
"""So many methods as good as the first are named."""


def build(
    rows: Mapping[str, Mapping[str, Any]], ranked: Ranking, reduced_pixels: tuple[int, int] | None = None
) -> dict[str, Any]:
    """Return the content of compare.json.

    Args:
        rows: by method: "metrics" (content of metrics.json, or None), "error", "reused", "fused" (relative path).
        ranked: the ranking of those that have metrics.
        reduced_pixels: rows and columns of the HS image at reduced resolution.

    Returns:
        {"kind", "methods": [row, ...] best first, "ranking": {...}, "recommendation": {...}}.
    """
    methods = [_row(method, rows[method], ranked) for method in ranked.order]
    if methods and INTERPOLATION not in rows:
        methods.append(_control_row(rows, ranked))
    methods.sort(key=lambda r: (r["score"] is None, -(r["score"] or 0.0)))
    for place, row in enumerate((r for r in methods if r["score"] is not None), start=1):
        row["rank"] = place
    methods += [_row(method, row, ranked) for method, row in rows.items() if method not in ranked.order]
    table = {
        "kind": "compare",
        "methods": methods,
        "reduced_pixels": reduced_pixels,
        "ranking": {
            "basis": ranked.basis,
            "indices": list(ranked.names),
            "explanation": ranking.explain(ranked.basis),
        },
    }
    table["recommendation"] = recommend(table)
    return table


def _row(method: str, row: Mapping[str, Any], ranked: Ranking) -> dict[str, Any]:
    metrics = row.get("metrics") or {}
    score = ranked.scores.get(method)
    info = METHODS.get(method)
    return {
        "method": method,
        "title": info.title if info else method,
        "kind": info.kind if info else "",
        "rank": None,
        "score": score,
        "factor": ranking.factor(score),
        "seconds": metrics.get("seconds"),
        "assess_seconds": metrics.get("assess_seconds"),
        "peak_memory_bytes": metrics.get("peak_memory_bytes"),
        "reused": bool(row.get("reused")),
        "fused": row.get("fused"),
        "error": row.get("error"),
        **{section: (metrics.get(section) or {}).get("fused") for section in SECTIONS},
    }


def _control_row(rows: Mapping[str, Mapping[str, Any]], ranked: Ranking) -> dict[str, Any]:
    """Return plain interpolation's row, from the control column of the method ranked first."""
    metrics = rows[ranked.order[0]]["metrics"]
    sections = {s: {"fused": (metrics.get(s) or {}).get("interpolated")} for s in SECTIONS}
    row = _row(CONTROL, {"metrics": sections}, ranked)
    score = None if ranked.basis is None else 0.0
    return row | {
        "title": "Plain interpolation (control)",
        "kind": "interpolation",
        "score": score,
        "factor": ranking.factor(score),
    }


def row_of(table: Mapping[str, Any], method: str | None) -> dict[str, Any] | None:
    """Return a method's row, or None."""
    return next((row for row in table["methods"] if row["method"] == method), None)


def recommend(table: Mapping[str, Any]) -> dict[str, Any]:
    """Return {"method": id or None, "title": ..., "text": one sentence with its reason}."""
    ranked = [row for row in table["methods"] if row["score"] is not None]
    fused = [row for row in ranked if row["method"] != CONTROL]
    if not fused:
        return {
            "method": None,
            "title": "",
            "text": "No recommendation: the indices that it would rest on could not be computed.",
        }
    best = ranked[0]
    if best["score"] <= ranking.SAME or best["method"] in (CONTROL, INTERPOLATION):
        control = row_of(table, INTERPOLATION)
        return {
            "method": INTERPOLATION if control is not None and control["score"] is not None else None,
            "title": "plain interpolation",
            "text": (
                "Keep plain interpolation: none of the methods has smaller errors on this pair, so its guide adds "
                "nothing that can be trusted (another date, a shift, or another spectral range)."
            ),
        }
    count = len(ranked)
    text = f"Use {short(best)}: {_reason(table, best)}, the best of {count}"
    text += _alternative(fused, best) + _caution(table)
    return {"method": best["method"], "title": short(best), "text": f"{text}."}


def _reason(table: Mapping[str, Any], best: Mapping[str, Any]) -> str:
    """Return what speaks for the first: its errors beside interpolation's."""
    basis = table["ranking"]["basis"]
    control = row_of(table, INTERPOLATION) or row_of(table, CONTROL) or {}
    where = {
        "reference": "against the true image",
        "reduced_resolution": "at reduced resolution",
        "full_resolution": "at full resolution",
    }[basis]
    shown = ("D_lambda_K", "D_s_R") if basis == "full_resolution" else ("PSNR", "SAM", "Q2n")
    pairs = [
        f"{SYMBOLS.get(key, key)} {_value(key, one)} instead of {_value(key, two)}"
        for key in shown
        if (one := (best.get(basis) or {}).get(key)) is not None
        and (two := (control.get(basis) or {}).get(key)) is not None
    ]
    values = f" ({where}: {', '.join(pairs)})" if pairs else f" {where}"
    return f"its errors are {best['factor']:.2f} times smaller than plain interpolation's{values}"


SYMBOLS = {"D_lambda_K": "D_λ,K", "D_lambda": "D_λ", "D_rho": "D_ρ", "D_s_R": "D_s,R"}


def _value(key: str, value: float) -> str:
    if key == "PSNR":
        return f"{value:.2f} dB"
    return f"{value:.2f}°" if key == "SAM" else f"{value:.4f}"


def _alternative(fused: list[dict[str, Any]], best: Mapping[str, Any]) -> str:
    """Return a clause on the methods that are as good, and on the fastest of them where that saves much."""
    near = [r for r in fused if r is not best and best["score"] - r["score"] < ranking.SAME]
    if not near:
        return ""
    names = [short(row) for row in near]
    if len(names) > NAMED:
        names = [*names[: NAMED - 1], f"{len(names) - NAMED + 1} more"]
    text = f"; {_listed(names)} {'is' if len(near) == 1 else 'are'} as good to 1 %"
    timed = [r for r in near if r["seconds"]]
    other = min(timed, key=lambda row: row["seconds"], default=None)
    if other is None or not best["seconds"] or best["seconds"] < FASTER * other["seconds"]:
        return text
    which = "" if len(near) == 1 else f"{short(other)} "
    return f"{text} and {which}{best['seconds'] / other['seconds']:.1f} times faster"


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _caution(table: Mapping[str, Any]) -> str:
    """Return a clause that takes a recommendation back which rests on a handful of pixels."""
    pixels = table.get("reduced_pixels")
    if table["ranking"]["basis"] != "reduced_resolution" or not pixels or min(pixels) >= FEW_PIXELS:
        return ""
    return f"; only a hint, since {pixels[1]} × {pixels[0]} pixels are left at reduced resolution"


def short(row: Mapping[str, Any]) -> str:
    """Return a row's title without what stands in brackets."""
    return str(row["title"]).split(" (")[0]


def csv_text(table: Mapping[str, Any]) -> str:
    """Return the table as CSV: one line a method, every index of every section."""
    keys = {
        section: list(dict.fromkeys(k for row in table["methods"] for k in row.get(section) or {}))
        for section in SECTIONS
    }
    head = ["rank", "method", "title", "score", "factor", "seconds", "peak_memory_bytes"]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*head, *(f"{s}.{k}" for s in SECTIONS for k in keys[s]), "fused", "error"])
    for row in table["methods"]:
        values = [row.get(k) for k in head] + [(row.get(s) or {}).get(k) for s in SECTIONS for k in keys[s]]
        error = f"{row['error']['message']}" if row["error"] else ""
        writer.writerow(["" if v is None else v for v in (*values, row["fused"], error)])
    return text.getvalue()


def terminal_text(table: Mapping[str, Any]) -> str:
    """Return the ranked table and the recommendation as ASCII for a terminal."""
    from .report.indices import plain, show

    sections = [s for s in SECTIONS if any(row.get(s) for row in table["methods"])]
    columns = [(s, key, max(8, len(key))) for s in sections for key in SHOWN[s]]
    titles = {
        "reference": "true image",
        "reduced_resolution": "reduced resolution",
        "full_resolution": "full resolution",
    }
    width = max([6, *(len(row["method"]) for row in table["methods"])])
    start = f"{'rank':>4}  {'method':<{width}}  {'factor':>6}"
    groups = " " * len(start)
    for section in sections:
        room = sum(w + 2 for s, _, w in columns if s == section)
        groups += "  " + titles[section][: room - 2].center(room - 2, "-")
    line = start + "".join(f"  {key:>{w}}" for _, key, w in columns) + f"  {'seconds':>7}"
    lines = [groups, line, "-" * len(line)]
    for row in table["methods"]:
        if row["error"]:
            lines.append(f"{'-':>4}  {row['method']:<{width}}  failed: {row['error']['message']}")
            continue
        values = "".join(f"  {show(key, (row.get(s) or {}).get(key)):>{w}}" for s, key, w in columns)
        factor = "-" if row["factor"] is None else f"{row['factor']:.2f}"
        seconds = "" if row["seconds"] is None else f"{row['seconds']:.1f}"
        lines.append(f"{row['rank'] or '-':>4}  {row['method']:<{width}}  {factor:>6}{values}  {seconds:>7}")
    lines += [
        "",
        "factor: how many times smaller the errors are than plain interpolation's.",
        table["ranking"]["explanation"],
        "",
        table["recommendation"]["text"],
    ]
    return plain("\n".join(lines))
