# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison over a folder of cubes: each becomes a simulated pair, the summary is the mean over all."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import comparison, comparison_table, ranking
from .control import Control, PartControl
from .errors import Cancelled, HyperSharpError
from .io.writer import make_folder
from .job import CompareJob
from .pipeline import versions
from .protocol import Result

SIMULATING_SHARE = 0.1


def compare_cubes(job: CompareJob, methods: list[str], folder: Path, control: Control) -> Result:
    """Compare the methods on a pair simulated from every cube of `job.cubes`; see `comparison.compare`.

    A cube that cannot be used is named with its error and does not lose the others.

    Raises:
        HyperSharpError: no cube in the folder, or not one could be used.
    """
    started = time.monotonic()
    cubes = find_cubes(Path(job.cubes or ""), folder)
    tables: dict[str, dict[str, Any]] = {}
    failed: dict[str, dict[str, str]] = {}
    share = 0.95 / len(cubes)
    for index, (name, cube) in enumerate(cubes.items()):
        control.check()
        begin = index * share
        try:
            tables[name] = _one(job, methods, folder / name, cube, name, control, (begin, begin + share))
        except Cancelled:
            raise
        except HyperSharpError as error:
            control.warn(f"{cube.name} was left out: {error.message}")
            failed[name] = {"message": error.message, "hint": error.hint, "code": error.code.value}
    if not tables:
        first = next(iter(failed.values()))
        raise HyperSharpError(f"no cube could be used: {first['message']}", first["hint"])
    summary = summarise(tables, methods)
    summary["cubes"] = {
        name: {
            "basis": table["ranking"]["basis"],
            "best": table["recommendation"]["method"],
            "order": [row["method"] for row in table["methods"] if row["rank"] is not None],
            "report": f"{name}/{comparison.REPORT}" if table["report"] else None,
        }
        for name, table in tables.items()
    }
    summary["failed_cubes"] = failed
    summary["pair"] = {
        "cubes": str(job.cubes),
        "ratio": job.ratio,
        "guide": job.simulated_guide,
        "snr_db": job.snr_db,
    }
    summary["settings"] = next(iter(tables.values()))["settings"]
    summary["versions"] = versions()
    summary["warnings"] = _warnings(tables)
    summary["seconds"] = round(time.monotonic() - started, 3)
    summary["report"] = job.report
    _write(summary, job, folder, PartControl(control, "", 0.95, 1.0))
    return comparison.finish(summary, folder)


def _one(
    job: CompareJob,
    methods: list[str],
    folder: Path,
    cube: Path,
    name: str,
    control: Control,
    span: tuple[float, float],
) -> dict[str, Any]:
    """Simulate one cube's pair and compare the methods on it."""
    middle = span[0] + SIMULATING_SHARE * (span[1] - span[0])
    make_folder(folder)
    pair = comparison.simulated_pair(job, cube, folder, PartControl(control, name, span[0], middle))
    own = replace(job, hs=pair["HS"], guide=pair["GUIDE"], cubes=None, extent=None, extent_crs=None)
    return comparison.compare_pair(
        own, methods, folder, control, reference=pair["REFERENCE"], span=(middle, span[1]), title=name
    )


def find_cubes(source: Path, results: Path) -> dict[str, Path]:
    """Return the cubes of a folder by name, sorted.

    Raises:
        HyperSharpError: no such folder, or no raster in it.
    """
    if not source.is_dir():
        raise HyperSharpError(f"no such folder: {source}", "name the folder that holds the cubes")
    if source.resolve() == results.resolve():
        raise HyperSharpError(
            "the results would go into the folder of cubes", "choose another folder for them"
        )
    found = sorted(
        p for p in source.iterdir() if p.suffix.lower() in comparison.CUBE_SUFFIXES and p.is_file()
    )
    if not found:
        suffixes = ", ".join(comparison.CUBE_SUFFIXES)
        raise HyperSharpError(f"no cube in {source}", f"cubes are rasters named *{suffixes}")
    names = [p.stem for p in found]
    return {p.stem if names.count(p.stem) == 1 else p.name: p for p in found}


