"""Comparing from the map: the task, the group of layers it leaves, and the dialog that starts it."""

import json
import time
from pathlib import Path

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.job import CompareJob
from hypersharp.plugin import compare_group, layers
from pytest_qgis.utils import wait
from qgis.core import QgsProject, QgsRasterLayer, QgsRectangle

pytestmark = pytest.mark.usefixtures("no_children")
WAVELENGTHS = [450, 550, 650, 850, 1600, 2200]


def wait_until(condition, seconds=180):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        wait(20)


@pytest.fixture
def pair(qgis_app, qgis_new_project, make_raster):
    """Two layers in the project."""
    hs = QgsRasterLayer(make_raster("hs.tif", size=16, pixel=30, wavelengths=WAVELENGTHS), "Scene")
    pan = QgsRasterLayer(make_raster("pan.tif", bands=1, size=48, pixel=10, seed=1), "Sharp")
    QgsProject.instance().addMapLayers([hs, pan])
    return hs, pan


def table_of(folder, make_raster, recommended="gsa"):
    """A comparison's folder as the engine leaves it: two methods done, one failed, the control."""
    rows = []
    for rank, (method, factor) in enumerate((("sfim", 1.5), ("gsa", 1.4)), start=1):
        (folder / method).mkdir(parents=True)
        path = make_raster(f"{method}.tif", size=48, pixel=10, wavelengths=WAVELENGTHS)
        Path(path).rename(folder / method / "fused.tif")
        (folder / method / "metrics.json").write_text(json.dumps({"method": method, "ratio": 3}))
        rows.append(
            {
                "method": method,
                "rank": rank,
                "factor": factor,
                "fused": f"{method}/fused.tif",
                "error": None,
            }
        )
    rows.append({"method": "interpolation", "rank": 3, "factor": 1.0, "fused": None, "error": None})
    rows.append(
        {"method": "pca", "rank": None, "factor": None, "fused": None, "error": {"message": "no luck"}}
    )
    return {"methods": rows, "recommendation": {"method": recommended, "text": "Use GSA."}}


@pytest.fixture
def source(pair, tmp_path):
    hs, pan = pair
    job = CompareJob(hs.source(), pan.source(), str(tmp_path / "out"))
    style = layers.ColourStyle((3, 2, 1), ((3000.0, 3400.0), (2000.0, 2300.0), (1000.0, 1200.0)), 1, True)
    return compare_group.CompareSource(job, "Scene", "Sharp", style, hs.id())


def test_hidden_but_for_the_best(source, tmp_path, make_raster):
    table = table_of(tmp_path / "out", make_raster)
    compared = compare_group.add_group(source, table)
    names = [layer.name() for layer in compared.layers]
    assert names == ["1. SFIM (1.50×)", "2. GSA (1.40×)"]
    assert [node.name() for node in compared.group.findLayers()] == names
    shown = {node.name(): node.itemVisibilityChecked() for node in compared.group.findLayers()}
    assert shown == {"1. SFIM (1.50×)": False, "2. GSA (1.40×)": True}  # the recommended one, not the first
    assert compared.best.name() == "2. GSA (1.40×)"
    assert QgsProject.instance().layerTreeRoot().children()[0] is compared.group
    assert compared.group.name() == "Scene: methods compared"
    for layer in compared.layers:
        assert layers._shown(layer)[0] == (3, 2, 1)  # all with the source's bands and stretch
        assert "Sharp" in layer.metadata().abstract()
    assert len(QgsProject.instance().mapLayers()) == 4


def test_the_first_where_none_is_recommended(source, tmp_path, make_raster):
    compared = compare_group.add_group(source, table_of(tmp_path / "out", make_raster, recommended=None))
    assert compared.best.name().startswith("1. SFIM")


def test_files_that_went_missing_cost_only_their_layers(source, tmp_path, make_raster):
    table = table_of(tmp_path / "out", make_raster)
    (tmp_path / "out" / "gsa" / "fused.tif").unlink()
    (tmp_path / "out" / "sfim" / "metrics.json").write_text("{broken")
    compared = compare_group.add_group(source, table)
    assert [layer.name() for layer in compared.layers] == ["1. SFIM (1.50×)"]
    assert compared.best is compared.layers[0]


