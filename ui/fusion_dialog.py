# SPDX-License-Identifier: GPL-2.0-or-later
"""The dialog behind Raster > HyperSharp: choose a pair, see what it comes to, run, watch, cancel."""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any, Optional

from qgis.core import QgsProcessingUtils, QgsProject, QgsRasterLayer
from qgis.gui import QgsFileWidget, QgsMessageBar
from qgis.PyQt.QtCore import Qt, QTimer
from qgis.PyQt.QtGui import QIcon
from qgis.PyQt.QtWidgets import (
    QComboBox,
    QDialog,
    QDialogButtonBox,
    QFormLayout,
    QGroupBox,
    QHBoxLayout,
    QLabel,
    QProgressBar,
    QPushButton,
    QScrollArea,
    QSplitter,
    QVBoxLayout,
    QWidget,
)

from ..backend.errors import ErrorCode, HyperSharpError
from ..backend.registry import METHODS
from ..plugin import api, environment, log, settings
from ..plugin.algorithms.base import duration
from ..plugin.log import tr
from ..plugin.main import show_help
from ..plugin.pair import PairFacts, method_problem, output_problem, read_pair
from ..plugin.provider import ICON_PATH
from ..plugin.rasters import RasterFacts, read_facts
from ..plugin.task import FusionTask
from . import messages
from .layer_chooser import LayerChooser
from .learned_options import LearnedOptions
from .method_options import MethodOptions
from .pair_panel import PairPanel
from .run_options import RunOptions

REFRESH_MS = 120
MAX_GUIDE_BANDS_GUESSED = 20


def guess_pair() -> tuple[Optional[QgsRasterLayer], Optional[QgsRasterLayer]]:
    """Return the raster with most bands, and the finest raster of few bands that overlaps it; None where none is."""
    rasters = []
    for layer in QgsProject.instance().mapLayers().values():
        if isinstance(layer, QgsRasterLayer) and layer.providerType() == "gdal" and layer.isValid():
            try:
                rasters.append((layer, read_facts(layer)))
            except HyperSharpError:
                continue
    # Of equal bands the coarser one: the finer may be a fused result.
    rasters.sort(key=lambda entry: (-entry[1].bands, -(entry[1].pixel_size or (0.0,))[0]))
    if not rasters:
        return None, None
    hs_layer, hs = rasters[0]
    best: tuple[float, Optional[QgsRasterLayer]] = (0.0, None)
    for layer, facts in rasters[1:]:
        pair = read_pair(hs, facts)
        if not pair.problems and facts.bands <= MAX_GUIDE_BANDS_GUESSED:
            best = max(best, (pair.true_ratio or 0.0, layer), key=lambda entry: entry[0])
    return hs_layer, best[1]


def learned_time(seconds: float, adapting: float, device: str) -> str:
    """Return what a learned method will take, as words: networks are timed on a CPU, and a GPU is faster.

    Args:
        seconds: estimated for two CPU cores.
        adapting: seconds of these that adaptation takes.
        device: "auto", "cpu" or "cuda".
    """
    words = tr("{time} on the CPU").format(time=duration(seconds))
    if adapting > 0:
        words += tr(", {time} of it adaptation").format(time=duration(adapting))
    return words if device == "cpu" else words + tr("; less on a GPU")


