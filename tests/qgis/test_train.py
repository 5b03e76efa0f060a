"""`hypersharp:train` with the real backend: weights that fuse, cancel and resume, input that is refused."""

import json
from pathlib import Path

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend.job import TRAINABLE
from hypersharp.plugin import environment, worker_process
from hypersharp.plugin.algorithms import base
from qgis.core import QgsApplication, QgsProcessingException, QgsProcessingFeedback, QgsRasterLayer

WAVELENGTHS = [450, 550, 650, 850, 1600, 2200]


class Heard(QgsProcessingFeedback):
    """Feedback that remembers, and cancels when it hears a word."""

    def __init__(self, cancel_at=None):
        super().__init__(False)
        self.stages, self.infos, self.cancel_at = [], [], cancel_at

    def _hear(self, text):
        if self.cancel_at is not None and self.cancel_at in text:
            self.cancel()

    def setProgressText(self, text):
        self.stages.append(text)
        self._hear(text)

    def pushInfo(self, text):
        self.infos.append(text)
        self._hear(text)


def run(name, feedback=None, **parameters):
    import processing

    return processing.run(f"hypersharp:{name}", parameters, feedback=feedback or QgsProcessingFeedback(False))


@pytest.fixture
def pair(make_raster):
    return {
        "SPECTRAL": make_raster("hs.tif", size=40, pixel=30, wavelengths=WAVELENGTHS),
        "GUIDE": make_raster("pan.tif", bands=1, size=120, pixel=10, seed=1),
    }


def test_weights_from_a_pair_fuse_it(provider, backend, pair, tmp_path, monkeypatch):
    heard = Heard()
    folder = tmp_path / "weights"
    made = run("train", heard, **pair, METHOD="s3rnet", STEPS=3, SEED=5, WEIGHTS_FOLDER=str(folder))
    assert made["WEIGHTS_FOLDER"] == str(folder)
    assert sorted(p.name for p in folder.iterdir()) == ["card.md", "config.json", "model.safetensors"]
    facts = json.loads((folder / "config.json").read_text())["training"]
    assert facts["settings"]["steps"] == 3 and facts["settings"]["seed"] == 5
    assert (made["STEPS_DONE"], made["STOPPED"]) == (3, "done")
    assert made["GAIN"] == pytest.approx(facts["outcome"]["gain_db"]) and made["SECONDS"] > 0
    assert any(stage.startswith("Training") for stage in heard.stages)
    assert any("dB over lmmse" in info for info in heard.infos)
    fused = run(
        "fuse",
        **pair,
        METHOD="s3rnet",
        WEIGHTS=made["WEIGHTS_FOLDER"],
        ASSESS=False,
        OUTPUT=str(tmp_path / "o.tif"),
        REPORT=None,
    )
    assert QgsRasterLayer(fused["OUTPUT"]).isValid()
    # And training can start from them, by a path that is relative to QGIS's working folder too.
    monkeypatch.chdir(tmp_path)
    again = run("train", **pair, WEIGHTS="weights", STEPS=1, WEIGHTS_FOLDER=str(tmp_path / "more"))
    assert json.loads((Path(again["WEIGHTS_FOLDER"]) / "config.json").read_text())["training"]["data"]


def test_weights_of_the_full_band_form_fuse_their_pair_only(provider, backend, pair, make_raster, tmp_path):
    folder = tmp_path / "weights"
    made = run("train", **pair, METHOD="hyfusion", FORM="full-band", STEPS=2, WEIGHTS_FOLDER=str(folder))
    entry = json.loads((folder / "config.json").read_text())["input"]
    assert (entry["form"], entry["hs_bands"], entry["guide_bands"], entry["ratio"]) == ("full-band", 6, 1, 3)
    settings = {"METHOD": "hyfusion", "WEIGHTS": made["WEIGHTS_FOLDER"], "REPORT": None}
    fused = run("fuse", **pair, **settings, OUTPUT=str(tmp_path / "o.tif"))
    assert QgsRasterLayer(fused["OUTPUT"]).bandCount() == 6
    other = {**pair, "GUIDE": make_raster("msi.tif", bands=3, size=120, pixel=10, seed=1)}
    with pytest.raises(QgsProcessingException, match="a guide of 1 band and the ratio 3"):
        run("fuse", **other, **settings, OUTPUT=str(tmp_path / "p.tif"))
    assert not (tmp_path / "p.tif").exists()


def test_forms_are_words_with_a_help_text(provider):
    algorithm = QgsApplication.processingRegistry().algorithmById("hypersharp:train")
    form = algorithm.parameterDefinition("FORM")
    assert form.usesStaticStrings() and list(form.options()) == ["subspace", "full-band"]
    assert form.defaultValue() == "subspace" and "any sensor" in form.help()


def test_weights_from_cubes_without_those_left_out(provider, backend, make_raster, tmp_path):
    cubes = tmp_path / "cubes"
    cubes.mkdir()
    for name in ("one.tif", "two.tif", "not_this.tif"):
        path = Path(make_raster(name, size=48, pixel=10, wavelengths=WAVELENGTHS, seed=len(name)))
        path.rename(cubes / name)
    made = run(
        "train",
        CUBES=str(cubes),
        METHOD="csakd",
        STEPS=1,
        LEAVE_OUT="not_this, other",
        WEIGHTS_FOLDER=str(tmp_path / "weights"),
    )
    data = json.loads((Path(made["WEIGHTS_FOLDER"]) / "config.json").read_text())["training"]["data"]
    assert data["cubes"] == ["one", "two"] and data["left_out"] == ["not_this", "other"]


