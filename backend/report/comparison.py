# SPDX-License-Identifier: GPL-2.0-or-later
"""The report of a comparison as one HTML file: recommendation, ranked tables, pictures, curves, spectra, costs."""

from __future__ import annotations

import datetime
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import rasterio
from rasterio.errors import RasterioError
from rasterio.windows import Window

from ..comparison_table import CONTROL, INTERPOLATION, SECTIONS, row_of, short
from ..errors import HyperSharpError
from ..io.raster import georeference_optional
from ..registry import METHODS
from .comparison_plots import HIGHLIGHTED, Curves, SpotSpectra, cost_plot, curves_plot, spectra_plot
from .files import write_text
from .indices import EXPLAINED, INDICES, PROTOCOLS, show, with_below
from .page import CITE_HYPERSHARP, pair_name
from .pictures import Views, load_views
from .plots import DARK, LIGHT, Theme, data_uri, location_plot, picture_png

HERE = Path(__file__).parent
PER_ROW = 4
"""Pictures side by side."""


def build_comparison_report(
    table: Mapping[str, Any],
    *,
    folder: str | os.PathLike[str],
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    output: str | os.PathLike[str],
    reference: str | os.PathLike[str] | None = None,
) -> None:
    """Write the report of a comparison on one pair.

    Args:
        table: content of compare.json.
        folder: where the methods' folders are.
        hs, guide: the pair.
        output: the HTML file; an existing one is replaced when the new one is whole.
        reference: the true fine image, where there is one.

    Raises:
        HyperSharpError: the file cannot be written. Rasters that cannot be read only cost their pictures.
    """
    done = [r for r in table["methods"] if r["fused"] and not r["error"]]
    views: dict[str, Views] = {}
    missing: list[str] = []
    for row in done:
        try:
            views[row["method"]] = load_views(Path(folder) / row["fused"], hs, guide)
        except HyperSharpError as error:
            missing.append(f"No picture of {short(row)}: {error.message}.")
    truth = None
    if reference is not None:
        try:
            truth = load_views(reference, hs, guide)
        except HyperSharpError as error:
            missing.append(f"No picture of the truth: {error.message}.")
    metrics = {r["method"]: _metrics(Path(folder) / r["method"] / "metrics.json") for r in done}
    first = views.get(done[0]["method"]) if done else None
    page = _page(table, f"Comparison of {len(done)} methods: {pair_name(hs, guide)}")
    page |= {
        "names": {"hs": Path(hs).name, "guide": Path(guide).name},
        "missing": missing,
        "overview": _overview(views, done),
        "details": _details(views, done, truth),
        "views": first,
        "plots": {
            "per_band": _both(lambda theme: _curves(done, metrics, first, theme)),
            "spectra": _spectra(Path(folder), done, views, reference),
            "cost": _cost(table),
            "location": _location(first),
        },
        "per_band_of": _curves_of(metrics),
        "facts": _facts(table, metrics),
    }
    write_text(_environment().get_template("comparison.html").render(page), output)


def build_summary_report(summary: Mapping[str, Any], *, output: str | os.PathLike[str]) -> None:
    """Write the report of a comparison over a folder of cubes; each cube's own report stands in its folder.

    Raises:
        HyperSharpError: the file cannot be written.
    """
    pair = summary["pair"]
    guide = "PAN" if pair["guide"] == "pan" else f"guide {pair['guide']}"
    page = _page(
        summary, f"Comparison on {len(summary['cubes'])} simulated pairs: ratio {pair['ratio']}, {guide}"
    )
    titles = {row["method"]: short(row) for row in summary["methods"]}
    page |= {
        "names": None,
        "missing": [f"{name} was left out: {e['message']}." for name, e in summary["failed_cubes"].items()],
        "cubes": [
            {
                "name": name,
                "best": titles.get(cube["best"], "–"),
                "order": ", ".join(titles.get(m, m) for m in cube["order"][:HIGHLIGHTED]),
                "report": cube["report"],
            }
            for name, cube in summary["cubes"].items()
        ],
        "plots": {"cost": _cost(summary)},
        "facts": _facts(summary, {}),
    }
    write_text(_environment().get_template("comparison.html").render(page), output)


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["with_below"] = with_below
    return environment


