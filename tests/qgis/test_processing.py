"""The Processing algorithms, with the real backend in its own environment."""

import html
import json
import subprocess
from pathlib import Path

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend.registry import method_ids
from hypersharp.plugin import environment, worker_process
from hypersharp.plugin.pair import read_pair
from hypersharp.plugin.rasters import read_facts
from pytest_qgis.utils import wait
from qgis.core import (
    QgsApplication,
    QgsProcessingAlgRunnerTask,
    QgsProcessingContext,
    QgsProcessingException,
    QgsProcessingFeedback,
    QgsProcessingModelAlgorithm,
    QgsProcessingModelChildAlgorithm,
    QgsProcessingModelChildParameterSource,
    QgsProcessingModelOutput,
    QgsProcessingModelParameter,
    QgsProcessingOutputLayerDefinition,
    QgsProcessingParameterRasterLayer,
    QgsProcessingUtils,
    QgsProject,
    QgsRasterLayer,
)

PARIS = ("paris_hyperion_hs_30m.tif", "paris_ali_pan_10m.tif")
BERLIN = ("berlin_enmapsim_hs_30m.tif", "berlin_hymap_msi_3p6m.tif")


class Heard(QgsProcessingFeedback):
    """Feedback that remembers."""

    def __init__(self, cancel_at=None):
        super().__init__(False)
        self.stages, self.progress_values, self.cancel_at = [], [], cancel_at
        self.progressChanged.connect(self.progress_values.append)

    def setProgressText(self, text):
        self.stages.append(text)
        if self.cancel_at is not None and text.startswith(self.cancel_at):
            self.cancel()


def run(name, feedback=None, **parameters):
    import processing

    return processing.run(f"hypersharp:{name}", parameters, feedback=feedback or QgsProcessingFeedback(False))


def inputs(data, pair):
    return {"SPECTRAL": str(data / "pairs" / pair[0]), "GUIDE": str(data / "pairs" / pair[1])}


@pytest.mark.data
@pytest.mark.parametrize(("pair", "ratio"), [(PARIS, 3), (BERLIN, 8)], ids=["paris", "berlin"])
def test_fuse_a_real_pair(provider, backend, data, tmp_path, pair, ratio):
    heard = Heard()
    result = run(
        "fuse",
        heard,
        **inputs(data, pair),
        METHOD="gsa",
        OUTPUT=str(tmp_path / "fused.tif"),
        REPORT=str(tmp_path / "report.html"),
        METRICS=str(tmp_path / "metrics.json"),
    )
    fused, guide = QgsRasterLayer(result["OUTPUT"]), QgsRasterLayer(str(data / "pairs" / pair[1]))
    hs = QgsRasterLayer(str(data / "pairs" / pair[0]))
    assert fused.isValid()
    assert fused.bandCount() == hs.bandCount()
    assert fused.crs() == guide.crs()
    assert fused.rasterUnitsPerPixelX() == pytest.approx(guide.rasterUnitsPerPixelX())
    assert fused.dataProvider().dataType(1) == hs.dataProvider().dataType(1)
    promised = read_pair(read_facts(hs), read_facts(guide))  # what the dialog says beforehand
    assert (promised.ratio, promised.rows, promised.cols) == (ratio, fused.height(), fused.width())
    metrics = json.loads(Path(result["METRICS"]).read_text())
    assert metrics["ratio"] == ratio
    assert result["SAM"] == metrics["reduced_resolution"]["fused"]["SAM"]
    assert 0 < result["HQNR"] <= 1
    assert result["SECONDS"] > 0
    assert "<html" in Path(result["REPORT"]).read_text().lower()
    assert heard.progress_values[-1] == pytest.approx(100)
    assert heard.progress_values == sorted(heard.progress_values)
    assert any(stage.startswith("Fusing") for stage in heard.stages)
    assert QgsProject.instance().mapLayers() == {}  # Processing loads, the algorithm does not
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "fused.tif",
        "metrics.csv",
        "metrics.json",
        "report.html",
    ]


@pytest.fixture
def pair(make_raster):
    return {
        "SPECTRAL": make_raster("hs.tif", size=16, pixel=30, wavelengths=[450, 550, 650, 850, 1600, 2200]),
        "GUIDE": make_raster("pan.tif", bands=1, size=48, pixel=10, seed=1),
    }


