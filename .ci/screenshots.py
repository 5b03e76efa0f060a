# SPDX-License-Identifier: GPL-2.0-or-later
"""Makes dialog.png, dialog-learned.png and paris-canvas.png of docs/images in the real QGIS desktop.

    python3 .ci/screenshots.py        starts QGIS under a virtual screen with a profile of its own

Needs Xvfb, the fusion environment (.venv) and the Paris pair of ../shared/data (or HYPERSHARP_DATA).
QGIS runs this same file by --code; there the last lines find `iface` and play the scene.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

FOLDER_VARIABLE = "HYPERSHARP_SCREENSHOTS"
SIZE = (1400, 860)
TIMEOUT_S = 120


def launch():
    """Prepare a profile with the plugin in it and run QGIS on this file; return the exit code."""
    root = Path(__file__).resolve().parents[1]
    data = Path(os.environ.get("HYPERSHARP_DATA") or root.parent / "shared" / "data") / "pairs"
    if not data.is_dir():
        print("screenshots: no real data (../shared/data or HYPERSHARP_DATA)", file=sys.stderr)
        return 2
    images = root / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    # Not in the system's folder of temporary files: QGIS marks layers from there as temporary.
    (root / "build").mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="hypersharp-shots-", dir=root / "build") as work:
        profiles = Path(work) / "profiles"
        plugins = profiles / "profiles" / "default" / "python" / "plugins"
        plugins.mkdir(parents=True)
        (plugins / "hypersharp").symlink_to(root)
        settings = profiles / "profiles" / "default" / "QGIS"
        settings.mkdir(parents=True)
        (settings / "QGIS3.ini").write_text(
            "[PythonPlugins]\nhypersharp=true\n"
            "[qgis]\ncheckVersion=false\nshowTips=false\nshowTips322=false\n"
            "[UI]\nUITheme=default\n[app]\nfontPointSize=9\n"
        )
        for name in ("paris_hyperion_hs_30m.tif", "paris_ali_pan_10m.tif"):
            shutil.copy(data / name, work)
        environment = {
            **os.environ,
            FOLDER_VARIABLE: work,
            "HYPERSHARP_IMAGES": str(images),
            "HYPERSHARP_PYTHON": os.environ.get("HYPERSHARP_PYTHON", str(root / ".venv" / "bin" / "python")),
        }
        environment.pop("QT_QPA_PLATFORM", None)  # the desktop does not start with the offscreen platform
        # QGIS's built-in Python takes its prefix from the first python3 of PATH: that must be the system's.
        environment["PATH"] = os.pathsep.join(["/usr/bin", "/bin", environment.get("PATH", "")])
        command = ["xvfb-run", "-a", "-s", f"-screen 0 {SIZE[0]}x{SIZE[1]}x24", "qgis", "--nologo"]
        command += ["--profiles-path", str(profiles), "--code", str(Path(__file__).resolve())]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        with subprocess.Popen(command, env=environment, start_new_session=True, **quiet) as qgis:
            try:
                qgis.wait(TIMEOUT_S)
            except subprocess.TimeoutExpired:
                print("screenshots: QGIS did not end in time", file=sys.stderr)
                os.killpg(qgis.pid, signal.SIGKILL)
        failed = Path(work) / "failed.txt"
        if failed.exists():
            print(failed.read_text(), file=sys.stderr)
            return 1
        if not (Path(work) / "done").exists():
            print("screenshots: QGIS ended before the scene did", file=sys.stderr)
            return 1
    for name in ("dialog.png", "dialog-learned.png", "paris-canvas.png"):
        print(f"docs/images/{name}")
    return 0


def play(iface):
    """Play the scene step by step; each step waits for the event loop."""
    import traceback

    from qgis.PyQt.QtCore import QTimer

    scene = Scene(iface)
    steps = [
        (3000, scene.load),
        (1500, scene.open_dialog),
        (1000, scene.shoot_dialog),
        (500, scene.choose_learned),
        (1000, scene.shoot_learned),
        (500, scene.choose_default),
        (500, scene.run),
        (200, scene.wait),
        (1500, scene.arrange),
        (1500, scene.zoom),
        (3000, scene.shoot_canvas),
        (200, scene.leave),
    ]

    def step():
        delay, action = steps[0]
        try:
            if action() is False:  # not yet: again
                QTimer.singleShot(delay, step)
                return
        except Exception:
            Path(scene.work, "failed.txt").write_text(traceback.format_exc())
            scene.leave(done=False)
            return
        steps.pop(0)
        if steps:
            QTimer.singleShot(steps[0][0], step)

    QTimer.singleShot(steps[0][0], step)
    return scene


class Scene:
    """The Paris pair, from two layers to the fused one."""

    def __init__(self, iface):
        self.iface = iface
        self.work = os.environ[FOLDER_VARIABLE]
        self.images = os.environ["HYPERSHARP_IMAGES"]
        self.window = iface.mainWindow()

    def load(self):
        """Load the pair into a tidy window."""
        from qgis.core import QgsCoordinateReferenceSystem, QgsProject, QgsRasterLayer
        from qgis.PyQt.QtWidgets import QDockWidget, QToolBar

        self.window.showNormal()
        self.window.move(0, 0)
        self.window.resize(*SIZE)
        for dock in self.window.findChildren(QDockWidget):
            dock.setVisible(dock.objectName() == "Layers")
        keep = {"mFileToolBar", "mMapNavToolBar", "mRasterToolBar"}
        for bar in self.window.findChildren(QToolBar):
            if bar.parent() is self.window:
                bar.setVisible(bar.objectName() in keep)
        self.hs = QgsRasterLayer(os.path.join(self.work, "paris_hyperion_hs_30m.tif"), "Hyperion 30 m")
        self.pan = QgsRasterLayer(os.path.join(self.work, "paris_ali_pan_10m.tif"), "ALI PAN 10 m")
        self._soften()
        QgsProject.instance().setCrs(QgsCoordinateReferenceSystem("EPSG:32631"))
        QgsProject.instance().addMapLayers([self.pan, self.hs])
        self.iface.mapCanvas().setExtent(self.hs.extent())

    def _soften(self):
        """Style the source as a user would: true colour, with room for the detail that fusion adds."""
        from qgis.core import QgsContrastEnhancement, QgsMultiBandColorRenderer

        provider = self.hs.dataProvider()
        renderer = QgsMultiBandColorRenderer(provider, 23, 13, 3)
        setters = (
            renderer.setRedContrastEnhancement,
            renderer.setGreenContrastEnhancement,
            renderer.setBlueContrastEnhancement,
        )
        for setter, band in zip(setters, (23, 13, 3)):
            low, high = provider.cumulativeCut(band, 0.02, 0.98, self.hs.extent(), 0)
            enhancement = QgsContrastEnhancement(provider.dataType(band))
            enhancement.setMinimumValue(low - 0.4 * (high - low))
            enhancement.setMaximumValue(high + 0.5 * (high - low))
            enhancement.setContrastEnhancementAlgorithm(
                QgsContrastEnhancement.ContrastEnhancementAlgorithm.StretchToMinimumMaximum
            )
            setter(enhancement)
        self.hs.setRenderer(renderer)

    def open_dialog(self):
        """Open the dialog from the plugin."""
        import qgis.utils

        self.dialog = qgis.utils.plugins["hypersharp"].show_fusion_dialog()
        self.dialog.options.setCollapsed(False)
        self.dialog.resize(1000, 640)
        self.dialog.move(200, 120)
        self.dialog.output_widget.setFilePath("paris_fused.tif")

    def shoot_dialog(self):
        """Take the dialog's picture."""
        self.dialog.grab().save(os.path.join(self.images, "dialog.png"))

    def _choose(self, method):
        combo = self.dialog.method_combo
        combo.setCurrentIndex(combo.findData(method))

    def choose_learned(self):
        """Choose a learned method, to be adapted to the pair."""
        from hypersharp.backend.registry import METHODS

        self.chosen = self.dialog.method()
        self._choose(next(m.id for m in METHODS.values() if m.needs_weights))
        self.dialog.learned.steps_spin.setValue(200)

    def shoot_learned(self):
        """Take the dialog's picture again."""
        self.dialog.grab().save(os.path.join(self.images, "dialog-learned.png"))

    def choose_default(self):
        """Choose what was chosen before."""
        self._choose(self.chosen)

    def run(self):
        """Press Run."""
        self.dialog.output_widget.setFilePath(os.path.join(self.work, "paris_fused.tif"))
        self.task = self.dialog.run()
        if self.task is None:
            raise RuntimeError(f"refused: {self.dialog.problems()}")

    def wait(self):
        """Wait for the result."""
        if self.task.error is not None:
            raise RuntimeError(self.task.error.message)
        return self.task.layer is not None

    def arrange(self):
        """Put before and after side by side: a second map view shows the hyperspectral layer."""
        from qgis.core import QgsMapThemeCollection, QgsProject
        from qgis.PyQt.QtCore import Qt
        from qgis.PyQt.QtWidgets import QDockWidget

        self.dialog.hide()
        project = QgsProject.instance()
        root, model = project.layerTreeRoot(), self.iface.layerTreeView().layerTreeModel()
        fused = self.task.layer
        for name, shown in (("before", self.hs), ("after", fused)):
            for layer in (self.hs, self.pan, fused):
                root.findLayer(layer.id()).setItemVisibilityChecked(layer is shown)
            theme = QgsMapThemeCollection.createThemeFromCurrentState(root, model)
            project.mapThemeCollection().insert(name, theme)
        for node in root.findLayers():
            node.setExpanded(node.layer() is fused)
        view = self.iface.createNewMapCanvas("Before: Hyperion, 30 m")
        view.setTheme("before")
        dock = view.parent()
        while not isinstance(dock, QDockWidget):
            dock = dock.parent()
        layers = self.window.findChild(QDockWidget, "Layers")
        self.window.addDockWidget(Qt.DockWidgetArea.LeftDockWidgetArea, dock)
        dock.setFloating(False)
        self.window.splitDockWidget(layers, dock, Qt.Orientation.Horizontal)
        dock.show()
        self.window.resizeDocks([layers, dock], [225, 500], Qt.Orientation.Horizontal)
        self.view = view
        group = root.findGroup(self.task.source.group_name)
        group.setExpanded(True)
        self.iface.layerTreeView().setCurrentLayer(fused)

    def zoom(self):
        """Show the whole pair in both views."""
        box = self.task.layer.extent()
        box.scale(1.02)
        for canvas in (self.iface.mapCanvas(), self.view):
            canvas.setExtent(box)
            canvas.refresh()

    def shoot_canvas(self):
        """Take the window's picture."""
        self.window.grab().save(os.path.join(self.images, "paris-canvas.png"))

    def leave(self, done=True):
        """End QGIS."""
        from qgis.core import QgsProject

        if done:
            Path(self.work, "done").touch()
        QgsProject.instance().clear()
        self.iface.actionExit().trigger()


if FOLDER_VARIABLE in os.environ:
    from qgis.utils import iface as _iface

    _scene = play(_iface)
elif __name__ == "__main__":
    sys.exit(launch())