def _page(table: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Return what both kinds of report show."""
    text = table["recommendation"]["text"]
    best = table["recommendation"]["method"]
    level = (
        "unknown"
        if table["ranking"]["basis"] is None
        else "poor"
        if best in (None, INTERPOLATION)
        else "good"
    )
    version = (table.get("versions") or {}).get("hypersharp", "")
    ran = [r["method"] for r in table["methods"] if r["method"] in METHODS and not r["error"]]
    return {
        "title": title,
        "made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "level": level,
        "recommendation": text,
        "explanation": table["ranking"]["explanation"],
        "warnings": list(table.get("warnings") or []),
        "ranking": [_ranked(row) for row in table["methods"] if not row["error"]],
        "failed": [r for r in table["methods"] if r["error"]],
        "tables": [t for section in SECTIONS if (t := _section(table, section))],
        "cite": [
            CITE_HYPERSHARP.format(version=version).replace(" :", ":"),
            *(f"{METHODS[m].title}: {METHODS[m].citation}" for m in ran),
        ],
        "versions": list((table.get("versions") or {}).items()),
    }


def _ranked(row: Mapping[str, Any]) -> dict[str, str]:
    memory, seconds = row["peak_memory_bytes"], row["seconds"]
    return {
        "rank": str(row["rank"] or "–"),
        "title": str(row["title"]),
        "method": row["method"],
        "kind": str(row["kind"]),
        "factor": "–" if row["factor"] is None else f"{row['factor']:.2f}",
        "seconds": "–" if seconds is None else f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}",
        "memory": "–" if memory is None else f"{memory / 2**30:.2f}",
        "control": "yes" if row["method"] in (CONTROL, INTERPOLATION) else "",
        "mean_rank": f"{row['mean_rank']:.1f}" if row.get("mean_rank") else "",
    }


def _section(table: Mapping[str, Any], section: str) -> dict[str, Any] | None:
    """Return the table of one protocol: a line a method, a column an index, the best of each column marked."""
    rows = [r for r in table["methods"] if not r["error"] and r.get(section)]
    keys = [k for k in INDICES if any((r[section] or {}).get(k) is not None for r in rows)]
    if not keys:
        return None
    best: dict[str, str] = {}
    for key in keys:
        values = [r[section].get(key) for r in rows if r[section].get(key) is not None]
        best[key] = show(key, max(values) if INDICES[key].better == "higher" else min(values))
    return {
        "title": PROTOCOLS[section],
        "about": EXPLAINED[section],
        "heads": [
            {
                "name": INDICES[k].title,
                "unit": INDICES[k].unit,
                "better": {"higher": "▲", "lower": "▼"}[INDICES[k].better],
            }
            for k in keys
        ],
        "rows": [
            {
                "rank": str(r["rank"] or "–"),
                "title": short(r),
                "cells": [
                    {"text": (text := show(k, r[section].get(k))), "wins": text == best[k]} for k in keys
                ],
            }
            for r in rows
        ],
    }


def _metrics(path: Path) -> dict[str, Any]:
    """Return a metrics.json; empty when it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _overview(views: Mapping[str, Views], done: list[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the full extent of HS, guide and the method ranked first."""
    first = next((r for r in done if r["method"] in views), None)
    if first is None:
        return None
    own = views[first["method"]]
    rows, cols = own.shape
    labels = (
        ("hs", "HS image, interpolated"),
        ("guide", "Guide"),
        ("fused", f"{short(first)} (ranked first)"),
    )
    return {
        "title": f"Full extent, {cols} × {rows} pixels",
        "pictures": [
            {"label": label, "uri": data_uri(picture_png(own.overview[key]))} for key, label in labels
        ],
    }


def _details(
    views: Mapping[str, Views], done: list[dict[str, Any]], truth: Views | None
) -> dict[str, Any] | None:
    """Return the detail of every image side by side: HS, guide, the truth, then the methods by rank."""
    shown = [r for r in done if r["method"] in views]
    if not shown:
        return None
    own = views[shown[0]["method"]]
    pictures = [("HS image, interpolated", own.detail["hs"]), ("Guide", own.detail["guide"])]
    pictures += [("Truth", truth.detail["fused"])] if truth is not None else []
    pictures += [(f"{r['rank'] or '–'}. {short(r)}", views[r["method"]].detail["fused"]) for r in shown]
    cells = [{"label": label, "uri": data_uri(picture_png(image))} for label, image in pictures]
    width, height = own.detail_pixels
    return {
        "title": f"Detail, {width} × {height} pixels of the fused image, enlarged",
        "rows": [cells[i : i + PER_ROW] for i in range(0, len(cells), PER_ROW)],
        "width": 100 // PER_ROW,
    }


def _both(draw: Callable[[Theme], bytes | None]) -> dict[str, str] | None:
    """Return a plot for light and dark pages."""
    light = draw(LIGHT)
    dark = draw(DARK) if light is not None else None
    return None if light is None or dark is None else {"light": data_uri(light), "dark": data_uri(dark)}


def _curves_of(metrics: Mapping[str, Mapping[str, Any]]) -> str:
    """Return which comparison the curves over wavelength come from."""
    reduced = any((m.get("reduced_resolution") or {}).get("fused") for m in metrics.values())
    return "reduced-resolution protocol" if reduced else "comparison with the true image"


def _curves(
    done: list[dict[str, Any]], metrics: Mapping[str, Mapping[str, Any]], views: Views | None, theme: Theme
) -> bytes | None:
    with_curves = [(r, metrics[r["method"]].get("per_band")) for r in done if metrics.get(r["method"])]
    known = [(r, bands) for r, bands in with_curves if bands]
    if not known:
        return None
    control = Curves("interpolation", known[0][1].get("interpolated") or {})
    methods = [Curves(short(r), bands) for r, bands in known if r["method"] != INTERPOLATION]
    wavelengths = known[0][1].get("wavelength_nm") or []
    if not any(w is not None for w in wavelengths) and views is not None:
        wavelengths = views.wavelength_nm
    return curves_plot(methods, control, wavelengths, views.guide_ranges_nm if views else [], theme)


def _spectra(
    folder: Path,
    done: list[dict[str, Any]],
    views: Mapping[str, Views],
    reference: str | os.PathLike[str] | None,
) -> dict[str, str] | None:
    """Return the spectra of the methods ranked first at the pixels that the first one's page would choose."""
    shown = [r for r in done if r["method"] in views and r["method"] != INTERPOLATION][:HIGHLIGHTED]
    if not shown:
        return None
    own = views[shown[0]["method"]]
    spots = []
    for spot in own.spots:
        found: dict[str, np.ndarray] = {}
        for row in shown:
            # The pixels are chosen by the inputs, so the other methods' views hold them too, but for masks.
            known = (s.fused for s in views[row["method"]].spots if (s.row, s.col) == (spot.row, spot.col))
            spectrum = next(known, None)
            if spectrum is None:
                spectrum = _spectrum(folder / row["fused"], spot.row, spot.col)
            if spectrum is not None:
                found[short(row)] = spectrum
        truth = None if reference is None else _spectrum(Path(reference), spot.row, spot.col)
        if found:
            spots.append(SpotSpectra(spot, found, truth))
    return _both(
        lambda theme: spectra_plot(spots, own.wavelength_nm, own.hs_wavelength_nm, own.guide_ranges_nm, theme)
    )


def _spectrum(path: Path, row: int, col: int) -> np.ndarray | None:
    """Return one pixel's spectrum, NaN where invalid; None when it cannot be read."""
    try:
        with georeference_optional():
            dataset = rasterio.open(path)
        with dataset:
            if not (0 <= row < dataset.height and 0 <= col < dataset.width):
                return None
            values = dataset.read(window=Window(col, row, 1, 1), masked=True)
    except (RasterioError, OSError):
        return None
    return values.astype(np.float64).filled(np.nan)[:, 0, 0]


def _cost(table: Mapping[str, Any]) -> dict[str, str] | None:
    rows = [r for r in table["methods"] if r["method"] not in (CONTROL, INTERPOLATION) and not r["error"]]
    return _both(lambda theme: cost_plot(rows, [short(r) for r in rows], theme))


def _location(views: Views | None) -> dict[str, str] | None:
    if views is None or not views.spots:
        return None
    uri = data_uri(location_plot(views.overview["fused"], views.spots, views.detail_box, LIGHT))
    return {"light": uri, "dark": uri}


def _facts(table: Mapping[str, Any], metrics: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Return how the comparison was made, line by line."""
    settings = table.get("settings") or {}
    mtf = settings.get("mtf") or {}
    lines = [
        ("Ratio", next((f"{m['ratio']:g}" for m in metrics.values() if m.get("ratio")), "")),
        ("Sensor blur (MTF gain at Nyquist)", ", ".join(f"{k} {v:g}" for k, v in mtf.items())),
        ("Device", str(settings.get("device", ""))),
        ("Pixel type", str(settings.get("dtype", ""))),
        ("Memory bound", f"{settings['memory_gb']:g} GB" if settings.get("memory_gb") else ""),
        ("Seed", str(settings.get("seed", ""))),
        ("Time in all", f"{table['seconds']:.0f} s" if table.get("seconds") else ""),
        ("Taken over from an earlier run", ", ".join(r["method"] for r in table["methods"] if r["reused"])),
    ]
    pair = table.get("pair") or {}
    if "ratio" in pair:
        lines[0] = ("Ratio", str(pair["ratio"]))
        lines.insert(1, ("Simulated guide", str(pair["guide"])))
        lines.insert(
            2, ("Noise of the HS image", "none" if pair["snr_db"] is None else f"{pair['snr_db']:g} dB")
        )
    control = row_of(table, INTERPOLATION) or row_of(table, CONTROL)
    if control is not None:
        lines.append(("Control", "plain (cubic) interpolation of the HS image, through the same steps"))
    return [(name, value) for name, value in lines if value]