def test_fuse_in_memory_project_without_report(provider, backend, pair, tmp_path):
    result = run("fuse", **pair, METHOD="bicubic", ASSESS=False, OUTPUT=str(tmp_path / "o.tif"), REPORT=None)
    assert QgsRasterLayer(result["OUTPUT"]).isValid()
    assert result["SAM"] is None
    assert "REPORT" not in result or not result["REPORT"]


def test_loaded_result_is_styled_like_its_source(provider, backend, pair, tmp_path):
    from hypersharp.plugin import layers

    hs = QgsRasterLayer(pair["SPECTRAL"], "Scene")
    style = layers.ColourStyle((3, 2, 1), ((3000.0, 3400.0), (2000.0, 2300.0), (1000.0, 1200.0)), 1, True)
    layers.apply_style(hs, style)
    QgsProject.instance().addMapLayer(hs)
    context = QgsProcessingContext()
    context.setProject(QgsProject.instance())
    algorithm = QgsApplication.processingRegistry().createAlgorithmById("hypersharp:fuse")
    output = str(tmp_path / "o.tif")
    parameters = {
        **pair,
        "SPECTRAL": hs.id(),
        "METHOD": "gsa",
        "ASSESS": False,
        "OUTPUT": output,
        "REPORT": None,
    }
    details = QgsProcessingContext.LayerDetails("Fused", QgsProject.instance(), "OUTPUT")
    context.addLayerToLoadOnCompletion(output, details)
    results, ok = algorithm.run(parameters, context, QgsProcessingFeedback(False))
    assert ok, results
    processor = context.layerToLoadOnCompletionDetails(output).postProcessor()
    assert processor is not None
    layer = QgsRasterLayer(output, "Fused")
    processor.postProcessLayer(layer, context, QgsProcessingFeedback(False))
    assert layers._shown(layer) == layers._shown(hs)
    assert layer.name() == "Scene · GSA"
    assert "gsa" in layer.metadata().history()[-1]


def test_assess_scores_any_fused_raster(provider, backend, pair, tmp_path):
    fused = run("fuse", **pair, METHOD="sfim", ASSESS=False, OUTPUT=str(tmp_path / "o.tif"), REPORT=None)[
        "OUTPUT"
    ]
    result = run(
        "assess", **pair, FUSED=fused, METRICS=str(tmp_path / "m.json"), REPORT=str(tmp_path / "r.html")
    )
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert result["HQNR"] == metrics["full_resolution"]["fused"]["HQNR"]
    assert (tmp_path / "r.html").is_file()
    other = QgsRasterLayer(pair["GUIDE"])
    with pytest.raises(QgsProcessingException, match="belong together"):
        run("assess", **pair, FUSED=other)


def test_maps_load_in_colours(provider, backend, make_raster, tmp_path):
    """QGIS finds a map's style beside it: one band in colours from 0 to the range that the map has."""
    pair = {
        "SPECTRAL": make_raster("hs.tif", size=40, pixel=30, wavelengths=[450, 550, 650, 850, 1600, 2200]),
        "GUIDE": make_raster("pan.tif", bands=1, size=120, pixel=10, seed=1),
    }
    folder = tmp_path / "maps"
    result = run("fuse", **pair, OUTPUT=str(tmp_path / "o.tif"), REPORT=None, MAPS=str(folder))
    assert result["MAPS"] == str(folder)
    fused = QgsRasterLayer(result["OUTPUT"])
    for name, like in (("sam", pair["SPECTRAL"]), ("rmse", pair["SPECTRAL"]), ("d_rho", result["OUTPUT"])):
        layer, like = QgsRasterLayer(str(folder / f"{name}.tif"), name), QgsRasterLayer(like)
        assert layer.isValid() and layer.crs() == fused.crs()
        assert layer.rasterUnitsPerPixelX() == pytest.approx(like.rasterUnitsPerPixelX())
        renderer = layer.renderer()
        assert renderer.type() == "singlebandpseudocolor"
        items = renderer.shader().rasterShaderFunction().colorRampItemList()
        assert len(items) == 10 and items[0].value == 0
        assert items[-1].value == renderer.classificationMax() > 0
        assert items[0].color.lightness() < 10 and items[-1].color.lightness() > 200
    scored = run("assess", **pair, FUSED=result["OUTPUT"], REPORT=None, MAPS=str(tmp_path / "again"))
    assert sorted(p.name for p in Path(scored["MAPS"]).glob("*.tif")) == ["d_rho.tif", "rmse.tif", "sam.tif"]
    with pytest.raises(QgsProcessingException, match="assessment"):
        run("fuse", **pair, OUTPUT=str(tmp_path / "p.tif"), ASSESS=False, REPORT=None, MAPS=str(folder))


