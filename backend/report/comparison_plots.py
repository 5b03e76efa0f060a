# SPDX-License-Identifier: GPL-2.0-or-later
"""Plots of several methods at once: curves over wavelength, spectra, and what quality costs in time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from .pictures import Spot
from .plots import LIGHT, SPOT_MARKS, Theme, _dress, _figure, _line, _png, _shade, axis_of, curve

COLOURS = {
    True: ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00"),
    False: ("#56b4e9", "#e69f00", "#2fc79b", "#e5a3cb", "#f0a35e"),
}
"""Colours of the methods ranked first (Okabe and Ito), for light (True) and dark pages."""
STYLES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
HIGHLIGHTED = len(STYLES)
"""So many methods get a colour and a line style of their own; the others are drawn thin and grey."""
CLEARLY = 1.03
PANELS = (("PSNR", "PSNR (dB)"), ("RMSE", "RMSE (data units)"), ("CC", "CC"))


@dataclass(frozen=True)
class Curves:
    """One method's curves.

    Attributes:
        name: for the legend.
        values: by index, one value a band (None where missing).
    """

    name: str
    values: Mapping[str, Sequence[float | None]]


def curves_plot(
    methods: Sequence[Curves],
    control: Curves | None,
    wavelength_nm: list[float | None],
    ranges: list[tuple[float, float]],
    theme: Theme,
) -> bytes | None:
    """Return PSNR, RMSE and CC of every band for all methods, best method first in `methods`; None if none."""
    panels = [(k, label) for k, label in PANELS if any(_has(m, k) for m in methods)]
    if not panels:
        return None
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = _figure(11.0, 3.9, theme)
        figure.subplots_adjust(left=0.052, right=0.992, top=0.93, bottom=0.27, wspace=0.24)
        shaded = False
        for index, (key, label) in enumerate(panels):
            axes = figure.add_subplot(1, len(panels), index + 1)
            drawn = [m for m in methods if _has(m, key)]
            x, xlabel = axis_of(wavelength_nm, len(drawn[0].values[key]))
            shaded |= _shade(axes, ranges, theme, xlabel)
            if control is not None and _has(control, key):
                axes.plot(*curve(x, control.values[key]), ":", color=theme.ink, lw=1.3, label=control.name)
            # The best is drawn last, on top.
            for place, method in reversed(list(enumerate(drawn))):
                _method_line(axes, place, *curve(x, method.values[key]), method.name, theme)
            _dress(axes, theme, label, xlabel, "")
        _legend_below(figure, theme, shaded, [m.name for m in methods])
        return _png(figure)


def _has(curves: Curves, key: str) -> bool:
    return any(v is not None for v in curves.values.get(key) or [])


def _method_line(axes: Axes, place: int, x: Any, y: Any, name: str, theme: Theme) -> None:
    if place >= HIGHLIGHTED:
        axes.plot(x, y, "-", color=theme.soft, alpha=0.35, linewidth=0.8, label="the other methods", zorder=1)
        return
    colour = COLOURS[theme is LIGHT][place]
    axes.plot(x, y, linestyle=STYLES[place], color=colour, linewidth=1.7 if place == 0 else 1.2, label=name)


def _legend_below(figure: Figure, theme: Theme, shaded: bool, order: Sequence[str]) -> None:
    """Put one legend for all panels under the figure, in order of rank."""
    handles: dict[str, Any] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels()):
            handles.setdefault(label, handle)
    first = [name for name in order if name in handles]
    names = first + [name for name in handles if name not in first]
    if shaded:
        handles["range of the guide's bands"] = matplotlib.patches.Patch(color=theme.shade, alpha=0.25)
        names.append("range of the guide's bands")
    figure.legend(
        [handles[n] for n in names],
        names,
        loc="lower center",
        ncols=4,
        frameon=False,
        fontsize=8,
        labelcolor=theme.ink,
        handlelength=3.2,
    )


@dataclass(frozen=True)
class SpotSpectra:
    """The spectra of all shown methods at one pixel: by name, best method first; `truth` where there is one."""

    spot: Spot
    methods: Mapping[str, np.ndarray]
    truth: np.ndarray | None = None


def spectra_plot(
    spots: Sequence[SpotSpectra],
    wavelength_nm: list[float | None],
    hs_wavelength_nm: list[float | None],
    ranges: list[tuple[float, float]],
    theme: Theme,
) -> bytes | None:
    """Return the spectra at the chosen pixels; None without any."""
    if not spots:
        return None
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = _figure(11.0, 3.9, theme)
        figure.subplots_adjust(left=0.052, right=0.992, top=0.93, bottom=0.27, wspace=0.24)
        shaded = False
        for index, entry in enumerate(spots):
            axes = figure.add_subplot(1, len(spots), index + 1)
            x, xlabel = axis_of(wavelength_nm, len(next(iter(entry.methods.values()))))
            shaded |= _shade(axes, ranges, theme, xlabel)
            if entry.spot.hs is not None:
                hs_x, _ = axis_of(hs_wavelength_nm, len(entry.spot.hs))
                axes.plot(
                    *curve(hs_x, entry.spot.hs), ":", color=theme.ink, lw=1.3, label="HS pixel that covers it"
                )
            if entry.truth is not None:
                _line(axes, *curve(x, entry.truth), theme.soft, "truth", "-", 2.6)
            for place, (name, spectrum) in reversed(list(enumerate(entry.methods.items()))):
                _method_line(axes, place, *curve(x, spectrum), name, theme)
            title = f"{SPOT_MARKS[entry.spot.name]}  {entry.spot.name}"
            _dress(axes, theme, title, xlabel, "value" if index == 0 else "")
        _legend_below(figure, theme, shaded, list(spots[0].methods))
        return _png(figure)


def cost_plot(rows: Sequence[Mapping[str, Any]], names: Sequence[str], theme: Theme) -> bytes | None:
    """Return error reduction over fusing time, one dot a method; None with fewer than two methods to show.

    Named are the one ranked first and those that are clearly better than every faster one.
    """
    shown = [(n, r) for n, r in zip(names, rows) if r.get("factor") and r.get("seconds")]
    if len(shown) < 2:
        return None
    with matplotlib.rc_context({"font.family": "DejaVu Sans"}):
        figure = _figure(8.0, 3.6, theme)
        figure.subplots_adjust(left=0.09, right=0.98, top=0.92, bottom=0.15)
        axes = figure.add_subplot(1, 1, 1)
        axes.axhline(1.0, color=theme.control, linewidth=1.2, linestyle="--")
        for place, (name, row) in enumerate(shown):
            colour = COLOURS[theme is LIGHT][place] if place < HIGHLIGHTED else theme.soft
            axes.plot(row["seconds"], row["factor"], "o", color=colour, markersize=6)
            faster = [other["factor"] for _, other in shown if other["seconds"] < row["seconds"]]
            if place == 0 or row["factor"] > CLEARLY * max(faster, default=0.0):
                at = (row["seconds"], row["factor"])
                axes.annotate(name, at, (6, 4), textcoords="offset points", fontsize=8, color=theme.ink)
        seconds = [row["seconds"] for _, row in shown]
        if max(seconds) > 4 * min(seconds):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.margins(x=0.16, y=0.12)
        title = "Errors how many times smaller than interpolation's (dashed: interpolation)"
        _dress(axes, theme, title, "seconds to fuse", "times smaller")
        return _png(figure)
