# SPDX-License-Identifier: GPL-2.0-or-later
"""The report as one HTML file that needs nothing else: no network, no script."""

from __future__ import annotations

import datetime
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2

from ..errors import HyperSharpError
from ..maps import DATA_UNITS, MapPicture
from .files import write_text
from .indices import (
    EXPLAINED,
    PROTOCOLS,
    index_rows,
    method_name,
    number,
    per_band_protocol,
    short_name,
    show,
    with_below,
)
from .pictures import Views, load_views
from .plots import (
    DARK,
    LIGHT,
    curves_plot,
    data_uri,
    location_plot,
    map_png,
    per_band_plot,
    picture_png,
    quicklook_png,
    ramp_png,
    spectra_plot,
)
from .stages import PRIOR, StagePicture, curves_of, prior_facts, stage_rows
from .verdict import EXPLANATION, judge

HERE = Path(__file__).parent
MAP_TEXTS = {
    "SAM": "Angle between the reduced image's fused spectrum and the HS image's own, HS pixel by HS pixel.",
    "RMSE": "Error of the same comparison over all bands, in the HS image's units.",
    "D_rho": "Lack of correlation with the guide in a window of one HS pixel around each fine pixel: missing detail.",
    "SAM_reference": "Angle between fused and true spectrum, pixel by pixel.",
    "RMSE_reference": "Error over all bands against the true image, in the HS image's units.",
}
"""What each map shows, by `maps.KINDS`."""
PICTURES = (
    ("hs", "HS image, interpolated"),
    ("guide", "Guide"),
    (PRIOR, "Prior, drawn by diffusion"),
    ("fused", "Fused"),
)
CITE_HYPERSHARP = "HyperSharp {version}: hyperspectral fusion for QGIS and Python (GPL-2.0-or-later)"


def build_report(
    metrics: dict[str, Any],
    *,
    fused: str | os.PathLike[str],
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    output: str | os.PathLike[str],
    title: str | None = None,
    notes: dict[str, Any] | None = None,
    maps: Sequence[MapPicture] = (),
    prior: StagePicture | None = None,
) -> None:
    """Write the quality report.

    Whatever `metrics` lacks is left out of the page or shown as missing with its reason.

    Args:
        metrics: content of metrics.json.
        fused: the fused raster.
        hs: the hyperspectral raster that it was made from.
        guide: the panchromatic or multispectral raster that it was made from.
        output: the HTML file to write; an existing one is replaced when the new one is whole.
        title: heading; None for one made from the method and the inputs.
        notes: more lines for "What was done to the inputs".
        maps: where the errors are.
        prior: what a method drew before it fused; None for none.

    Raises:
        HyperSharpError: the file cannot be written. Rasters that cannot be read only cost the pictures.
    """
    missing = ""
    views: Views | None = None
    try:
        views = load_views(fused, hs, guide, prior)
    except HyperSharpError as error:
        missing = f"No pictures and spectra: {error.message}."
    names = {"fused": Path(fused).name, "hs": Path(hs).name, "guide": Path(guide).name}
    if title is None:
        title = f"{short_name(metrics)}: {pair_name(hs, guide)}"
    write_text(render(metrics, views, names, title=title, notes=notes, missing=missing, maps=maps), output)


