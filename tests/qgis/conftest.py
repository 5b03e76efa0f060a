"""What the QGIS tests share: the fake worker, small rasters, a clean environment."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("qgis.core")

HERE = Path(__file__).resolve().parent


@pytest.fixture(autouse=True)
def considerate(monkeypatch):
    """Leave no statistics beside the data that QGIS looks at, and a core to the others."""
    from osgeo import gdal

    gdal.SetConfigOption("GDAL_PAM_ENABLED", "NO")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    gdal.SetConfigOption("GDAL_PAM_ENABLED", None)


@pytest.fixture
def provider(qgis_app, qgis_processing, qgis_new_project):
    """The provider, registered as the plugin does."""
    from hypersharp.plugin.provider import HyperSharpProvider
    from qgis.core import QgsApplication

    provider = HyperSharpProvider()
    QgsApplication.processingRegistry().addProvider(provider)
    yield provider
    QgsApplication.processingRegistry().removeProvider(provider)


@pytest.fixture
def backend():
    """Skip where there is no fusion environment, saying why."""
    from hypersharp.backend.errors import HyperSharpError
    from hypersharp.plugin import environment

    try:
        environment.worker_command()
    except HyperSharpError as error:
        pytest.skip(f"no fusion environment here: {error.message}")


@pytest.fixture
def fake():
    """The command line of a worker that plays a part (see fake_worker.py)."""
    return lambda how: [sys.executable, "-I", str(HERE / "fake_worker.py"), how]


@pytest.fixture
def fuse_job(tmp_path):
    """A fuse job whose inputs nobody reads."""
    from hypersharp.backend.job import FuseJob

    return FuseJob(hs="/nowhere/hs.tif", guide="/nowhere/guide.tif", output=str(tmp_path / "out.tif"))


@pytest.fixture
def make_raster(tmp_path):
    """Write a small GeoTIFF by QGIS's GDAL; return its path."""
    import numpy as np
    from osgeo import gdal, osr

    def make(
        name,
        bands=6,
        size=8,
        pixel=30.0,
        origin=(500000.0, 5400000.0),
        epsg=32631,
        wavelengths=None,
        dtype=gdal.GDT_Float32,
        units="nm",
        seed=0,
    ):
        path = str(tmp_path / name)
        dataset = gdal.GetDriverByName("GTiff").Create(path, size, size, bands, dtype)
        if epsg:
            dataset.SetGeoTransform((origin[0], pixel, 0, origin[1], 0, -pixel))
            reference = osr.SpatialReference()
            reference.ImportFromEPSG(epsg)
            dataset.SetProjection(reference.ExportToWkt())
        values = np.random.default_rng(seed)
        for index in range(bands):
            band = dataset.GetRasterBand(index + 1)
            data = (1000 * (index + 1) + 500 * values.random((size, size))).astype("float32")
            band.WriteRaster(0, 0, size, size, data.tobytes(), buf_type=gdal.GDT_Float32)
            if wavelengths:
                band.SetMetadataItem("wavelength", str(wavelengths[index]))
                if units:
                    band.SetMetadataItem("wavelength_units", units)
        dataset = None
        return path

    return make


def child_processes():
    """Return the process ids of this process's living children."""
    with subprocess.Popen(
        ["ps", "-o", "pid=,stat=", "--ppid", str(os.getpid())], stdout=subprocess.PIPE, text=True
    ) as ps:
        rows = [line.split() for line in ps.communicate()[0].splitlines()]
    return {int(pid) for pid, state in rows if not state.startswith("Z")} - {ps.pid}


@pytest.fixture
def no_children():
    """Fail when the test leaves a process behind."""
    before = child_processes()
    yield
    end = time.monotonic() + 5
    while child_processes() - before and time.monotonic() < end:
        time.sleep(0.1)
    assert not child_processes() - before


class Desktop:
    """What of QGIS's interface the plugin touches, counted."""

    def __init__(self):
        from qgis.PyQt.QtWidgets import QMainWindow, QMenu

        self.window = QMainWindow()
        self.menu, self.toolbar, self.help = {}, [], QMenu(self.window)
        self.layer_actions, self.active = [], None

    def mainWindow(self):
        return self.window

    def addPluginToRasterMenu(self, name, action):
        self.menu.setdefault(name, []).append(action)

    def removePluginRasterMenu(self, name, action):
        self.menu[name].remove(action)

    def addRasterToolBarIcon(self, action):
        self.toolbar.append(action)

    def removeRasterToolBarIcon(self, action):
        self.toolbar.remove(action)

    def addCustomActionForLayerType(self, action, menu, kind, all_layers):
        self.layer_actions.append(action)

    def removeCustomActionForLayerType(self, action):
        self.layer_actions.remove(action)

    def activeLayer(self):
        return self.active

    def pluginHelpMenu(self):
        return self.help

    def mapCanvas(self):
        from qgis.gui import QgsMapCanvas

        if not hasattr(self, "canvas"):
            self.canvas = QgsMapCanvas(self.window)
        return self.canvas

    def messageBar(self):
        from qgis.gui import QgsMessageBar

        if not hasattr(self, "bar"):
            self.bar = QgsMessageBar(self.window)
        return self.bar


@pytest.fixture
def desktop(qgis_app):
    """A stand-in for QGIS's interface with a real window, canvas and message bar."""
    stand_in = Desktop()
    yield stand_in
    stand_in.window.deleteLater()