def summarise(tables: Mapping[str, Mapping[str, Any]], methods: list[str]) -> dict[str, Any]:
    """Return one table of means over cubes.

    Means are over the cubes on which every method that ran anywhere succeeded, so that all columns compare like
    with like; a method that failed on some cube is ranked over the others and says on how many.
    """
    everywhere = [c for c, t in tables.items() if all(_ok(t, m) for m in methods if _ran(tables, m))]
    rows = []
    for method in [*methods, comparison_table.CONTROL]:
        own = {
            c: row
            for c, t in tables.items()
            if (row := comparison_table.row_of(t, method)) and not row["error"]
        }
        error = next((r["error"] for t in tables.values() if (r := comparison_table.row_of(t, method))), None)
        if not own and method == comparison_table.CONTROL:
            continue
        used = [own[c] for c in (everywhere if everywhere and all(c in own for c in everywhere) else own)]
        rows.append(_mean_row(method, used, error if not own else None))
    rows.sort(key=lambda row: (row["score"] is None, -(row["score"] or 0.0)))
    for place, row in enumerate((r for r in rows if r["score"] is not None), start=1):
        row["rank"] = place
    bases = {t["ranking"]["basis"] for t in tables.values()}
    basis = next((b for b in ranking.BASES if b in bases), None)
    summary: dict[str, Any] = {
        "kind": "compare",
        "methods": rows,
        "ranking": {
            "basis": basis,
            "indices": sorted({i for t in tables.values() for i in t["ranking"]["indices"]}),
            "explanation": (
                f"Means over {len(everywhere) or len(tables)} simulated pairs; every pair counts the same. "
                + ranking.explain(basis)
            ),
        },
    }
    summary["recommendation"] = comparison_table.recommend(summary)
    return summary


def _ok(table: Mapping[str, Any], method: str) -> bool:
    row = comparison_table.row_of(table, method)
    return row is not None and not row["error"]


def _ran(tables: Mapping[str, Mapping[str, Any]], method: str) -> bool:
    return any(_ok(table, method) for table in tables.values())


def _mean_row(method: str, rows: list[dict[str, Any]], error: dict[str, str] | None) -> dict[str, Any]:
    """Return the means of a method's rows (None where a value is missing on some cube)."""
    first = rows[0] if rows else None
    info = comparison_table.METHODS.get(method)
    score = _mean([r["score"] for r in rows])
    return {
        "method": method,
        "title": first["title"] if first else (info.title if info else method),
        "kind": first["kind"] if first else "",
        "rank": None,
        "score": score,
        "factor": ranking.factor(score),
        "cubes": len(rows),
        "mean_rank": _mean([r["rank"] for r in rows]),
        "seconds": _mean([r["seconds"] for r in rows]),
        "assess_seconds": _mean([r["assess_seconds"] for r in rows]),
        "peak_memory_bytes": max((r["peak_memory_bytes"] or 0 for r in rows), default=0) or None,
        "reused": bool(rows) and all(r["reused"] for r in rows),
        "fused": None,
        "error": error,
        **{
            section: {
                key: _mean([(r.get(section) or {}).get(key) for r in rows])
                for key in (first.get(section) if first else None) or {}
            }
            or None
            for section in comparison_table.SECTIONS
        },
    }


def _mean(values: list[Any]) -> float | None:
    """Return the mean; None when one is missing or there is none."""
    if not values or any(v is None for v in values):
        return None
    return float(sum(values) / len(values))


def _warnings(tables: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return every warning once, with the cubes that it is about."""
    said: dict[str, list[str]] = {}
    for name, table in tables.items():
        for text in table["warnings"]:
            said.setdefault(text, []).append(name)
    return [
        f"{'every pair' if len(names) == len(tables) > 1 else ', '.join(names)}: {text}"
        for text, names in said.items()
    ]


def _write(summary: dict[str, Any], job: CompareJob, folder: Path, control: Control) -> None:
    from .report.comparison import build_summary_report
    from .report.files import write_metrics, write_text

    write_metrics(summary, folder / comparison.TABLE_JSON)
    write_text(comparison_table.csv_text(summary), folder / comparison.TABLE_CSV)
    if job.report:
        control.stage("report", 1, 1.0)
        build_summary_report(summary, output=folder / comparison.REPORT)
        control.step()