def render(
    metrics: dict[str, Any],
    views: Views | None,
    names: dict[str, str],
    *,
    title: str | None = None,
    notes: dict[str, Any] | None = None,
    missing: str = "",
    maps: Sequence[MapPicture] = (),
) -> str:
    """Return the page as HTML text; arguments as in `build_report`, with the rasters already read."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["with_below"] = with_below
    name = short_name(metrics)
    page = {
        "title": title or f"{name}: {names['hs']} + {names['guide']}",
        "names": names,
        "method": name,
        "made": datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        "verdict": judge(metrics),
        "explanation": EXPLANATION,
        "tables": _tables(metrics),
        "views": views,
        "missing": missing,
        "inputs": _inputs(metrics),
        "per_band_of": _per_band_of(metrics),
        "done": _done(metrics, notes or {}),
        "how": _how(metrics),
        "details": _pairs({k: v for k, v in (metrics.get("method_details") or {}).items() if k != PRIOR}),
        "stages": stage_rows(metrics),
        "prior": _pairs(prior_facts(metrics)),
        "warnings": [str(w) for w in metrics.get("warnings") or []],
        "versions": _pairs(metrics.get("versions") or {}),
        "cite": _cite(metrics),
        "pictures": _pictures(views) if views else [],
        "plots": _plots(metrics, views, name),
        "maps": [_map(picture) for picture in maps if picture.mean is not None],
        "ramp": data_uri(ramp_png()) if maps else "",
    }
    return environment.get_template("report.html").render(page)


def pair_name(hs: str | os.PathLike[str], guide: str | os.PathLike[str]) -> str:
    """Return a name for a pair: the files' names, with their folder's where these say little ("hs", "guide")."""
    one, two = Path(hs), Path(guide)
    both = f"{one.stem} + {two.stem}"
    if min(len(one.stem), len(two.stem)) <= 5 and one.parent == two.parent and one.parent.name:
        return f"{one.parent.name} ({both})"
    return both


def _pictures(views: Views) -> list[dict[str, Any]]:
    """Return the two rows of three pictures, of four where there is a prior."""
    width, height = views.detail_pixels
    rows, cols = views.shape
    shown = [
        {
            "title": title,
            "aspect": images["fused"].shape[0] / images["fused"].shape[1],
            "pictures": [
                {"label": label, "uri": data_uri(picture_png(images[key]))}
                for key, label in PICTURES
                if key in images
            ],
        }
        for title, images in (
            (f"Full extent, {cols} × {rows} pixels", views.overview),
            (f"Detail, {width} × {height} pixels of the fused image, enlarged", views.detail),
        )
    ]
    return shown if (height, width) != (rows, cols) else shown[:1]


def _plots(metrics: dict[str, Any], views: Views | None, name: str) -> dict[str, dict[str, str] | None]:
    """Return each plot as {"light": URI, "dark": URI}, or None where there is nothing to plot."""
    per_band = dict(metrics.get("per_band") or {})
    ranges = views.guide_ranges_nm if views else []
    if views and not any(w is not None for w in per_band.get("wavelength_nm") or []):
        per_band["wavelength_nm"] = views.wavelength_nm
    plots: dict[str, dict[str, str] | None] = {}
    for key, draw in (
        ("per_band", lambda theme: per_band_plot(per_band, ranges, name, theme)),
        ("spectra", lambda theme: spectra_plot(views, name, theme) if views else None),
        ("curves", lambda theme: curves_plot(curves_of(metrics), theme)),
    ):
        light = draw(LIGHT)
        dark = draw(DARK) if light is not None else None
        plots[key] = (
            None if light is None or dark is None else {"light": data_uri(light), "dark": data_uri(dark)}
        )
    plots["location"] = None
    if views and views.spots:
        uri = data_uri(location_plot(views.overview["fused"], views.spots, views.detail_box, LIGHT))
        plots["location"] = {"light": uri, "dark": uri}
    return plots


def _map(picture: MapPicture) -> dict[str, Any]:
    """Return a map for the page: the picture, the labels of its colours, and what it says."""
    kind, key = picture.kind, picture.kind.key.partition("_ref")[0]
    return {
        "title": kind.title,
        "uri": data_uri(map_png(picture.values, picture.top)),
        "scale": [_with_unit(f"{picture.top * share:.3g}", picture.unit) for share in (0, 0.5, 1)],
        "mean": _with_unit(show(key, picture.mean), picture.unit),
        "about": MAP_TEXTS[kind.key],
        "shrunk": f"Each point stands for {picture.factor} × {picture.factor} pixels."
        if picture.factor > 1
        else "",
    }


def _with_unit(value: str, unit: str) -> str:
    return value + ("°" if unit == "degrees" else f" {unit}" if unit not in ("", DATA_UNITS) else "")


def _tables(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tables of indices, one a protocol, with the reasons of what is missing."""
    tables = []
    for protocol, title in PROTOCOLS.items():
        rows = [r for r in index_rows(metrics) if r.protocol == protocol]
        if not rows:
            if protocol != "reference":
                tables.append({"title": title, "about": _absent(metrics, protocol), "rows": []})
            continue
        tables.append(
            {
                "title": title,
                "about": EXPLAINED[protocol],
                "control": any(r.control is not None for r in rows),
                "rows": [
                    {
                        "name": r.text.title.partition("_")[0],
                        "below": r.text.title.partition("_")[2],
                        "unit": r.text.unit,
                        "says": r.text.says,
                        "variant": r.variant.replace("_lambda_K", "_λ,K")
                        .replace("_lambda", "_λ")
                        .replace("_s_R", "_s,R"),
                        "fused": show(r.key, r.fused),
                        "interpolated": show(r.key, r.control),
                        "better": {"higher": "higher ▲", "lower": "lower ▼"}.get(r.better, ""),
                        "reason": r.reason,
                        "missing": r.fused is None,
                        "wins": {1: "fused", -1: "interpolated"}.get(r.gain or 0, ""),
                    }
                    for r in rows
                ],
            }
        )
    return tables


def _absent(metrics: dict[str, Any], protocol: str) -> str:
    """Return why a whole protocol is missing."""
    reason = (metrics.get("reasons") or {}).get(protocol)
    if isinstance(reason, str) and reason:
        return f"Not computed: {reason.rstrip('.')}."
    if protocol == "reduced_resolution" and not metrics.get("method"):
        return "Not computed: how the image was made is not known, so it cannot be made again at reduced resolution."
    return "Not computed."


def _per_band_of(metrics: dict[str, Any]) -> str:
    """Return which comparison the curves come from, in words."""
    reduced = per_band_protocol(metrics) == "reduced_resolution"
    return "reduced-resolution protocol" if reduced else "comparison with the true image"


