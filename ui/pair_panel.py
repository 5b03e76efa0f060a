# SPDX-License-Identifier: GPL-2.0-or-later
"""What the chosen pair comes to, shown while the user chooses: sizes, ratio, needs, and what stands against it."""

from __future__ import annotations

from html import escape
from typing import Optional

from qgis.core import QgsUnitTypes
from qgis.PyQt.QtWidgets import QTextBrowser, QWidget

from ..backend.estimate import Estimate
from ..plugin.algorithms.base import duration
from ..plugin.log import tr
from ..plugin.pair import PairFacts
from ..plugin.rasters import RasterFacts

PROBLEM_COLOUR = "#c0392b"
NOTE_COLOUR = "#b9770e"
READY_COLOUR = "#1e8449"
MIN_WIDTH_CHARACTERS = 56
"""What the table needs not to break its cells."""
SCARCE_SHARE = 0.1
"""Free disk space is worth a word when the result takes more than this share of it."""


class PairPanel(QTextBrowser):
    """A read-only panel beside the form, like the help of QGIS's own tool dialogs."""

    def __init__(self, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self.setOpenLinks(False)
        self.document().setDocumentMargin(8)
        self.setMinimumWidth(MIN_WIDTH_CHARACTERS * self.fontMetrics().averageCharWidth())
        self.show_hint(tr("Choose a hyperspectral layer and a finer guide layer of the same place."))

    def show_hint(self, text: str) -> None:
        """Show what to do first."""
        self._show(f"<p>{escape(text)}</p>")

    def show_problem(self, text: str) -> None:
        """Show why there is nothing to tell."""
        self._show(_message(text, PROBLEM_COLOUR, "✖"))

    def show_pair(
        self,
        pair: PairFacts,
        dtype: str,
        needs: Optional[Estimate],
        problems: list[str],
        free_bytes: Optional[int],
        time_words: str = "",
    ) -> None:
        """Show a pair.

        Args:
            pair: its facts.
            dtype: the job's `dtype`.
            needs: estimated memory, disk and time; None when the pair cannot be fused.
            problems: everything that stands against the run.
            free_bytes: free space where the result goes; None when unknown.
            time_words: what to say of the time instead of the estimate alone.
        """
        parts = [_table(pair, dtype)]
        if needs is not None:
            parts.append(_needs(pair, needs, free_bytes, time_words))
        parts += [_message(text, PROBLEM_COLOUR, "✖") for text in problems]
        parts += [_message(text, NOTE_COLOUR, "⚠") for text in pair.notes]
        if not problems and needs is not None:
            parts.append(_message(tr("Ready to run."), READY_COLOUR, "✔"))
        self._show("".join(parts))

    def _show(self, body: str) -> None:
        self.setHtml(f"<h3 style='margin-bottom:4px'>{escape(tr('Before you run'))}</h3>{body}")


def _message(text: str, colour: str, sign: str) -> str:
    return (
        f"<table cellpadding='2' style='margin-top:6px'><tr><td style='color:{colour}'>{sign}</td>"
        f"<td style='color:{colour}'>{escape(text)}</td></tr></table>"
    )


def _cell(text: str) -> str:
    """Return text that does not break inside a cell."""
    return escape(text).replace(" ", "&nbsp;")


def _table(pair: PairFacts, dtype: str) -> str:
    """Return the two inputs and the result side by side."""
    hs, guide = pair.hs, pair.guide
    rows = [
        (tr("Bands"), str(hs.bands), str(guide.bands), str(hs.bands)),
        (
            tr("Size"),
            _size(hs.cols, hs.rows),
            _size(guide.cols, guide.rows),
            _size(pair.cols, pair.rows),
        ),
        (tr("Pixel"), _pixel(hs), _pixel(guide), _pixel(guide)),
        (tr("Range"), _range(hs), _range(guide), _range(hs)),
        (tr("Type"), hs.dtype, guide.dtype, pair.dtype(dtype)),
        (tr("CRS"), _crs(hs), _crs(guide), _crs(guide)),
    ]
    if pair.rows == 0:  # nothing will come of it
        rows = [(*row[:3], "") for row in rows]
    head = "".join(
        f"<th align='left'>{_cell(t)}</th>" for t in ("", tr("Spectral"), tr("Guide"), tr("Result"))
    )
    body = "".join(
        f"<tr><td>{escape(name)}&nbsp;&nbsp;</td>"
        + "".join(f"<td>{escape(v)}</td>" for v in values)
        + "</tr>"
        for name, *values in rows
    )
    return f"<table cellpadding='3'><tr>{head}</tr>{body}</table>"


def _needs(pair: PairFacts, needs: Estimate, free_bytes: Optional[int], time_words: str) -> str:
    """Return ratio, overlap and estimates."""
    ratio = str(pair.ratio)
    if pair.true_ratio is not None and abs(pair.true_ratio - pair.ratio) > 0.01:
        ratio += " " + tr("(pixel sizes: {ratio:.3f})").format(ratio=pair.true_ratio)
    disk = _bytes(needs.disk_bytes)
    if free_bytes is not None and needs.disk_bytes > SCARCE_SHARE * free_bytes:
        disk += " " + tr("of {free} free").format(free=_bytes(free_bytes))
    rows = [
        (tr("Ratio"), ratio),
        (tr("Overlap"), f"{100 * pair.overlap:.0f} %"),
        (tr("Memory"), tr("up to {size}").format(size=_bytes(needs.memory_bytes))),
        (tr("Disk"), tr("up to {size}").format(size=disk)),
    ]
    body = "".join(f"<tr><td>{_cell(name)}</td><td>{_cell(value)}</td></tr>" for name, value in rows)
    time = escape(time_words) or _cell(duration(needs.seconds))  # words may break
    body += f"<tr><td>{_cell(tr('Time'))}</td><td>{time}</td></tr>"
    return f"<hr><table cellpadding='3'>{body}</table>"


def _size(cols: int, rows: int) -> str:
    return f"{cols} × {rows}"


def _crs(facts: RasterFacts) -> str:
    if not facts.crs.isValid():
        return tr("unknown")
    return facts.crs.authid() or tr("custom")


def _pixel(facts: RasterFacts) -> str:
    """Return the pixel size with its unit."""
    size = facts.pixel_size
    if size is None:
        return tr("unknown")
    unit = QgsUnitTypes.toAbbreviatedString(facts.crs.mapUnits()) if facts.crs.isValid() else ""
    width, height = size
    numbers = f"{width:.4g}" if abs(width - height) < 1e-3 * width else f"{width:.4g} × {height:.4g}"
    return f"{numbers} {unit}".strip()


def _range(facts: RasterFacts) -> str:
    found = facts.spectral_range_nm
    if found is None:
        return "–"
    return f"{found[0]:.0f}–{found[1]:.0f} nm" if found[0] != found[1] else f"{found[0]:.0f} nm"


def _bytes(count: float) -> str:
    """Return a size as people read it."""
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            value = count / size
            return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"
    return f"{max(1, round(count / 1e3))} kB"