def test_a_cancel_keeps_the_weights_and_can_be_resumed(provider, backend, pair, tmp_path):
    folder = tmp_path / "weights"
    parameters = {**pair, "STEPS": 100_000, "WEIGHTS_FOLDER": str(folder)}
    made = run("train", Heard(cancel_at="step 100:"), **parameters)
    assert made["STOPPED"] == "cancelled" and 100 <= made["STEPS_DONE"] < 1000
    names = {p.name for p in folder.iterdir()}
    assert {"config.json", "model.safetensors", "state.safetensors"} <= names
    assert not any("part" in name for name in names)
    heard = Heard(cancel_at="step 200:")
    again = run("train", heard, **parameters, RESUME=True)
    assert any(f"resumed at step {made['STEPS_DONE']}" in info for info in heard.infos)
    assert again["STEPS_DONE"] >= 200 and again["STOPPED"] == "cancelled"
    assert worker_process.running() == 0


def test_a_cancel_before_there_are_weights_is_told(provider, backend, pair, tmp_path):
    folder = tmp_path / "weights"
    with pytest.raises(QgsProcessingException, match="Cancelled: no new weights"):
        run("train", Heard(cancel_at="Reading"), **pair, WEIGHTS_FOLDER=str(folder))
    assert not folder.exists()
    assert worker_process.running() == 0


def bad(pair, tmp_path):
    """Input that is refused, with a word of the reason."""
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "file"
    file.write_text("no folder")
    return {
        "nothing": ({}, "one pair of layers, or a folder"),
        "both": ({**pair, "CUBES": str(empty)}, "and not both"),
        "half a pair": ({"SPECTRAL": pair["SPECTRAL"]}, "two layers"),
        "swapped": ({"SPECTRAL": pair["GUIDE"], "GUIDE": pair["SPECTRAL"]}, "swapped"),
        "no such folder": ({"CUBES": str(tmp_path / "none")}, "There is no folder"),
        "no cubes": ({"CUBES": str(empty)}, "no cube to train on"),
        "full-band cubes": ({"CUBES": str(empty), "FORM": "full-band"}, "trained on a pair of layers"),
        "no weights": ({**pair, "WEIGHTS": "s4rnet"}, "no weights 's4rnet'"),
        "empty weights": ({**pair, "WEIGHTS": str(empty)}, "no config.json and no model.safetensors"),
        "resume nothing": ({**pair, "RESUME": True}, "no interrupted run"),
        "a file": ({**pair, "WEIGHTS_FOLDER": str(file)}, "cannot be written"),
        "no steps": ({**pair, "STEPS": 0}, "STEPS"),
    }


BAD = [
    "nothing",
    "both",
    "half a pair",
    "swapped",
    "no such folder",
    "no cubes",
    "full-band cubes",
    "no weights",
    "empty weights",
]
BAD += ["resume nothing", "a file", "no steps"]


@pytest.mark.parametrize("which", BAD)
def test_bad_input_is_refused_and_nothing_written(provider, backend, pair, tmp_path, which):
    parameters, words = bad(pair, tmp_path)[which]
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(QgsProcessingException, match=words):
        run("train", **{"WEIGHTS_FOLDER": str(tmp_path / "weights"), **parameters})
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("what", ["of another class", "truncated"])
def test_fuse_refuses_weights_that_do_not_serve(provider, backend, pair, tmp_path, what):
    shipped = environment.PACKAGE_FOLDER / "resources" / "weights" / "s3rnet"
    folder = tmp_path / "weights"
    folder.mkdir()
    config = json.loads((shipped / "config.json").read_text())
    weights = (shipped / "model.safetensors").read_bytes()
    if what == "truncated":
        weights, words = weights[:-100], "damaged or incomplete"
    else:
        config["class"], words = "mpsrnet", "Class mbfn is needed"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "model.safetensors").write_bytes(weights)
    output = tmp_path / "o.tif"
    with pytest.raises(QgsProcessingException, match=words):
        run("fuse", **pair, METHOD="s3rnet", WEIGHTS=str(folder), OUTPUT=str(output), REPORT=None)
    assert not list(tmp_path.glob("o*"))


def test_methods_and_the_time_left(provider, monkeypatch):
    algorithm = QgsApplication.processingRegistry().algorithmById("hypersharp:train")
    method = algorithm.parameterDefinition("METHOD")
    assert method.usesStaticStrings() and list(method.options()) == list(TRAINABLE)
    help_text = algorithm.shortHelpString()
    assert "<i>s3rnet</i>" in help_text and "<i>gsa</i>" not in help_text
    from hypersharp.backend.protocol import Progress

    monkeypatch.setattr(base, "TELL_TIME_EVERY_S", 0.0)
    heard = Heard()
    talk = base.FeedbackTalk(heard)
    for done, left in ((0, None), (1, 500.0), (20, 400.0)):
        talk(Progress("training", done, 100, done / 100, left))
    assert heard.stages == ["Training", "Training (about 7 min left)"]
