"""The plugin in QGIS: loading, unloading, and nothing left behind."""

import configparser
import threading

import pytest

pytest.importorskip("qgis.core")

import hypersharp
import qgis.utils
from hypersharp.plugin import task, worker_process
from qgis.core import QgsApplication
from qgis.gui import QgsBrowserGuiModel
from qgis.PyQt import sip
from qgis.PyQt.QtWidgets import QAction, QDialog

pytestmark = pytest.mark.usefixtures("no_children")


def settle():
    """Let deferred deletions happen."""
    from qgis.PyQt.QtCore import QCoreApplication, QEvent

    QCoreApplication.sendPostedEvents(None, QEvent.Type.DeferredDelete)
    QCoreApplication.processEvents()


def test_ten_times_and_nothing_left(desktop, qgis_processing, qgis_new_project, monkeypatch):
    monkeypatch.setattr(
        qgis.utils.iface, "browserModel", QgsBrowserGuiModel
    )  # Processing's dialogs take no mock
    desktop.mapCanvas()
    settle()
    threads = threading.active_count()
    registry = QgsApplication.processingRegistry()
    for _ in range(10):
        plugin = hypersharp.classFactory(desktop)
        plugin.initGui()
        names = [a.objectName() for a in desktop.menu["HyperSharp"]]
        assert names == ["hypersharp_fuse", "hypersharp_compare", "hypersharp_import"]
        assert len(desktop.toolbar) == 1
        assert [a.text() for a in desktop.layer_actions] == ["Quality report"]
        assert registry.algorithmById("hypersharp:fuse") is not None
        dialog = plugin.show_fusion_dialog()
        assert dialog.isVisible()
        assert plugin.show_fusion_dialog() is dialog
        assert plugin.show_compare_dialog().isVisible()
        imports = plugin.show_import_dialog()
        assert imports.isVisible() and imports.windowTitle().startswith("Import a product")
        assert plugin.show_import_dialog() is imports
        imports.close()
        plugin.unload()
        settle()
        assert desktop.menu["HyperSharp"] == []
        assert desktop.toolbar == []
        assert desktop.layer_actions == []
        assert desktop.help.actions() == []
        assert registry.providerById("hypersharp") is None
        assert [a for a in desktop.window.findChildren(QAction) if "hypersharp" in a.objectName()] == []
        assert desktop.window.findChild(QDialog, "hypersharp_fusion_dialog") is None
        assert sip.isdeleted(imports)
    assert threading.active_count() == threads
    assert worker_process.running() == 0


def test_unload_ends_a_running_job(desktop, qgis_new_project, fuse_job, fake):
    from hypersharp.plugin.layers import FusedSource
    from pytest_qgis.utils import wait

    plugin = hypersharp.classFactory(desktop)
    plugin.initGui()
    told = []
    running = task.FusionTask(
        FusedSource(fuse_job, "hs", "guide", None),
        on_finished=lambda *a: told.append(a),
        on_error=told.append,
        command=fake("slow"),
    )
    QgsApplication.taskManager().addTask(running)
    while worker_process.running() == 0:
        wait(20)
    wait(300)
    plugin.unload()
    assert worker_process.running() == 0 or not any(not w.exited() for w in worker_process._running)
    for _ in range(50):
        wait(20)
        if not task.alive():
            break
    assert task.alive() == []
    assert worker_process.running() == 0
    assert told == []  # nobody is spoken to after the unload


def test_only_the_provider_in_qgis_process(qgis_app):
    plugin = hypersharp.classFactory(None)
    plugin.initProcessing()
    assert QgsApplication.processingRegistry().providerById("hypersharp") is not None
    plugin.unload()
    assert QgsApplication.processingRegistry().providerById("hypersharp") is None


def test_metadata_as_the_plugin_site_reads_it(root):
    parser = configparser.ConfigParser()
    parser.read_string((root / "metadata.txt").read_text(encoding="utf-8"))
    general = parser["general"]
    mandatory = (
        "name",
        "description",
        "version",
        "qgisMinimumVersion",
        "author",
        "email",
        "about",
        "tracker",
    )
    for key in (*mandatory, "repository", "homepage", "qgisMaximumVersion"):
        assert general[key].strip(), key
    assert general["hasProcessingProvider"] == "yes"
    assert (general["qgisMinimumVersion"], general["qgisMaximumVersion"]) == ("3.22", "4.99")
    assert "/" not in general["author"]
    assert (root / general["icon"]).is_file()