class FusionDialog(QDialog):
    """Fuses a pair of layers; stays open and usable while it does."""

    def __init__(self, iface: Any = None, parent: Optional[QWidget] = None) -> None:
        super().__init__(parent)
        self._iface = iface
        self._task: Optional[FusionTask] = None
        self._pair: Optional[PairFacts] = None
        self._extent_of = ""
        self.setObjectName("hypersharp_fusion_dialog")
        self.setWindowTitle(tr("Fuse Hyperspectral Layer"))
        self.setWindowIcon(QIcon(ICON_PATH))
        self._refresh_timer = QTimer(self)
        self._refresh_timer.setSingleShot(True)
        self._refresh_timer.setInterval(REFRESH_MS)
        self._refresh_timer.timeout.connect(self.refresh)
        self._build()
        self._guess_layers()
        self._connect()
        self.refresh()
        character = self.fontMetrics().averageCharWidth()
        self.resize(140 * character, 80 * character)

    # ------------------------------------------------------------------ widgets

    def _build(self) -> None:
        self.message_bar = QgsMessageBar(self)
        self.panel = PairPanel(self)
        splitter = QSplitter(Qt.Orientation.Horizontal, self)
        splitter.addWidget(self._build_form())
        splitter.addWidget(self.panel)
        splitter.setStretchFactor(0, 3)
        splitter.setStretchFactor(1, 2)
        splitter.setChildrenCollapsible(False)
        splitter.setSizes([80, 60])
        layout = QVBoxLayout(self)
        layout.addWidget(self.message_bar)
        layout.addWidget(splitter, 1)
        layout.addLayout(self._build_progress())
        layout.addWidget(self._build_buttons())

    def _align(self, groups: list[QWidget]) -> None:
        """Give the labels of all forms one width, so that the fields stand in one column."""
        labels = [
            item.widget()
            for group in groups
            for row in range(group.layout().rowCount())
            for item in [group.layout().itemAt(row, QFormLayout.ItemRole.LabelRole)]
            if item is not None and item.widget() is not None
        ]
        widest = max(label.sizeHint().width() for label in labels)
        for label in labels:
            label.setMinimumWidth(widest)

    def _build_form(self) -> QWidget:
        self.hs_chooser = LayerChooser(tr("The coarse raster with many bands, at least 4"), self)
        self.guide_chooser = LayerChooser(tr("The finer raster, panchromatic or multispectral"), self)
        inputs = QGroupBox(tr("Layers"), self)
        form = QFormLayout(inputs)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        form.addRow(tr("Hyperspectral"), self.hs_chooser)
        form.addRow(tr("Guide (PAN or MSI)"), self.guide_chooser)

        self.method_combo = QComboBox(self)
        kind = ""
        for info in METHODS.values():
            if kind and info.kind != kind:
                self.method_combo.insertSeparator(self.method_combo.count())
            kind = info.kind
            self.method_combo.addItem(info.title, info.id)
            self.method_combo.setItemData(
                self.method_combo.count() - 1, f"{info.kind}\n{info.citation}", Qt.ItemDataRole.ToolTipRole
            )
        self.method_combo.setCurrentIndex(max(0, self.method_combo.findData(settings.method())))
        self.method_label = QLabel(self)
        self.method_label.setWordWrap(True)
        self.output_widget = QgsFileWidget(self)
        self.output_widget.setStorageMode(QgsFileWidget.StorageMode.SaveFile)
        self.output_widget.setFilter(tr("GeoTIFF (*.tif)"))
        self.output_widget.setDialogTitle(tr("Save the fused raster"))
        self.output_widget.lineEdit().setPlaceholderText(tr("[Save to temporary file]"))
        run = QGroupBox(tr("Fusion"), self)
        form = QFormLayout(run)
        form.setFieldGrowthPolicy(QFormLayout.FieldGrowthPolicy.AllNonFixedFieldsGrow)
        self.method_combo.setSizeAdjustPolicy(
            QComboBox.SizeAdjustPolicy.AdjustToMinimumContentsLengthWithIcon
        )
        form.addRow(tr("Method"), self.method_combo)
        form.addRow("", self.method_label)
        self.learned = LearnedOptions(run)
        form.addRow(self.learned)
        self.method_options = MethodOptions(run)
        form.addRow(self.method_options)
        canvas = self._iface.mapCanvas() if self._iface is not None else None
        self.options = RunOptions(canvas, self)
        form.addRow(tr("Device"), self.options.device_combo)
        form.addRow(tr("Result"), self.output_widget)

        self.options.setCollapsed(True)
        column = QWidget(self)
        layout = QVBoxLayout(column)
        layout.setContentsMargins(0, 0, 6, 0)
        groups = [inputs, run, self.options]
        self._align([*groups, self.learned, self.method_options])
        for group in groups:
            layout.addWidget(group)
        layout.addStretch(1)
        scroll = QScrollArea(self)
        scroll.setWidget(column)
        scroll.setWidgetResizable(True)
        scroll.setFrameShape(QScrollArea.Shape.NoFrame)
        scroll.setHorizontalScrollBarPolicy(Qt.ScrollBarPolicy.ScrollBarAlwaysOff)
        scroll.setMinimumWidth(
            column.minimumSizeHint().width() + scroll.verticalScrollBar().sizeHint().width()
        )
        return scroll

    def _build_progress(self) -> QHBoxLayout:
        self.progress_bar = QProgressBar(self)
        self.progress_bar.setRange(0, 1000)
        self.progress_bar.setValue(0)
        self.stage_label = QLabel(tr("Ready"), self)
        self.stage_label.setMinimumWidth(230)
        self.cancel_button = QPushButton(tr("Cancel"), self)
        self.cancel_button.setEnabled(False)
        row = QHBoxLayout()
        row.addWidget(self.stage_label)
        row.addWidget(self.progress_bar, 1)
        row.addWidget(self.cancel_button)
        return row

    def _build_buttons(self) -> QDialogButtonBox:
        standard = QDialogButtonBox.StandardButton
        box = QDialogButtonBox(standard.Close | standard.Help, self)
        self.run_button = box.addButton(tr("Run"), QDialogButtonBox.ButtonRole.ActionRole)
        self.run_button.setDefault(True)
        self.run_button.clicked.connect(lambda _checked: self.run())
        box.button(standard.Close).clicked.connect(lambda _checked: self.close())
        box.button(standard.Help).clicked.connect(lambda _checked: show_help())
        return box

    def _connect(self) -> None:
        self.hs_chooser.changed.connect(self._refresh_timer.start)
        self.guide_chooser.changed.connect(self._refresh_timer.start)
        self.options.changed.connect(self._refresh_timer.start)
        self.learned.changed.connect(self._refresh_timer.start)
        self.method_options.changed.connect(self._refresh_timer.start)
        self.method_combo.currentIndexChanged.connect(lambda _index: self._refresh_timer.start())
        self.output_widget.fileChanged.connect(lambda _path: self._refresh_timer.start())
        self.cancel_button.clicked.connect(lambda _checked: self.cancel())

    def _guess_layers(self) -> None:
        """Choose the pair that the project most likely means."""
        hs, guide = guess_pair()
        self.hs_chooser.set_layer(hs)
        self.guide_chooser.set_layer(guide)

    def showEvent(self, event: Any) -> None:
        """Look at the project again when nothing has been chosen yet."""
        super().showEvent(event)
        if self.hs_chooser.source() is None and self.guide_chooser.source() is None:
            self._guess_layers()

    # ------------------------------------------------------------------ before the run

    def method(self) -> str:
        """Return the chosen method's id."""
        return self.method_combo.currentData()

    def problems(self) -> list[str]:
        """Return all that stands against a run as the form is filled in."""
        found: list[str] = []
        if self._pair is not None:
            found += self._pair.problems
            problem = method_problem(METHODS[self.method()], self._pair.guide)
            found += [problem] if problem else []
            problem = self.learned.problem()
            found += [problem] if problem else []
            output = self.output_widget.filePath().strip()
            if output:
                problem = output_problem(_with_suffix(output), self._pair, self._disk_bytes())
                found += [problem] if problem else []
        try:
            environment.locate()
        except HyperSharpError as error:
            found.append(log.sentence(error))
        return found

    def _disk_bytes(self) -> int:
        values = self.options.values()
        return self._pair.estimate(self.method(), values["dtype"], values["memory_gb"], False).disk_bytes

    def refresh(self) -> None:
        """Look at the form again and say what it comes to."""
        info = METHODS[self.method()]
        self.method_label.setText(info.summary)
        self.learned.set_method(info)
        self.method_options.set_method(info)
        self.options.report_check.setEnabled(self.options.assess_check.isChecked())
        hs, guide = self.hs_chooser.source(), self.guide_chooser.source()
        self._pair = None
        if hs is None or guide is None:
            self.panel.show_hint(
                tr("Choose a hyperspectral layer and a finer guide layer of the same place.")
            )
        else:
            try:
                self._pair = read_pair(read_facts(hs), read_facts(guide), self.options.extent())
            except HyperSharpError as error:
                self.panel.show_problem(log.sentence(error))
        ready = False
        if self._pair is not None:
            self._offer_extents(self._pair.guide)
            problems = self.problems()
            ready = not problems
            values = self.options.values()
            needs = None
            time_words = ""
            if not self._pair.problems:
                settled = self.method(), values["dtype"], values["memory_gb"], values["assess"]
                steps, chosen = self.learned.values()["adapt_steps"], self.method_options.values()
                needs = self._pair.estimate(*settled, adapt_steps=steps, parameters=chosen)
                if info.needs_weights:
                    adapting = needs.seconds - self._pair.estimate(*settled, parameters=chosen).seconds
                    time_words = learned_time(needs.seconds, adapting, values["device"])
            self.panel.show_pair(self._pair, values["dtype"], needs, problems, self._free_bytes(), time_words)
        self.run_button.setEnabled(ready and self._task is None)

    def _offer_extents(self, guide: RasterFacts) -> None:
        """Let the extent widget speak in the guide's CRS, and offer the guide's and the map's extents."""
        if guide.path == self._extent_of:
            return
        self._extent_of = guide.path
        widget = self.options.extent_widget
        chosen = self.options.extent()
        widget.setOutputCrs(guide.crs)
        if chosen is None:
            widget.clear()  # the widget has made numbers of the empty extent
        widget.setOriginalExtent(guide.extent, guide.crs)
        if self._iface is not None:
            canvas = self._iface.mapCanvas()
            widget.setCurrentExtent(canvas.extent(), canvas.mapSettings().destinationCrs())

    def _free_bytes(self) -> Optional[int]:
        output = self.output_widget.filePath().strip()
        folder = os.path.dirname(os.path.abspath(output)) if output else tempfile.gettempdir()
        return shutil.disk_usage(folder).free if os.path.isdir(folder) else None

    # ------------------------------------------------------------------ the run

    def run(self) -> Optional[FusionTask]:
        """Start the fusion; return its task, or None when it was refused."""
        self.refresh()
        if self._pair is None or self.problems() or self._task is not None:
            return None
        output = self.output_widget.filePath().strip()
        output = _with_suffix(output) if output else QgsProcessingUtils.generateTempFilename("fused.tif")
        values = {
            **self.options.values(),
            **self.learned.values(),
            "parameters": self.method_options.values(),
        }
        if values["assess"] and self.options.report_check.isChecked():
            stem = os.path.splitext(output)[0]
            values.update(report=f"{stem}_report.html", metrics=f"{stem}_metrics.json")
        self.message_bar.clearWidgets()
        self.options.remember()
        settings.set_method(self.method())
        try:
            self._task = api.fuse(
                self.hs_chooser.source(),
                self.guide_chooser.source(),
                self.method(),
                output,
                on_error=self._on_error,
                match_source=self.options.match_check.isChecked(),
                prepare=self._watch,
                **values,
            )
        except HyperSharpError as error:
            messages.push_error(self.message_bar, log.sentence(error))
            return None
        return self._task

    def _watch(self, task: FusionTask) -> None:
        """Follow a task that is about to start."""
        self._task = task
        self._set_running(True)
        self.stage_label.setText(tr("Starting…"))
        self.progress_bar.setValue(0)
        task.progressed.connect(self._on_progress)
        task.progressChanged.connect(self._on_percent)
        task.succeeded.connect(self._on_success)

    def _set_running(self, running: bool) -> None:
        self.run_button.setEnabled(not running)
        self.cancel_button.setEnabled(running)
        if not running:
            self._task = None
            self.refresh()

    def cancel(self) -> None:
        """Stop the run."""
        if self._task is not None:
            self.cancel_button.setEnabled(False)
            self.stage_label.setText(tr("Cancelling…"))
            self._task.cancel()

    def _on_progress(self, stage: str, done: int, total: int, seconds_left: Optional[float]) -> None:
        if self._task is None or self._task.isCanceled():
            return
        parts = [stage[:1].upper() + stage[1:]]
        if total > 1:
            parts.append(tr("{done} of {total}").format(done=done, total=total))
        if seconds_left is not None:
            parts.append(tr("{time} left").format(time=duration(seconds_left)))
        self.stage_label.setText(" · ".join(parts))

    def _on_percent(self, percent: float) -> None:
        self.progress_bar.setValue(round(10 * percent))

    def _on_success(self, result: Any) -> None:
        task = self._task
        self.progress_bar.setValue(1000)
        seconds = result.metrics.get("seconds")
        self.stage_label.setText(tr("Done"))
        self._set_running(False)
        name = task.source.layer_name if task is not None else ""
        text = tr("{name} added").format(name=name)
        if seconds is not None:
            text += " " + tr("({seconds:.1f} s)").format(seconds=seconds)
        report = result.outputs.get("REPORT", "")
        warnings = result.metrics.get("warnings") or ()
        messages.push_success(self.message_bar, text, report, warnings)
        if self._iface is not None:
            messages.push_success(self._iface.messageBar(), text, report, warnings)

    def _on_error(self, error: HyperSharpError) -> None:
        cancelled = error.code is ErrorCode.CANCELLED
        self.stage_label.setText(tr("Cancelled: nothing was written") if cancelled else tr("Failed"))
        self.progress_bar.setValue(0)
        self._set_running(False)
        if not cancelled:
            text = log.sentence(error)
            messages.push_error(self.message_bar, text)
            if self._iface is not None and not self.isVisible():
                messages.push_error(self._iface.messageBar(), text)


def _with_suffix(path: str) -> str:
    """Return the path with .tif where the user left the suffix out."""
    return path if os.path.splitext(path)[1] else f"{path}.tif"
