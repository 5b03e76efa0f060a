"""The dialog: what it says before the run, the task it starts, and the layer that comes of it."""

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend.errors import HyperSharpError
from hypersharp.plugin import environment, layers, settings, task, worker_process
from pytest_qgis.utils import wait
from qgis.core import QgsProject, QgsRasterLayer
from qgis.PyQt.QtWidgets import QPushButton

pytestmark = pytest.mark.usefixtures("no_children")


def wait_until(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "nothing happened in time"
        wait(20)


@pytest.fixture
def commands(monkeypatch):
    """Make the dialog's runs use a given worker."""
    return lambda command: monkeypatch.setattr(environment, "worker_command", lambda *_: command)


@pytest.fixture
def pair(qgis_new_project, make_raster):
    """Two layers in the project."""
    hs = QgsRasterLayer(
        make_raster("hs.tif", size=16, pixel=30, wavelengths=[450, 550, 650, 850, 1600, 2200]), "Scene"
    )
    pan = QgsRasterLayer(make_raster("pan.tif", bands=1, size=48, pixel=10, seed=1), "Sharp")
    QgsProject.instance().addMapLayers([hs, pan])
    return hs, pan


@pytest.fixture
def dialog(pair, desktop, tmp_path):
    from hypersharp.ui.fusion_dialog import FusionDialog

    settings.set_method("gsa")
    shown = FusionDialog(desktop, desktop.mainWindow())
    shown.output_widget.setFilePath(str(tmp_path / "out.tif"))
    shown.show()
    shown.refresh()
    yield shown
    task.abandon_all()
    wait_until(lambda: not task.alive(), 20)
    shown.close()
    shown.deleteLater()


def messages_of(bar):
    return [item.text() for item in bar.items()]


def test_the_likely_pair_is_chosen_and_told(dialog, pair):
    assert (dialog.hs_chooser.source(), dialog.guide_chooser.source()) == pair
    text = dialog.panel.toPlainText()
    for word in ("6", "16 × 16", "48 × 48", "30 m", "10 m", "450–2200 nm", "Ready"):
        assert word in text, word
    assert "3" in text.split("Ratio")[1].split()[0]
    assert "100 %" in text
    assert dialog.run_button.isEnabled()
    assert not dialog.cancel_button.isEnabled()


def test_problems_are_told_before_the_run(dialog, pair, tmp_path):
    dialog.guide_chooser.set_layer(pair[0])
    dialog.refresh()
    assert "same file" in dialog.panel.toPlainText()
    assert not dialog.run_button.isEnabled()
    assert dialog.run() is None
    dialog.guide_chooser.set_layer(None)
    dialog.refresh()
    assert "Choose" in dialog.panel.toPlainText()
    dialog.guide_chooser.set_layer(pair[1])
    dialog.output_widget.setFilePath(str(tmp_path / "no" / "out.tif"))
    dialog.refresh()
    assert "does not exist" in dialog.panel.toPlainText()
    assert not dialog.run_button.isEnabled()


def test_a_file_that_is_not_in_the_project(dialog, make_raster):
    path = make_raster("other.tif", bands=2, size=32, pixel=15)
    dialog.guide_chooser.set_file(path)
    dialog.refresh()
    assert dialog.guide_chooser.source() == path
    assert "15 m" in dialog.panel.toPlainText()
    assert dialog.run_button.isEnabled()


def test_missing_environment_is_told_before_the_run(dialog, monkeypatch):
    monkeypatch.setattr(environment, "checkout_pythons", lambda: [])
    monkeypatch.delenv(environment.ENVIRONMENT_VARIABLE, raising=False)
    dialog.refresh()
    assert "No fusion environment" in dialog.panel.toPlainText()
    assert not dialog.run_button.isEnabled()


def test_the_result_is_on_the_map_styled_as_its_source(dialog, pair, backend, desktop, tmp_path):
    hs, _ = pair
    style = layers.ColourStyle((4, 3, 2), ((4000.0, 4400.0), (3000.0, 3300.0), (2000.0, 2200.0)), 1, True)
    layers.apply_style(hs, style)
    running = dialog.run()
    assert running is not None
    assert not dialog.run_button.isEnabled()
    assert dialog.cancel_button.isEnabled()
    assert dialog.hs_chooser.isEnabled()  # the dialog stays usable
    stages = []
    running.progressed.connect(lambda stage, *_: stages.append(stage))
    wait_until(lambda: running.layer is not None or running.error is not None)
    assert running.error is None
    wait(50)
    layer = running.layer
    assert QgsProject.instance().mapLayer(layer.id()) is layer
    assert layers._shown(layer) == layers._shown(hs)
    group = QgsProject.instance().layerTreeRoot().findLayer(layer.id()).parent()
    assert ("Scene" in group.name(), "GSA" in group.name()) == (True, True)
    assert ("Scene" in layer.name(), "GSA" in layer.name()) == (True, True)
    assert {"fusing", "assessing"} <= set(stages)
    metadata = layer.metadata()
    assert "gsa" in metadata.history()[0]
    assert "seed=0" in metadata.history()[0]
    assert "torch" in metadata.abstract()
    assert (tmp_path / "out.qmd").is_file()
    assert dialog.stage_label.text() == "Done"
    assert dialog.run_button.isEnabled()
    for bar in (dialog.message_bar, desktop.messageBar()):
        button = bar.currentItem().findChild(QPushButton, "hypersharp_open_report")
        assert button is not None
    assert (tmp_path / "out_report.html").is_file()
    assert (tmp_path / "out_metrics.json").is_file()


def test_the_report_button_opens_the_report(desktop, qgis_app, monkeypatch):
    from hypersharp.ui import messages

    opened = []
    monkeypatch.setattr(messages, "open_file", opened.append)
    messages.push_success(desktop.messageBar(), "done", "/a/report.html")
    desktop.messageBar().currentItem().findChild(QPushButton, "hypersharp_open_report").click()
    assert opened == ["/a/report.html"]
    messages.push_success(desktop.messageBar(), "done")
    assert desktop.messageBar().currentItem().findChild(QPushButton, "hypersharp_open_report") is None


def test_the_warnings_button_shows_what_was_warned_of(desktop, qgis_app):
    from hypersharp.ui import messages
    from qgis.gui import QgsMessageViewer
    from qgis.PyQt.QtWidgets import QApplication, QTextEdit

    bar = desktop.messageBar()
    messages.push_success(bar, "done", warnings=["the image is moved", "it is small"])
    button = bar.currentItem().findChild(QPushButton, "hypersharp_show_warnings")
    assert button.text() == "2 warnings"
    button.click()
    viewers = [w for w in QApplication.topLevelWidgets() if isinstance(w, QgsMessageViewer) and w.isVisible()]
    assert len(viewers) == 1
    said = viewers[0].findChild(QTextEdit).toPlainText()
    assert said.split() == "The image is moved. It is small.".split()
    viewers[0].close()
    messages.push_success(bar, "done")
    assert bar.currentItem().findChild(QPushButton, "hypersharp_show_warnings") is None


def test_an_unstyled_source_is_shown_alike(qgis_app, pair):
    hs, _ = pair
    style = layers.colour_style(hs)
    assert style.bands == (3, 2, 1)  # 650, 550, 450 nm
    assert not style.as_shown
    low, high = style.ranges[0]
    assert 3000 <= low < high <= 3500  # band 3's values, by construction
    from hypersharp.backend.job import FuseJob

    source = layers.FusedSource(FuseJob(hs.source(), "g", "o"), "Scene", "Sharp", style, hs.id())
    assert layers.match_source(source)
    assert layers._shown(hs)[:2] == (style.bands, style.ranges)
    assert not layers.match_source(source)  # now it is a choice, and choices are left alone


def test_whole_numbers_with_a_scale_have_a_stretch(qgis_app, make_raster):
    from osgeo import gdal

    path = make_raster("scaled.tif", wavelengths=[450, 550, 650, 850, 1600, 2200], dtype=gdal.GDT_Int16)
    dataset = gdal.Open(path, gdal.GA_Update)
    for index in range(6):
        dataset.GetRasterBand(index + 1).SetScale(1e-4)
    dataset = None
    low, high = layers.colour_style(path).ranges[0]
    assert 0.29 <= low < high <= 0.36  # band 3's values, by construction


def test_a_stretch_where_there_is_no_histogram():
    class Provider:
        """As QGIS 3.44's is for whole numbers with a scale."""

        def cumulativeCut(self, *_):
            return float("nan"), float("nan")

        def bandStatistics(self, _band):
            return SimpleNamespace(mean=0.3, stdDev=0.1, minimumValue=0.05, maximumValue=0.45)

    low, high = layers._stretch(SimpleNamespace(dataProvider=Provider), 1)
    assert low == pytest.approx(0.1) and high == 0.45


def test_a_grey_source_gives_true_colour(qgis_app, pair):
    from qgis.core import QgsSingleBandGrayRenderer

    hs, _ = pair
    hs.setRenderer(QgsSingleBandGrayRenderer(hs.dataProvider(), 1))
    assert layers.colour_style(hs).bands == (3, 2, 1)


def test_cancel(dialog, commands, fake, tmp_path):
    commands(fake("slow"))
    running = dialog.run()
    wait_until(lambda: dialog.progress_bar.value() > 0)
    dialog.cancel_button.click()
    wait_until(lambda: running.error is not None, 10)
    wait(50)
    assert "Cancelled" in dialog.stage_label.text()
    assert dialog.run_button.isEnabled()
    assert len(QgsProject.instance().mapLayers()) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hs.tif", "pan.tif"]
    assert messages_of(dialog.message_bar) == []


def test_worker_killed_in_the_middle(dialog, commands, fake, tmp_path):
    commands(fake("slow"))
    running = dialog.run()
    wait_until(lambda: dialog.progress_bar.value() > 0)
    (worker,) = worker_process._running
    os.kill(worker.pid, signal.SIGKILL)
    wait_until(lambda: running.error is not None, 10)
    wait(50)
    assert "ended unexpectedly" in messages_of(dialog.message_bar)[0]
    assert dialog.stage_label.text() == "Failed"
    assert dialog.run_button.isEnabled()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hs.tif", "pan.tif"]
    assert len(QgsProject.instance().mapLayers()) == 2


def test_two_runs_at_once(pair, backend, tmp_path):
    from hypersharp.plugin.api import fuse

    done = {}
    tasks = [
        fuse(
            *pair,
            method=method,
            output=tmp_path / f"{method}.tif",
            assess=False,
            on_finished=lambda layer, metrics: done.update({metrics["method"]: layer.source()}),
        )
        for method in ("sfim", "brovey")
    ]
    wait_until(lambda: len(done) == 2 or any(t.error for t in tasks))
    assert [t.error for t in tasks] == [None, None]
    assert {m: Path(p).name for m, p in done.items()} == {"sfim": "sfim.tif", "brovey": "brovey.tif"}
    groups = [g.name() for g in QgsProject.instance().layerTreeRoot().findGroups()]
    assert len(groups) == 2


def test_api_refuses_before_it_starts(pair, tmp_path):
    from hypersharp.plugin.api import fuse, fuse_blocking, make_job

    hs, pan = pair
    for call, words in (
        (lambda: fuse(hs, hs), "same file"),
        (lambda: fuse(hs, pan, method="gsaa"), "unknown method"),
        (lambda: fuse(hs, pan, colour="red"), "unknown option"),
        (lambda: fuse_blocking(pan, hs), "too few bands: 1"),
        (lambda: fuse_blocking(str(tmp_path / "none.tif"), pan), "not found"),
    ):
        with pytest.raises(HyperSharpError, match=words) as caught:
            call()
        assert caught.value.hint
    assert task.alive() == []
    job = make_job(hs, pan, extent=hs.extent())
    assert job.extent == (500000, 5400000 - 480, 500480, 5400000)
    # The worker has a working folder of its own.
    assert make_job(hs, pan, method="s3rnet", weights="s3rnet").weights == "s3rnet"
    assert make_job(hs, pan, method="s3rnet", weights="mine").weights == os.path.abspath("mine")


def test_api_blocking(pair, backend, tmp_path):
    from hypersharp.plugin.api import fuse_blocking

    path, metrics = fuse_blocking(*pair, method="bicubic", output=tmp_path / "o.tif", assess=False)
    assert QgsRasterLayer(path).isValid()
    assert metrics["method"] == "bicubic"
    assert len(QgsProject.instance().mapLayers()) == 2


def choose(dialog, method):
    dialog.method_combo.setCurrentIndex(dialog.method_combo.findData(method))
    dialog.refresh()


def test_learned_options_show_for_learned_methods_only(dialog):
    learned = dialog.learned
    rows = (learned.weights_combo, learned.steps_spin)
    for method in ("gsa", "s3rnet", "gsa"):
        choose(dialog, method)
        assert [w.isVisible() for w in rows] == [method == "s3rnet"] * 2
        assert dialog.options.device_combo.isVisible()
        assert not learned.folder_widget.isVisible()
        learned.steps_spin.setValue(50)
        wanted = 50 if method == "s3rnet" else 0
        assert learned.values() == {"weights": None, "adapt_steps": wanted}


def test_weights_by_name_or_from_a_folder(dialog, tmp_path):
    from hypersharp.backend.weights import SHIPPED, shipped_for

    choose(dialog, "s3rnet")
    learned = dialog.learned
    names = [learned.weights_combo.itemData(i) for i in range(learned.weights_combo.count())]
    assert names == [*shipped_for("s3rnet"), ""] and names[0] == "s3rnet"
    assert "Ready" in dialog.panel.toPlainText()
    learned.weights_combo.setCurrentIndex(learned.weights_combo.findData(""))
    dialog.refresh()
    assert learned.folder_widget.isVisible()
    for folder, words in (
        ("", "Choose the folder of the weights"),
        (str(tmp_path / "none"), "There are no weights"),
        (str(tmp_path), "no config.json"),
    ):
        learned.folder_widget.setFilePath(folder)
        dialog.refresh()
        assert words in dialog.panel.toPlainText()
        assert not dialog.run_button.isEnabled()
    learned.folder_widget.setFilePath(str(SHIPPED / "s3rnet"))
    dialog.refresh()
    assert dialog.run_button.isEnabled()
    assert learned.values()["weights"] == str(SHIPPED / "s3rnet")
    choose(dialog, "gsa")
    assert dialog.run_button.isEnabled() and not learned.folder_widget.isVisible()
    choose(dialog, "s3rnet")  # the folder that was named stays chosen
    assert learned.values()["weights"] == str(SHIPPED / "s3rnet")


def test_the_time_counts_the_network_and_adaptation(dialog, monkeypatch):
    from hypersharp.ui import fusion_dialog

    choose(dialog, "s3rnet")
    dialog.options.device_combo.setCurrentIndex(dialog.options.device_combo.findData("cpu"))
    pair = dialog._pair
    plain = pair.estimate("s3rnet", "same", 2.0, False).seconds
    assert plain > pair.estimate("lmmse", "same", 2.0, False).seconds
    steps = pair.estimate("s3rnet", "same", 2.0, False, adapt_steps=1000).seconds - plain
    assert steps >= 1000 * 0.05
    # Assessing fits and tunes again one scale down.
    assert pair.estimate("s3rnet", "same", 2.0, True, adapt_steps=1000).seconds - plain > 1.9 * steps
    assert pair.estimate("gsa", "same", 2.0, False, adapt_steps=1000) == pair.estimate(
        "gsa", "same", 2.0, False
    )
    dialog.learned.steps_spin.setValue(1000)
    dialog.refresh()
    text = dialog.panel.toPlainText().replace("\xa0", " ")
    assert "on the CPU" in text and "of it adaptation" in text and "GPU" not in text
    assert fusion_dialog.learned_time(600, 0, "auto") == "about 10 min on the CPU; less on a GPU"


def test_a_method_is_asked_for_its_own_options(dialog, monkeypatch):
    from hypersharp.plugin import api

    options = dialog.method_options
    preset, rank = (options.fields["mpsrnet-diff", name] for name in ("preset", "prior_rank"))
    choose(dialog, "mpsrnet-diff")
    assert preset.isVisible() and rank.isVisible()
    assert (preset.currentData(), rank.value(), rank.maximum()) == ("quick", 3, 12)
    assert options.values() == {}  # the method's own defaults need not be said
    settled = ("mpsrnet-diff", "same", 2.0, False)
    quick = dialog._pair.estimate(*settled).seconds
    preset.setCurrentIndex(preset.findData("fine"))
    rank.setValue(6)
    assert options.values() == {"preset": "fine", "prior_rank": 6}
    assert dialog._pair.estimate(*settled, parameters=options.values()).seconds > quick
    asked = []
    monkeypatch.setattr(api, "fuse", lambda *_args, **options: asked.append(options["parameters"]))
    monkeypatch.setattr(dialog.learned, "problem", lambda: None)
    dialog.run()
    choose(dialog, "gsa")
    assert not preset.isVisible() and not rank.isVisible()
    dialog.run()
    assert asked == [{"preset": "fine", "prior_rank": 6}, {}]


def test_a_learned_method_from_the_dialog(dialog, backend, tmp_path):
    """Method, weights, adaptation and device reach the worker."""
    choose(dialog, "s3rnet")
    dialog.learned.steps_spin.setValue(2)
    dialog.options.device_combo.setCurrentIndex(dialog.options.device_combo.findData("cpu"))
    dialog.options.report_check.setChecked(False)
    dialog.options.assess_check.setChecked(False)
    assert dialog.options.coregister_check.isChecked()
    dialog.options.coregister_check.setChecked(False)
    running = dialog.run()
    assert (running.fuse_job.adapt_steps, running.fuse_job.device) == (2, "cpu")
    assert running.fuse_job.coregister is False
    wait_until(lambda: running.layer is not None or running.error is not None)
    assert running.error is None
    assert running.result.metrics["method_details"]["weights"] == "s3rnet"
    assert "adaptation" in running.result.metrics["method_details"]


def test_layers_that_came_later_are_found_when_the_dialog_opens(qgis_new_project, desktop, make_raster):
    from hypersharp.ui.fusion_dialog import FusionDialog

    shown = FusionDialog(desktop, desktop.mainWindow())
    shown.show()
    assert shown.hs_chooser.source() is None
    shown.hide()
    hs = QgsRasterLayer(make_raster("hs.tif", size=16, pixel=30), "Scene")
    pan = QgsRasterLayer(make_raster("pan.tif", bands=1, size=48, pixel=10), "Sharp")
    QgsProject.instance().addMapLayers([pan, hs])
    shown.show()
    assert (shown.hs_chooser.source(), shown.guide_chooser.source()) == (hs, pan)
    shown.close()
    shown.deleteLater()