def test_simulate_then_score_against_the_truth(provider, backend, make_raster, tmp_path):
    truth = make_raster("truth.tif", size=32, pixel=10, wavelengths=[450, 550, 650, 850, 1600, 2200])
    made = run("simulate", REFERENCE=truth, RATIO=4, FOLDER=str(tmp_path / "sim"))
    assert all(QgsRasterLayer(made[k]).isValid() for k in ("HS", "GUIDE_FILE", "REFERENCE_FILE"))
    fused = run(
        "fuse",
        SPECTRAL=made["HS"],
        GUIDE=made["GUIDE_FILE"],
        ASSESS=False,
        OUTPUT=str(tmp_path / "o.tif"),
        REPORT=None,
    )
    scores = run(
        "assess",
        FUSED=fused["OUTPUT"],
        SPECTRAL=made["HS"],
        GUIDE=made["GUIDE_FILE"],
        REFERENCE=made["REFERENCE_FILE"],
        REPORT=None,
    )
    assert scores["PSNR"] > 10


def write_product(path, *level):
    """Write a PRISMA product, by the backend's Python: QGIS's own has no h5py."""
    script = Path(__file__).resolve().parents[1] / "made_products.py"
    subprocess.run([environment.locate().python, str(script), str(path), *level], check=True)
    return str(path)


def run_as_dialog(name, outputs, feedback=None, **parameters):
    """Run an algorithm (ours by name, or any) as its dialog does: in a task, outputs to be opened.

    Returns results and layers by name.
    """
    project = QgsProject.instance()
    algorithm = name
    if isinstance(name, str):
        algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"hypersharp:{name}")
    wanted = {key: QgsProcessingOutputLayerDefinition(path, project) for key, path in outputs.items()}
    context, feedback = QgsProcessingContext(), feedback or QgsProcessingFeedback(False)
    context.setProject(project)
    done = []
    running = QgsProcessingAlgRunnerTask(algorithm, {**parameters, **wanted}, context, feedback)
    running.executed.connect(lambda ok, results: done.append((ok, results)))
    QgsApplication.taskManager().addTask(running)
    while not done:
        wait(20)
    ((ok, results),) = done
    assert ok and project.mapLayers() == {}  # Processing loads, the algorithm does not
    # As Processing does, in any of its versions.
    for path, details in context.layersToLoadOnCompletion().items():
        layer = QgsProcessingUtils.mapLayerFromString(path, context)
        details.setOutputLayerName(layer)
        details.project.addMapLayer(context.temporaryLayerStore().takeMapLayer(layer))
        if details.postProcessor() is not None:
            details.postProcessor().postProcessLayer(layer, context, feedback)
    return results, {layer.name(): layer for layer in project.mapLayers().values()}


def test_the_dialog_opens_what_was_fused(provider, backend, pair):
    results, loaded = run_as_dialog(
        "fuse", {"OUTPUT": "TEMPORARY_OUTPUT"}, **pair, METHOD="gsa", ASSESS=False
    )
    assert list(loaded) == ["hs · GSA"] and loaded["hs · GSA"].source() == results["OUTPUT"]
    assert "gsa" in loaded["hs · GSA"].metadata().history()[-1]


def test_a_model_uses_the_result_and_keeps_its_own_names(provider, backend, pair):
    model = QgsProcessingModelAlgorithm("chain", "tests")
    source = QgsProcessingModelChildParameterSource
    for name in pair:
        model.addModelParameter(
            QgsProcessingParameterRasterLayer(name, name), QgsProcessingModelParameter(name)
        )
    for child, algorithm, inputs in (
        ("copied", "gdal:translate", {"INPUT": source.fromModelParameter("SPECTRAL")}),
        (
            "fused",
            "hypersharp:fuse",
            {
                "SPECTRAL": source.fromChildOutput("copied", "OUTPUT"),
                "GUIDE": source.fromModelParameter("GUIDE"),
                "METHOD": source.fromStaticValue("gsa"),
                "ASSESS": source.fromStaticValue(False),
            },
        ),
        ("copy", "gdal:translate", {"INPUT": source.fromChildOutput("fused", "OUTPUT")}),
    ):
        step = QgsProcessingModelChildAlgorithm(algorithm)
        step.setChildId(child)
        for name, value in inputs.items():
            step.addParameterSources(name, [value])
        output = QgsProcessingModelOutput(f"my {child}")
        output.setChildId(child)
        output.setChildOutputName("OUTPUT")
        if child != "copied":
            step.setModelOutputs({f"my {child}": output})
        model.addChildAlgorithm(step)
    outputs = {f"{name}:my {name}": "TEMPORARY_OUTPUT" for name in ("fused", "copy")}
    _, loaded = run_as_dialog(model, outputs, **pair)
    assert sorted(loaded) == ["my copy", "my fused"]
    assert "gsa" in loaded["my fused"].metadata().history()[-1]
    assert loaded["my copy"].height() == loaded["my fused"].height() == 48


