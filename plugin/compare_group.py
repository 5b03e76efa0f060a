# SPDX-License-Identifier: GPL-2.0-or-later
"""A comparison from the map: it runs in a task and comes back as a group of layers, hidden but for the best."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional

from qgis.core import (
    QgsApplication,
    QgsLayerTreeGroup,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
    QgsReferencedRectangle,
)

from ..backend import protocol
from ..backend.errors import HyperSharpError
from ..backend.job import CompareJob, FuseJob
from ..backend.registry import METHODS
from . import api, layers, log, pair, settings
from .log import tr
from .rasters import LayerOrPath, read_facts, source_path
from .task import OnError, WorkerTask

METRICS = "metrics.json"


@dataclass
class CompareSource:
    """What of a comparison has to wait for its result: captured on the main thread before the work begins."""

    job: CompareJob
    hs_name: str
    guide_name: str
    style: Optional[layers.ColourStyle]
    hs_layer_id: str = ""

    @property
    def group_name(self) -> str:
        """The name of the group in the layer tree."""
        return tr("{name}: methods compared").format(name=self.hs_name)

    def fused_source(self, row: dict[str, Any], path: str) -> layers.FusedSource:
        """Return what is needed to dress the layer of one method."""
        job = FuseJob(
            self.job.hs,
            self.job.guide,
            path,
            method=row["method"],
            extent=self.job.extent,
            extent_crs=self.job.extent_crs,
            dtype=self.job.dtype,
            seed=self.job.seed,
            mtf_hs=self.job.mtf_hs,
            mtf_guide=self.job.mtf_guide,
            coregister=self.job.coregister,
        )
        return layers.FusedSource(job, self.hs_name, self.guide_name, self.style, self.hs_layer_id)


@dataclass
class Compared:
    """What a comparison put on the map.

    Attributes:
        group: its group in the layer tree.
        layers: the fused layers, best first.
        best: the only visible one: the recommended one, else the one ranked first; None without any layer.
    """

    group: QgsLayerTreeGroup
    layers: list[QgsRasterLayer]
    best: Optional[QgsRasterLayer]


OnCompared = Callable[[Compared, dict[str, Any]], None]


class CompareTask(WorkerTask):
    """Compares, and puts the results on the map.

    Args:
        source: the job with the names and colours of its inputs.
        on_finished: called with what was put on the map and the table (`compare.json`'s content).
        on_error: called with the error, also when the run was cancelled.
        command: the worker's command line; None finds the fusion environment.
    """

    def __init__(
        self,
        source: CompareSource,
        on_finished: Optional[OnCompared] = None,
        on_error: Optional[OnError] = None,
        command: Optional[Sequence[str]] = None,
    ) -> None:
        super().__init__(
            tr("HyperSharp: comparing methods on {name}").format(name=source.hs_name), source.job, command
        )
        self.source = source
        self._on_finished = on_finished
        self._on_error = on_error

    def take_result(self, result: protocol.Result) -> None:
        """Add the group and call back."""
        compared = add_group(self.source, result.metrics)
        if self._on_finished is not None:
            self._on_finished(compared, result.metrics)

    def on_failure(self, error: HyperSharpError) -> None:
        """Call back."""
        if self._on_error is not None:
            self._on_error(error)


def add_group(source: CompareSource, table: dict[str, Any]) -> Compared:
    """Put the fused rasters of a table on the map: one group, best method on top and the only one visible.

    Args:
        source: what was captured before the run.
        table: content of compare.json.
    """
    project = QgsProject.instance()
    node = project.layerTreeRoot().findLayer(source.hs_layer_id) if source.hs_layer_id else None
    parent = node.parent() if node is not None else project.layerTreeRoot()
    group = parent.insertGroup(0, source.group_name)
    recommended = (table.get("recommendation") or {}).get("method")
    found: list[tuple[str, QgsRasterLayer]] = []
    for row in table.get("methods") or ():
        if not row.get("fused") or row.get("error"):
            continue
        path = os.path.join(source.job.folder, row["fused"])
        layer = QgsRasterLayer(path, layer_name(row))
        if not layer.isValid():
            log.write(f"QGIS cannot open {path}", "warning")
            continue
        layers.dress(layer, source.fused_source(row, path), read_metrics(Path(path).with_name(METRICS)))
        project.addMapLayer(layer, False)
        group.addLayer(layer)
        found.append((row["method"], layer))
    best = next((layer for method, layer in found if method == recommended), found[0][1] if found else None)
    for _, layer in found:
        entry = group.findLayer(layer.id())
        entry.setItemVisibilityChecked(layer is best)
        entry.setExpanded(False)
    return Compared(group, [layer for _, layer in found], best)


def layer_name(row: dict[str, Any]) -> str:
    """Return a layer's name: rank, method, and by what factor its errors are smaller than interpolation's."""
    info = METHODS.get(row["method"])
    title = (info.title if info else str(row["method"])).split(" (")[0]
    name = f"{row['rank']}. {title}" if row.get("rank") else title
    return f"{name} ({row['factor']:.2f}×)" if row.get("factor") else name


def read_metrics(path: Path) -> dict[str, Any]:
    """Return a method's metrics.json; empty when it cannot be read."""
    try:
        metrics = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        log.write(f"cannot read {path}: {error}", "warning")
        return {}
    return metrics if isinstance(metrics, dict) else {}


def visible_extent(canvas: Any) -> QgsReferencedRectangle:
    """Return what a map canvas shows, in its CRS."""
    return QgsReferencedRectangle(canvas.extent(), canvas.mapSettings().destinationCrs())


def make_job(
    hs: LayerOrPath,
    guide: LayerOrPath,
    folder: Optional[str] = None,
    methods: Sequence[str] = ("all",),
    extent: Optional[QgsReferencedRectangle] = None,
    **options: Any,
) -> CompareJob:
    """Return the job of a comparison.

    Args:
        hs, guide: layers or paths.
        folder: where the results go; None for a temporary one.
        methods: method ids, or "all".
        extent: the area; None for all that both cover.
        options: any other field of `backend.job.CompareJob`.

    Raises:
        HyperSharpError: an input has no file behind it, or the two cannot be fused there.
    """
    problems = pair.read_pair(read_facts(hs), read_facts(guide), extent).problems
    if problems:
        message, _, hint = problems[0].rstrip(".").partition(". ")
        raise HyperSharpError(message, hint)
    if extent is not None:
        options["extent"] = (extent.xMinimum(), extent.yMinimum(), extent.xMaximum(), extent.yMaximum())
        options["extent_crs"] = api.crs_text(extent.crs())
    if folder is None:
        folder = QgsProcessingUtils.generateTempFilename("compared")
    return CompareJob(
        hs=source_path(hs),
        guide=source_path(guide),
        folder=os.path.abspath(folder),
        methods=list(methods),
        **{"memory_gb": settings.memory_gb(), "device": settings.device(), **options},
    )


def compare(
    hs: LayerOrPath,
    guide: LayerOrPath,
    folder: Optional[str] = None,
    methods: Sequence[str] = ("all",),
    extent: Optional[QgsReferencedRectangle] = None,
    *,
    on_finished: Optional[OnCompared] = None,
    on_error: Optional[OnError] = None,
    prepare: Optional[Callable[[CompareTask], None]] = None,
    **options: Any,
) -> CompareTask:
    """Start a comparison in QGIS's task manager and return its task at once. Call it on the main thread.

    Args:
        hs, guide, folder, methods, extent, options: as in `make_job`.
        on_finished: called on the main thread with what was put on the map and the table.
        on_error: called on the main thread with a `HyperSharpError`.
        prepare: called with the task before it starts, to connect to its signals.

    Raises:
        HyperSharpError: the pair is refused; nothing has been started.
    """
    job = make_job(hs, guide, folder, methods, extent, **options)
    hs_facts, guide_facts = read_facts(hs), read_facts(guide)
    source = CompareSource(
        job,
        hs_facts.name,
        guide_facts.name,
        layers.colour_style(hs, hs_facts),
        hs.id() if isinstance(hs, QgsRasterLayer) else "",
    )
    task = CompareTask(source, on_finished, on_error)
    if prepare is not None:
        prepare(task)
    QgsApplication.taskManager().addTask(task)
    return task