def test_a_run_in_the_background(pair, backend, tmp_path):
    got, told = [], []
    compare_group.compare(
        *pair,
        str(tmp_path / "out"),
        ["bicubic", "gsa", "sfim"],
        on_finished=lambda compared, table: got.append((compared, table)),
        on_error=told.append,
        report=False,
    )
    wait_until(lambda: got or told)
    assert not told, told
    compared, table = got[0]
    assert len(compared.layers) == 3
    assert {r["method"] for r in table["methods"]} == {"bicubic", "gsa", "sfim"}
    visible = [n.name() for n in compared.group.findLayers() if n.itemVisibilityChecked()]
    assert len(visible) == 1
    assert (tmp_path / "out" / "compare.csv").is_file()


def test_only_the_visible_extent(pair, desktop):
    canvas = desktop.mapCanvas()
    canvas.setDestinationCrs(pair[0].crs())
    canvas.resize(300, 300)
    box = QgsRectangle(500060, 5399760, 500240, 5399940)
    canvas.setExtent(box)
    job = compare_group.make_job(*pair, extent=compare_group.visible_extent(canvas))
    assert QgsRectangle(*job.extent).contains(box)
    assert job.extent_crs == "EPSG:32631"
    assert job.methods == ["all"]
    assert compare_group.make_job(*pair).extent is None


def test_a_pair_that_does_not_fit_is_refused(pair, make_raster):
    far = make_raster("far.tif", bands=1, size=48, pixel=10, origin=(0, 0))
    with pytest.raises(HyperSharpError, match="overlap"):
        compare_group.compare(pair[0], far)


def test_a_cancelled_run_adds_nothing(pair, source, fake, tmp_path):
    told = []
    job = compare_group.CompareTask(source, on_error=told.append, command=fake("mute"))
    from qgis.core import QgsApplication

    QgsApplication.taskManager().addTask(job)
    wait(500)
    job.cancel()
    wait_until(lambda: told, 30)
    assert told[0].code is ErrorCode.CANCELLED
    assert len(QgsProject.instance().mapLayers()) == 2


def test_dialog(pair, desktop, backend, tmp_path):
    from hypersharp.backend.registry import METHODS
    from hypersharp.ui.compare_dialog import CompareDialog
    from qgis.PyQt.QtCore import Qt
    from qgis.PyQt.QtWidgets import QPushButton

    dialog = CompareDialog(desktop, desktop.mainWindow(), pair)
    assert dialog.methods() == [m for m, info in METHODS.items() if not info.needs_weights]
    buttons = {b.text(): b for b in dialog.findChildren(QPushButton)}
    buttons["None"].click()
    assert dialog.methods() == []
    assert dialog.run() is None
    buttons["All"].click()
    assert dialog.methods() == list(METHODS)
    for index in range(dialog.methods_list.count()):
        item = dialog.methods_list.item(index)
        wanted = item.data(Qt.ItemDataRole.UserRole) in ("gsa", "sfim")
        item.setCheckState(Qt.CheckState.Checked if wanted else Qt.CheckState.Unchecked)
    assert dialog.methods() == ["gsa", "sfim"]
    dialog.folder_widget.setFilePath(str(tmp_path / "out"))
    canvas = desktop.mapCanvas()
    canvas.setDestinationCrs(pair[0].crs())
    canvas.setExtent(QgsRectangle(0, 0, 10, 10))
    assert dialog.run() is None  # the map shows nothing of the pair
    assert dialog.message_bar.currentItem() is not None
    dialog.visible_check.setChecked(False)
    dialog.show()
    assert dialog.run() is not None
    assert not dialog.isVisible()
    wait_until(lambda: desktop.messageBar().currentItem() is not None)
    text = desktop.messageBar().currentItem().text()
    assert "interpolation" in text
    assert QgsProject.instance().layerTreeRoot().findGroup("Scene: methods compared") is not None


def test_dialog_without_layers(qgis_app, qgis_new_project, desktop):
    from hypersharp.ui.compare_dialog import CompareDialog

    dialog = CompareDialog(desktop, desktop.mainWindow())
    assert dialog.run() is None
    assert dialog.message_bar.currentItem() is not None