def test_import_a_product_and_show_it(provider, backend, tmp_path):
    product = write_product(tmp_path / "PRS_L2D_x.he5")
    with pytest.raises(QgsProcessingException, match="no file"):
        run("import", PRODUCT=str(tmp_path / "none.he5"), HS=str(tmp_path / "o.tif"))
    outputs = {name: str(tmp_path / f"{name}.tif") for name in ("HS", "PAN")}
    made, loaded = run_as_dialog("import", outputs, PRODUCT=product)
    assert made == outputs and sorted(loaded) == ["HS PRS_L2D_x", "PAN PRS_L2D_x"]
    hs, pan = (loaded[f"{name} PRS_L2D_x"] for name in outputs)
    assert hs.crs().authid() == "EPSG:32631" and (hs.width(), pan.width()) == (24, 144)
    assert hs.extent() == pan.extent()
    facts = read_facts(hs)
    red, blue = (facts.wavelengths_nm[getattr(hs.renderer(), f"{c}Band")() - 1] for c in ("red", "blue"))
    assert 620 < red < 690 and 440 < blue < 500
    promised = read_pair(facts, read_facts(pan))
    assert promised.ratio == 6 and not promised.problems


def test_import_of_a_product_without_pan(provider, backend, tmp_path):
    product = write_product(tmp_path / "p.he5", "2C", "no-pan")
    heard = Heard()
    outputs = {name: str(tmp_path / f"{name}.tif") for name in ("HS", "PAN")}
    made, loaded = run_as_dialog("import", outputs, heard, PRODUCT=product)
    assert made == {"HS": outputs["HS"]} and list(loaded) == ["HS p"]
    assert "no panchromatic image" in heard.textLog()


def test_cancel_leaves_nothing(provider, backend, pair, tmp_path):
    with pytest.raises(QgsProcessingException, match="Cancelled"):
        run("fuse", Heard(cancel_at="Reading"), **pair, OUTPUT=str(tmp_path / "o.tif"), REPORT=None)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hs.tif", "pan.tif"]
    assert worker_process.running() == 0


def bad(pair, make_raster, tmp_path):
    """Input that is refused, with a word of the reason."""
    text = tmp_path / "text.tif"
    text.write_text("no raster")
    return {
        "missing": ({**pair, "SPECTRAL": str(tmp_path / "none.tif")}, "none.tif"),
        "text": ({**pair, "SPECTRAL": str(text)}, "text.tif"),
        "same": ({**pair, "GUIDE": pair["SPECTRAL"]}, "same file"),
        "coarse": ({**pair, "GUIDE": make_raster("g0.tif", bands=1, size=4, pixel=60)}, "not finer"),
        "far": (
            {**pair, "GUIDE": make_raster("g1.tif", bands=1, size=48, pixel=10, origin=(0, 0))},
            "overlap",
        ),
        "many": ({**pair, "GUIDE": make_raster("g2.tif", bands=7, size=48, pixel=10)}, "more bands"),
        "few": ({**pair, "SPECTRAL": make_raster("g3.tif", bands=3, size=16)}, "too few bands: 3"),
        "extent": ({**pair, "EXTENT": "0,10,0,10 [EPSG:32631]"}, "extent"),
        "method": ({**pair, "METHOD": "magic"}, "METHOD"),
        "overwrite": ({**pair, "OUTPUT": pair["GUIDE"]}, "inputs"),
        "folder": ({**pair, "OUTPUT": str(tmp_path / "no" / "o.tif")}, "folder does not exist"),
        "tile": ({**pair, "TILE_SIZE": 10}, "Tile"),
        "weights": ({**pair, "WEIGHTS": "mine"}, "weights"),
        "options": ({**pair, "OPTIONS": "frame"}, "NAME=VALUE"),
        "preset": ({**pair, "PRESET": "fine"}, "has no presets"),
        "rank": ({**pair, "METHOD": "mpsrnet-diff", "OPTIONS": "prior_rank=99"}, "whole number from 1 to 12"),
    }