def _inputs(metrics: dict[str, Any]) -> list[dict[str, str]]:
    """Return one line per input raster."""
    lines = []
    for role, label in (("hs", "HS image"), ("guide", "Guide"), ("reference", "True image")):
        raster = (metrics.get("inputs") or {}).get(role)
        if not raster:
            continue
        size = raster.get("pixel_size")
        if isinstance(size, (list, tuple)):
            size = " × ".join(f"{v:g}" for v in dict.fromkeys(size))
        lines.append(
            {
                "role": label,
                "name": str(raster.get("name", "")),
                "bands": _text(raster.get("bands")),
                "shape": f"{raster['cols']} × {raster['rows']}" if {"cols", "rows"} <= set(raster) else "–",
                "pixel": _text(size),
                "crs": _text(raster.get("crs"), "none"),
                "dtype": _text(raster.get("dtype")),
                "nodata": _text(raster.get("nodata"), "none"),
            }
        )
    return lines


def _text(value: Any, absent: str = "–") -> str:
    """Return any value as a person would write it."""
    if value is None or value == "" or value == []:
        return absent
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_text(v)}" for k, v in value.items())
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_text(v) for v in value[:12])
        return shown + (f", ... ({len(value)} in all)" if len(value) > 12 else "")
    return str(value)


def _pairs(values: dict[str, Any]) -> list[tuple[str, str]]:
    return [(str(key).replace("_", " "), _text(value)) for key, value in values.items()]


def _done(metrics: dict[str, Any], notes: dict[str, Any]) -> list[tuple[str, str]]:
    """Return what was done to the inputs, line by line."""
    grid = (metrics.get("inputs") or {}).get("grid") or {}
    ratio, true = grid.get("ratio", metrics.get("ratio")), number(grid.get("true_ratio"))
    lines: list[tuple[str, str]] = []
    if ratio is not None:
        differs = true is not None and abs(true - float(ratio)) > 1e-3
        lines.append(("Ratio", f"{_text(ratio)}" + (f" (true ratio {true:.4g})" if differs else "")))
    if "resampled" in grid:
        done = "HS image resampled once" if grid["resampled"] else "none: HS values used as they are"
        lines.append(("Resampling", done))
    if grid.get("note"):
        lines.append(("Grid", str(grid["note"])))
    moved = grid.get("hs_moved_pixels")
    if moved:
        way = (
            f"moved by {moved[0]} rows and {moved[1]} columns of the guide"
            if any(moved)
            else "as georeferenced"
        )
        lines.append(("Place of the HS image", way))
    bands = metrics.get("bands") or {}
    if bands:
        left_out = [f"{kind}: {_text(bands[kind])}" for kind in bands if kind != "usable" and bands[kind]]
        lines.append(("Bands fused", _text(bands.get("usable"))))
        lines.append(("Bands only interpolated", "; ".join(left_out) or "none"))
    mtf = metrics.get("mtf") or {}
    if mtf:
        lines.append(("Sensor blur (MTF gain at Nyquist)", _text(mtf)))
    if metrics.get("alignment"):
        lines.append(("Alignment", _text(metrics["alignment"])))
    return lines + _pairs(notes)


def _how(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the method, its parameters and the run."""
    method = metrics.get("method")
    lines = [
        ("Method", f"{method_name(metrics)}{f', id {method}' if method and metrics.get('title') else ''}")
    ]
    parameters = metrics.get("parameters") or {}
    lines.append(("Parameters", _text(parameters) if parameters else "defaults"))
    if metrics.get("weights"):
        lines.append(("Weights", _text(metrics["weights"])))
    device = metrics.get("device_note") or metrics.get("device")
    if device:
        lines.append(("Device", str(device)))
    seconds = number(metrics.get("seconds"))
    if seconds is not None:
        lines.append(("Time", f"{seconds:.1f} s" if seconds < 120 else f"{seconds / 60:.1f} min"))
    if metrics.get("seed") is not None:
        lines.append(("Seed", _text(metrics["seed"])))
    return lines


def _cite(metrics: dict[str, Any]) -> list[str]:
    version = (metrics.get("versions") or {}).get("hypersharp", "")
    own = CITE_HYPERSHARP.format(version=version).replace(" :", ":")
    return [*([f"{method_name(metrics)}: {metrics['citation']}"] if metrics.get("citation") else []), own]


def quicklook(
    fused: str | os.PathLike[str],
    hs: str | os.PathLike[str],
    guide: str | os.PathLike[str],
    output_png: str | os.PathLike[str],
    title: str = "",
    method: str = "",
) -> None:
    """Write one picture: HS interpolated, guide and fused side by side, whole and in detail, HS stretch.

    Raises:
        HyperSharpError: a raster cannot be read or the file cannot be written.
    """
    views = load_views(fused, hs, guide)
    png = quicklook_png(views, title or pair_name(hs, guide), method or Path(fused).stem)
    target = Path(output_png)
    part = target.with_name(target.name + ".part")
    try:
        part.write_bytes(png)
        os.replace(part, target)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise HyperSharpError(f"cannot write {target}: {error.strerror}", "choose another folder") from error
