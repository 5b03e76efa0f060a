# SPDX-License-Identifier: GPL-2.0-or-later
"""The plugin as QGIS sees it: menu, toolbar, help and Processing provider, and their removal."""

from __future__ import annotations

from typing import Any, Callable, Optional

from qgis.core import Qgis, QgsApplication
from qgis.PyQt import sip
from qgis.PyQt.QtCore import QUrl
from qgis.PyQt.QtGui import QDesktopServices, QIcon
from qgis.PyQt.QtWidgets import QAction

from ..backend.errors import HyperSharpError
from . import log, task
from .algorithms.base import HELP_PAGE
from .log import tr
from .provider import ICON_PATH, HyperSharpProvider
from .quality_action import QualityAction

MENU = "HyperSharp"


class HyperSharpPlugin:
    """The plugin. `iface` is None in `qgis_process`, where only the provider is wanted."""

    def __init__(self, iface: Any) -> None:
        self._iface = iface
        self._provider: Optional[HyperSharpProvider] = None
        self._fuse_action: Optional[QAction] = None
        self._compare_action: Optional[QAction] = None
        self._import_action: Optional[QAction] = None
        self._help_action: Optional[QAction] = None
        self._quality: Optional[QualityAction] = None
        self._dialog: Any = None
        self._compare_dialog: Any = None
        self._import_dialog: Any = None

    def initProcessing(self) -> None:
        """Register the Processing provider (QGIS calls this alone in `qgis_process`)."""
        if self._provider is None:
            self._provider = HyperSharpProvider()
            QgsApplication.processingRegistry().addProvider(self._provider)

    def initGui(self) -> None:
        """Add what the plugin adds to QGIS's window."""
        self.initProcessing()
        self._fuse_action = self._action(
            tr("Fuse hyperspectral layer…"), "hypersharp_fuse", self.show_fusion_dialog
        )
        self._fuse_action.setStatusTip(
            tr("Fuse a hyperspectral layer with a finer panchromatic or multispectral one")
        )
        self._iface.addPluginToRasterMenu(MENU, self._fuse_action)
        self._iface.addRasterToolBarIcon(self._fuse_action)
        self._compare_action = self._action(
            tr("Compare fusion methods…"), "hypersharp_compare", self.show_compare_dialog
        )
        self._compare_action.setStatusTip(
            tr("Run several methods on what the map shows, and add the results as a group")
        )
        self._iface.addPluginToRasterMenu(MENU, self._compare_action)
        self._import_action = self._action(
            tr("Import a product…"), "hypersharp_import", self.show_import_dialog
        )
        self._import_action.setStatusTip(tr("Make layers of a product of PRISMA (.he5) or EMIT (.nc)"))
        self._iface.addPluginToRasterMenu(MENU, self._import_action)
        self._quality = QualityAction(
            self._iface,
            self._action(tr("Quality report"), "hypersharp_quality", self.show_quality),
            self._show_report,
            self._show_error,
        )
        self._help_action = self._action(tr("HyperSharp"), "hypersharp_help", show_help)
        self._iface.pluginHelpMenu().addAction(self._help_action)

    def _action(self, text: str, name: str, slot: Callable[[], None]) -> QAction:
        action = QAction(QIcon(ICON_PATH), text, self._iface.mainWindow())
        action.setObjectName(name)
        action.triggered.connect(lambda _checked=False: slot())
        return action

    def show_fusion_dialog(self) -> Any:
        """Open the dialog, or bring the open one to the front; return it."""
        if self._dialog is None:
            from ..ui.fusion_dialog import FusionDialog

            self._dialog = FusionDialog(self._iface, self._iface.mainWindow())
        self._dialog.show()
        self._dialog.raise_()
        self._dialog.activateWindow()
        return self._dialog

    def show_compare_dialog(self) -> Any:
        """Open a dialog that starts a comparison; return it."""
        from ..ui.compare_dialog import CompareDialog
        from ..ui.fusion_dialog import guess_pair

        self._close_compare_dialog()
        self._compare_dialog = CompareDialog(self._iface, self._iface.mainWindow(), guess_pair())
        self._compare_dialog.show()
        return self._compare_dialog

    def _close_compare_dialog(self) -> None:
        if self._compare_dialog is not None:
            self._compare_dialog.close()
            self._compare_dialog.deleteLater()
            self._compare_dialog = None

    def show_import_dialog(self) -> Any:
        """Open Processing's dialog of the import, or bring the open one to the front; return it."""
        if self._import_dialog is None or sip.isdeleted(self._import_dialog):
            import processing

            self._import_dialog = processing.createAlgorithmDialog("hypersharp:import")
        self._import_dialog.show()
        self._import_dialog.raise_()
        self._import_dialog.activateWindow()
        return self._import_dialog

    def _close_import_dialog(self) -> None:
        if self._import_dialog is not None and not sip.isdeleted(self._import_dialog):
            self._import_dialog.close()
            self._import_dialog.deleteLater()
        self._import_dialog = None

    def show_quality(self) -> Any:
        """Score the active layer in the background; return the task, or None when its sources are asked for."""
        return self._quality.trigger() if self._quality is not None else None

    def _show_report(self, text: str, report: str) -> None:
        from ..ui.messages import push_success

        push_success(self._iface.messageBar(), text, report)

    def _show_error(self, error: HyperSharpError) -> None:
        self._iface.messageBar().pushMessage(MENU, log.sentence(error), Qgis.MessageLevel.Critical)

    def unload(self) -> None:
        """Remove everything again: dialog, tasks, workers, actions, provider."""
        task.abandon_all()  # first: a task must not speak to a dialog that is gone
        if self._dialog is not None:
            self._dialog.close()
            self._dialog.deleteLater()
            self._dialog = None
        self._close_compare_dialog()
        self._close_import_dialog()
        if self._import_action is not None:
            self._iface.removePluginRasterMenu(MENU, self._import_action)
            self._import_action.deleteLater()
            self._import_action = None
        if self._compare_action is not None:
            self._iface.removePluginRasterMenu(MENU, self._compare_action)
            self._compare_action.deleteLater()
            self._compare_action = None
        if self._fuse_action is not None:
            self._iface.removePluginRasterMenu(MENU, self._fuse_action)
            self._iface.removeRasterToolBarIcon(self._fuse_action)
            self._fuse_action.deleteLater()
            self._fuse_action = None
        if self._quality is not None:
            self._quality.remove()
            self._quality = None
        if self._help_action is not None:
            self._iface.pluginHelpMenu().removeAction(self._help_action)
            self._help_action.deleteLater()
            self._help_action = None
        if self._provider is not None:
            QgsApplication.processingRegistry().removeProvider(self._provider)
            self._provider = None


def show_help() -> None:
    """Open the help that ships with the plugin in the system's browser."""
    QDesktopServices.openUrl(QUrl.fromLocalFile(str(HELP_PAGE)))