BAD = (
    "missing text same coarse far many few extent method overwrite folder tile weights options preset rank"
).split()


@pytest.mark.parametrize("which", BAD)
def test_bad_input_is_refused_and_the_project_untouched(
    provider, backend, pair, make_raster, tmp_path, which
):
    parameters, words = bad(pair, make_raster, tmp_path)[which]
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()}
    with pytest.raises(QgsProcessingException, match=words):
        run("fuse", **{"OUTPUT": str(tmp_path / "o.tif"), "REPORT": None, **parameters})
    assert {p: p.stat().st_mtime_ns for p in tmp_path.iterdir()} == before
    assert QgsProject.instance().mapLayers() == {}


def test_options_reach_the_job(provider, pair):
    from qgis.core import QgsProcessingContext

    algorithm = QgsApplication.processingRegistry().createAlgorithmById("hypersharp:fuse")
    context, output = QgsProcessingContext(), {"OUTPUT": "TEMPORARY_OUTPUT"}
    for given, wanted in (
        ({}, {}),
        ({"PRESET": "default", "OPTIONS": ""}, {}),
        ({"METHOD": "mpsrnet-diff", "PRESET": "fine"}, {"preset": "fine"}),
        (
            {"METHOD": "mpsrnet-diff", "PRESET": "quick", "OPTIONS": "prior_rank=6  cache=false"},
            {"prior_rank": 6, "cache": False, "preset": "quick"},
        ),
        ({"METHOD": "lmmse", "OPTIONS": "frame=hs"}, {"frame": "hs"}),
    ):
        job = algorithm.build_job({**pair, **output, **given}, context)
        assert job.parameters == wanted


@pytest.mark.parametrize("name", ["fuse", "assess", "compare"])
def test_coregistration_is_on_unless_switched_off(provider, pair, tmp_path, name):
    from qgis.core import QgsProcessingContext

    algorithm = QgsApplication.processingRegistry().createAlgorithmById(f"hypersharp:{name}")
    more = {"OUTPUT": "TEMPORARY_OUTPUT", "FUSED": pair["GUIDE"], "FOLDER": str(tmp_path)}
    for given, wanted in (({}, True), ({"COREGISTER": False}, False)):
        job = algorithm.build_job({**pair, **more, **given}, QgsProcessingContext())
        assert job.coregister is wanted


@pytest.mark.data
def test_a_layer_that_lies_elsewhere_is_fused_where_it_belongs(provider, backend, data, tmp_path):
    """Paris, its georeference wrong by four HS pixels: told, and as good as with the right one."""
    from osgeo import gdal

    hs, pan = inputs(data, PARIS).values()
    moved = str(tmp_path / "moved.tif")
    bounds = QgsRasterLayer(hs).extent()
    corners = [
        bounds.xMinimum() + 120,
        bounds.yMaximum() - 60,
        bounds.xMaximum() + 120,
        bounds.yMinimum() - 60,
    ]
    gdal.Translate(moved, hs, outputBounds=corners)
    scores, said = [], []
    for number, source in enumerate((hs, moved)):
        feedback = QgsProcessingFeedback()
        output = str(tmp_path / f"fused{number}.tif")
        result = run("fuse", feedback, SPECTRAL=source, GUIDE=pan, METHOD="lmmse", OUTPUT=output, REPORT=None)
        scores.append(result["PSNR"])
        said.append("moved by 6 up and 12 to the left" in feedback.textLog())
        layer = QgsRasterLayer(output)
        scores.append((layer.extent().toString(), layer.width(), layer.height()))
    assert scores[0] == pytest.approx(scores[2], abs=0.01) and scores[1] == scores[3]
    assert said == [False, True]


def test_every_parameter_has_help(provider):
    for algorithm in provider.algorithms():
        names = {d.name() for d in algorithm.parameterDefinitions()}
        assert set(algorithm.HELP) == names
        for definition in algorithm.parameterDefinitions():
            assert len(definition.help()) > 10, (algorithm.name(), definition.name())
            assert html.escape(definition.description()) in algorithm.shortHelpString()
            assert definition.name() == definition.name().upper()
        page = algorithm.helpUrl().partition("#")
        assert Path(page[0].replace("file://", "")).is_file()
        assert f'id="{page[2]}"' in Path(page[0].replace("file://", "")).read_text(encoding="utf-8")
        assert algorithm.tags()
        assert algorithm.shortDescription()


