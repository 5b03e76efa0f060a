"""The right-click action: a fused layer is scored with the sources that were noted on it."""

import os

import pytest

pytest.importorskip("qgis.core")

import hypersharp
from hypersharp.plugin import api, layers, quality_action
from qgis.core import QgsProject, QgsRasterLayer

pytestmark = pytest.mark.usefixtures("no_children")


def test_a_fused_layer_is_scored(desktop, qgis_new_project, make_raster):
    from pytest_qgis.utils import wait

    hs = make_raster("hs.tif", bands=6, size=40, pixel=30.0, wavelengths=[450, 550, 650, 850, 1600, 2200])
    guide = make_raster("guide.tif", bands=1, size=120, pixel=10.0)
    plugin = hypersharp.classFactory(desktop)
    plugin.initGui()
    try:
        added = []
        say = {"on_finished": lambda layer, _: added.append(layer), "on_error": added.append}
        api.fuse(hs, guide, method="gsa", assess=False, **say)
        while not added:
            wait(50)
        fused = added[0]
        assert isinstance(fused, QgsRasterLayer), fused
        assert layers.noted_sources(fused) == (hs, guide)
        desktop.active = fused
        before = set(QgsProject.instance().mapLayers())
        task = plugin.show_quality()
        outcome = []
        task.succeeded.connect(outcome.append)
        task.failed.connect(outcome.append)
        while not outcome:
            wait(50)
        metrics = outcome[0].metrics
        assert metrics["method"] == "gsa"  # read from the file itself
        assert metrics["reduced_resolution"]["fused"]["SAM"] is not None
        assert os.path.getsize(outcome[0].outputs["REPORT"]) > 10_000
        assert desktop.messageBar().currentItem() is not None
        assert set(QgsProject.instance().mapLayers()) == before
    finally:
        plugin.unload()


def test_a_stranger_is_asked_for(desktop, qgis_new_project, make_raster, monkeypatch):
    path = make_raster("other.tif")
    layer = QgsRasterLayer(path, "other")
    assert quality_action.assess_job(layer) is None
    layer.setCustomProperty("hypersharp/hs", "/gone/hs.tif")
    layer.setCustomProperty("hypersharp/guide", path)
    assert quality_action.assess_job(layer) is None  # a source that is gone counts as unknown
    plugin = hypersharp.classFactory(desktop)
    plugin.initGui()
    try:
        asked = []
        monkeypatch.setattr(quality_action.QualityAction, "_ask", lambda self, layer: asked.append(layer))
        desktop.active = layer
        assert plugin.show_quality() is None
        assert asked == [layer]
        desktop.active = None
        assert plugin.show_quality() is None and len(asked) == 1
    finally:
        plugin.unload()
