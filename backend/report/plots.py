# SPDX-License-Identifier: GPL-2.0-or-later
"""The report's plots and pictures as PNG data URIs, for light and dark pages, readable for the colour-blind."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from typing import Any

import matplotlib
import matplotlib.ticker
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.image import imsave
from PIL import Image  # matplotlib needs it itself

from ..maps import COLOURS
from .pictures import Spot, Views, enlarge

Array = np.ndarray


@dataclass(frozen=True)
class Theme:
    """Colours of a plot: paper, ink, grid, and the curves (Okabe and Ito's palette)."""

    paper: str
    ink: str
    soft: str
    grid: str
    fused: str
    control: str
    shade: str


LIGHT = Theme("#ffffff", "#24292f", "#57606a", "#d8dee4", "#0072b2", "#d55e00", "#e69f00")
DARK = Theme("#161b22", "#e6edf3", "#9aa4af", "#30363d", "#56b4e9", "#f0a35e", "#e69f00")
DPI = 144
NO_VALUE = 255
"""Palette index of map pixels without a value."""
NO_VALUE_GREY = np.array([[160, 160, 160]])
MAP_COLOURS = np.rint(
    LinearSegmentedColormap.from_list("map", COLOURS)(np.linspace(0, 1, NO_VALUE))[:, :3] * 255
)
"""The style of the GeoTIFFs (`maps.COLOURS`) in 255 steps, `[255, 3]`."""
SPOT_MARKS = {"bright": "A", "dark": "B", "vegetation": "C", "edge": "D"}


def data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")


def picture_png(image: Array) -> bytes:
    """Return uint8 `[rows, cols, 3]` as PNG, small pictures enlarged."""
    buffer = io.BytesIO()
    imsave(buffer, enlarge(image), format="png", metadata={"Software": None})
    return buffer.getvalue()


def map_png(values: Array, top: float) -> bytes:
    """Return a map `[rows, cols]` as a PNG of 256 colours: 0 to `top` along the colours, no value in grey.

    Small maps are enlarged.
    """
    with np.errstate(invalid="ignore"):
        levels = np.rint(np.clip(values / top, 0, 1) * (NO_VALUE - 1))
    return _palette_png(enlarge(np.where(np.isfinite(values), levels, NO_VALUE).astype(np.uint8)))


def ramp_png() -> bytes:
    """Return the maps' colours from left to right, for the bar below them."""
    return _palette_png(np.arange(NO_VALUE, dtype=np.uint8)[None].repeat(8, axis=0))


def _palette_png(indices: Array) -> bytes:
    """Return `[rows, cols]` uint8 as PNG with the maps' palette: a third of the size of true colour."""
    image = Image.fromarray(indices)
    image.putpalette((np.vstack([MAP_COLOURS, NO_VALUE_GREY])).astype(np.uint8).tobytes())
    buffer = io.BytesIO()
    image.save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def _figure(width: float, height: float, theme: Theme, layout: str | None = None) -> Figure:
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor=theme.paper, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _panels(count: int, theme: Theme) -> tuple[Figure, list[Axes]]:
    """Return a figure with panels side by side and room for one legend below."""
    figure = _figure(11.0, 3.1, theme)
    # Set by hand: finding the layout automatically takes longer than drawing the plot.
    figure.subplots_adjust(left=0.052, right=0.985, top=0.905, bottom=0.245, wspace=0.24)
    return figure, [figure.add_subplot(1, count, i + 1) for i in range(count)]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=figure.get_facecolor(), metadata={"Software": None})
    return buffer.getvalue()