def test_fixed_names(provider):
    assert sorted(a.id() for a in provider.algorithms()) == [
        "hypersharp:assess",
        "hypersharp:compare",
        "hypersharp:fuse",
        "hypersharp:import",
        "hypersharp:simulate",
        "hypersharp:train",
    ]
    fuse = QgsApplication.processingRegistry().algorithmById("hypersharp:fuse")
    method = fuse.parameterDefinition("METHOD")
    assert method.usesStaticStrings()
    assert list(method.options()) == method_ids()
    wanted = {
        "SPECTRAL",
        "GUIDE",
        "METHOD",
        "WEIGHTS",
        "ADAPT_STEPS",
        "PRESET",
        "OPTIONS",
        "EXTENT",
        "DEVICE",
        "OUTPUT",
        "REPORT",
        "METRICS",
        "MAPS",
    }
    assert wanted <= {d.name() for d in fuse.parameterDefinitions()}
    assert {"OUTPUT", "REPORT", "METRICS", "SAM", "ERGAS", "PSNR", "HQNR", "SECONDS"} <= {
        o.name() for o in fuse.outputDefinitions()
    }


def test_cannot_execute_without_an_environment(provider, monkeypatch):
    monkeypatch.setattr(environment, "checkout_pythons", lambda: [])
    monkeypatch.delenv(environment.ENVIRONMENT_VARIABLE, raising=False)
    ok, reason = QgsApplication.processingRegistry().algorithmById("hypersharp:fuse").canExecute()
    assert not ok
    assert "environment" in reason


def test_real_worker_killed_while_it_writes(provider, backend, make_raster, tmp_path):
    import os
    import signal

    class Killer(Heard):
        """Kills the worker when it has begun to write."""

        def setProgressText(self, text):
            super().setProgressText(text)
            if text.startswith("Fusing"):
                (worker,) = worker_process._running
                os.kill(worker.pid, signal.SIGKILL)

    parameters = {
        "SPECTRAL": make_raster("hs.tif", bands=60, size=100, pixel=40),
        "GUIDE": make_raster("pan.tif", bands=1, size=800, pixel=5),
        "TILE_SIZE": 64,
        "OUTPUT": str(tmp_path / "o.tif"),
        "REPORT": None,
    }
    killer = Killer()
    with pytest.raises(QgsProcessingException, match="ended unexpectedly: it was killed"):
        run("fuse", killer, **parameters)
    assert killer.stages[-1].startswith("Fusing")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["hs.tif", "pan.tif"]
    assert worker_process.running() == 0


def test_compare_ranks_methods(provider, backend, pair, tmp_path):
    folder = tmp_path / "compared"
    result = run("compare", **pair, METHODS=["bicubic", "sfim"], FOLDER=str(folder), WRITE_REPORT=False)
    assert result["BEST_METHOD"] in ("bicubic", "sfim")
    assert QgsRasterLayer(result["BEST"]).isValid()
    assert Path(result["TABLE"]).is_file()
    table = json.loads(Path(result["METRICS"]).read_text())
    assert table["recommendation"]["method"] == result["BEST_METHOD"]


def test_what_an_unfinished_job_may_leave(tmp_path):
    from hypersharp.backend.job import AssessJob, CompareJob, FuseJob, SimulateJob, TrainJob

    (tmp_path / "gsa").mkdir()
    part = tmp_path / "gsa" / "fused.part.tif"
    part.touch()
    (tmp_path / "gsa" / "mine.part.tif").touch()
    folder = str(tmp_path)
    assert worker_process.partial_paths(CompareJob("a", "b", folder)) == [part]
    assert worker_process.partial_paths(FuseJob("a", "b", folder + "/x.tif")) == [tmp_path / "x.part.tif"]
    assert tmp_path / "hs.part.tif" in worker_process.partial_paths(SimulateJob("a", folder))
    assert worker_process.partial_paths(TrainJob(folder, "s3rnet")) == [tmp_path / "state.part"]
    assert worker_process.partial_paths(AssessJob("a", "b", "c")) == []
    for job in (AssessJob("a", "b", "c", maps=folder), FuseJob("a", "b", "x.tif", maps=folder)):
        assert tmp_path / "d_rho.part.tif" in worker_process.partial_paths(job)
