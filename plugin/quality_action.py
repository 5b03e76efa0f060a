# SPDX-License-Identifier: GPL-2.0-or-later
"""The right-click action "Quality report" on raster layers: how good is this fused layer, whoever made it."""

from __future__ import annotations

import os
from typing import Any, Callable, Optional

from qgis.core import QgsApplication, QgsProcessingUtils, QgsRasterLayer
from qgis.PyQt.QtWidgets import QAction

from ..backend import protocol
from ..backend.errors import ErrorCode, HyperSharpError
from ..backend.job import AssessJob
from . import layers, settings
from .compat import RASTER_LAYER
from .log import tr
from .rasters import source_path
from .task import WorkerTask

MENU = "HyperSharp"
Tell = Callable[[str, str], None]
"""Told of a success: a line of text and the report's path."""


class QualityAction:
    """Adds the action to the layer tree's context menu, and takes it away again.

    Args:
        iface: QGIS's interface.
        action: the action, made by the plugin.
        on_report: told of a finished report.
        on_error: told of a failure.
    """

    def __init__(
        self, iface: Any, action: QAction, on_report: Tell, on_error: Callable[[HyperSharpError], None]
    ) -> None:
        self._iface, self.action = iface, action
        self._on_report, self._on_error = on_report, on_error
        iface.addCustomActionForLayerType(action, MENU, RASTER_LAYER, True)

    def remove(self) -> None:
        """Take the action away."""
        self._iface.removeCustomActionForLayerType(self.action)
        self.action.deleteLater()

    def trigger(self) -> Optional[WorkerTask]:
        """Score the active layer, or ask what it was made from where nobody noted it."""
        layer = self._iface.activeLayer()
        if not isinstance(layer, QgsRasterLayer):
            return None
        job = assess_job(layer)
        if job is None:
            self._ask(layer)
            return None
        task = WorkerTask(tr("HyperSharp: quality of {name}").format(name=layer.name()), job)
        name = layer.name()
        task.succeeded.connect(lambda result: self._tell(name, result))
        task.failed.connect(self._fail)
        QgsApplication.taskManager().addTask(task)
        return task

    def _ask(self, layer: QgsRasterLayer) -> None:
        """Open the Processing dialog with the layer filled in: it asks for the two sources."""
        import processing  # QGIS's own plugin, there only when the desktop runs

        processing.execAlgorithmDialog("hypersharp:assess", {"FUSED": layer.id()})

    def _tell(self, name: str, result: protocol.Result) -> None:
        self._on_report(tr("quality of {name}").format(name=name), result.outputs.get("REPORT", ""))

    def _fail(self, error: HyperSharpError) -> None:
        if error.code is not ErrorCode.CANCELLED:
            self._on_error(error)


def assess_job(layer: QgsRasterLayer) -> Optional[AssessJob]:
    """Return the job that scores a layer, or None when its sources are not known or gone."""
    noted = layers.noted_sources(layer)
    if noted is None or not all(os.path.exists(path) for path in noted):
        return None
    return AssessJob(
        fused=source_path(layer),
        hs=noted[0],
        guide=noted[1],
        device=settings.device(),
        memory_gb=settings.memory_gb(),
        report=QgsProcessingUtils.generateTempFilename("quality.html"),
    )