def _dress(axes: Axes, theme: Theme, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(title, color=theme.ink, fontsize=9.5, loc="left", fontweight="bold")
    axes.set_xlabel(xlabel, color=theme.soft, fontsize=8)
    axes.set_ylabel(ylabel, color=theme.soft, fontsize=8)
    axes.tick_params(colors=theme.soft, labelsize=7.5, length=3)
    axes.grid(True, color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(theme.grid)


def curve(x: list[float | None], values: Any) -> tuple[Array, Array]:
    """Return a curve sorted by x, broken (NaN) over gaps in the spectrum and where a value is missing."""
    xs = np.array([np.nan if v is None else float(v) for v in x])
    ys = np.array([np.nan if v is None else float(v) for v in values])
    known = np.isfinite(xs)
    order = np.argsort(xs[known], kind="stable")
    xs, ys = xs[known][order], ys[known][order]
    steps = np.diff(xs)
    if steps.size == 0:
        return xs, ys
    gaps = np.flatnonzero(steps > max(5 * float(np.median(steps)), 60.0)) + 1
    return np.insert(xs, gaps, np.nan), np.insert(ys, gaps, np.nan)


def axis_of(wavelengths: list[float | None], count: int) -> tuple[list[float | None], str]:
    """Return the horizontal axis of `count` bands: wavelengths in nm where known, else band numbers."""
    if len(wavelengths) == count and sum(w is not None for w in wavelengths) > count // 2:
        return wavelengths, "wavelength (nm)"
    return [float(i + 1) for i in range(count)], "band"


def _shade(axes: Axes, ranges: list[tuple[float, float]], theme: Theme, xlabel: str) -> bool:
    """Shade the guide's bands where they can be placed."""
    if not ranges or not xlabel.startswith("wavelength"):
        return False
    for lower, upper in ranges:
        axes.axvspan(lower, upper, color=theme.shade, alpha=0.16, linewidth=0)
    return True


def _line(
    axes: Axes, x: Array, y: Array, colour: str, label: str, style: str = "-", width: float = 1.5
) -> None:
    axes.plot(x, y, style, color=colour, linewidth=width, label=label)
    # A value between two gaps has no line: it gets a dot.
    finite = np.isfinite(y)
    before, after = np.roll(finite, 1), np.roll(finite, -1)
    if y.size:
        before[0] = after[-1] = False
    lone = finite & ~before & ~after
    if lone.any():
        axes.plot(x[lone], y[lone], ".", color=colour, markersize=3)


def per_band_plot(
    per_band: dict[str, Any], ranges: list[tuple[float, float]], name: str, theme: Theme
) -> bytes | None:
    """Return PSNR, RMSE and CC of every band over wavelength, with interpolation's where given; None if none."""
    control = per_band.get("interpolated") or {}
    panels = [
        (key, label)
        for key, label in (("PSNR", "PSNR (dB)"), ("RMSE", "RMSE (data units)"), ("CC", "CC"))
        if any(v is not None for v in per_band.get(key) or [])
    ]
    if not panels:
        return None
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure, plots = _panels(len(panels), theme)
        shaded = False
        for axes, (key, label) in zip(plots, panels):
            values = per_band[key]
            x, xlabel = axis_of(per_band.get("wavelength_nm") or [], len(values))
            shaded |= _shade(axes, ranges, theme, xlabel)
            if len(control.get(key) or []) == len(values):
                _line(axes, *curve(x, control[key]), theme.control, "interpolation", "--", 1.2)
            _line(axes, *curve(x, values), theme.fused, name)
            _dress(axes, theme, label, xlabel, "")
        _legend(figure, theme, shaded)
        return _png(figure)


def curves_plot(curves: dict[str, list[float]], theme: Theme) -> bytes | None:
    """Return how the prior's data terms fell with the diffusion's steps, on a logarithmic scale; None without any."""
    shown = {
        "misfit with the HS image": (curves.get("hs"), theme.fused, "-"),
        "misfit with the guide": (curves.get("guide"), theme.control, "--"),
    }
    shown = {label: entry for label, entry in shown.items() if entry[0]}
    if not shown:
        return None
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = _figure(5.4, 3.3, theme)
        figure.subplots_adjust(left=0.14, right=0.97, top=0.905, bottom=0.245)
        axes = figure.add_subplot()
        for label, (values, colour, style) in shown.items():
            y = np.array([v if v is not None and v > 0 else np.nan for v in values])
            axes.plot(np.arange(len(y)), y, style, color=colour, linewidth=1.5, label=label)
            axes.plot(np.arange(len(y)), y, ".", color=colour, markersize=3.5)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(matplotlib.ticker.FormatStrFormatter("%g"))
        axes.yaxis.set_minor_formatter(matplotlib.ticker.NullFormatter())
        axes.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(integer=True))
        _dress(axes, theme, "Data terms", "step", "RMS (standard deviations)")
        _legend(figure, theme, False)
        return _png(figure)


def _legend(figure: Figure, theme: Theme, shaded: bool) -> None:
    """Put one legend for all panels under the figure."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    if shaded:
        handles["range of the guide's bands"] = matplotlib.patches.Patch(color=theme.shade, alpha=0.25)
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=theme.ink,
    )


def spectra_plot(views: Views, name: str, theme: Theme) -> bytes | None:
    """Return spectra before and after at the chosen pixels; None without any."""
    if not views.spots:
        return None
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure, plots = _panels(len(views.spots), theme)
        shaded = False
        for axes, spot in zip(plots, views.spots):
            x, xlabel = axis_of(views.wavelength_nm, len(spot.fused))
            shaded |= _shade(axes, views.guide_ranges_nm, theme, xlabel)
            if spot.hs is not None:
                hs_x, _ = axis_of(views.hs_wavelength_nm, len(spot.hs))
                _line(
                    axes, *curve(hs_x, spot.hs), theme.control, "HS pixel that covers it (before)", "--", 1.2
                )
            _line(axes, *curve(x, spot.fused), theme.fused, f"fused pixel (after, {name})")
            _dress(axes, theme, f"{SPOT_MARKS[spot.name]}  {spot.name}", xlabel, "")
        _legend(figure, theme, shaded)
        return _png(figure)


def location_plot(
    image: Array, spots: list[Spot], box: tuple[float, float, float, float], theme: Theme
) -> bytes:
    """Return the fused picture with the chosen pixels and the detail's outline marked."""
    rows, cols = image.shape[:2]
    side = 3.4
    figure = Figure(
        figsize=(side, side * rows / cols) if cols >= rows else (side * cols / rows, side),
        dpi=DPI,
        facecolor=theme.paper,
    )
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(image, interpolation="nearest", aspect="auto", extent=(0, 1, 1, 0))
    left, top, right, bottom = box
    outline = ([left, right, right, left, left], [top, top, bottom, bottom, top])
    axes.plot(*outline, color="black", linewidth=2.6)
    axes.plot(*outline, color="white", linewidth=1.2)
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        for spot in spots:
            x, y = spot.at
            axes.plot(x, y, "o", ms=8, mfc="none", mec="black", mew=2.8)
            axes.plot(x, y, "o", ms=8, mfc="none", mec="white", mew=1.3)
            away = (9 if x < 0.88 else -9, 0)
            axes.annotate(
                SPOT_MARKS[spot.name],
                (x, y),
                xytext=away,
                textcoords="offset points",
                ha="left" if away[0] > 0 else "right",
                va="center",
                color="white",
                fontsize=9,
                fontweight="bold",
                bbox={"boxstyle": "round,pad=0.18", "facecolor": "#000000b0", "edgecolor": "none"},
            )
    axes.set_xlim(0, 1)
    axes.set_ylim(1, 0)
    axes.set_axis_off()
    return _png(figure)


def quicklook_png(views: Views, title: str, method: str) -> bytes:
    """Return one picture with three panels: HS interpolated, guide, fused; full extent above, detail below."""
    names = (("hs", "HS, interpolated"), ("guide", "Guide"), ("fused", f"Fused ({method})"))
    rows, cols = views.overview["fused"].shape[:2]
    panel = 3.6
    heights = [panel * rows / cols, panel]
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = _figure(3 * panel + 0.2, sum(heights) + 0.95, LIGHT, "constrained")
        grid = figure.add_gridspec(2, 3, height_ratios=heights)
        figure.suptitle(title, fontsize=12, color=LIGHT.ink, fontweight="bold")
        for row, pictures in enumerate((views.overview, views.detail)):
            for col, (key, label) in enumerate(names):
                axes = figure.add_subplot(grid[row, col])
                axes.imshow(pictures[key], interpolation="nearest")
                axes.set_xticks([])
                axes.set_yticks([])
                for spine in axes.spines.values():
                    spine.set_color(LIGHT.grid)
                if row == 0:
                    axes.set_title(label, fontsize=10.5, color=LIGHT.ink)
                    height, width = pictures[key].shape[:2]
                    left, top, right, bottom = views.detail_box
                    outline = (
                        np.array([left, right, right, left, left]) * width - 0.5,
                        np.array([top, top, bottom, bottom, top]) * height - 0.5,
                    )
                    axes.plot(*outline, color="black", linewidth=2.0)
                    axes.plot(*outline, color="white", linewidth=0.9)
        return _png(figure)
