# SPDX-License-Identifier: GPL-2.0-or-later
"""What users do wrong with weights and training: exit code 2, an `error:` and a `hint:` line, nothing half written."""

import json
import os

import numpy as np
import pytest
import rasterio
import torch
from hypersharp.backend import cli
from hypersharp.backend.models.mbfn import MBFN, MBFNConfig

from .conftest import synthetic_image
from .test_learned_method import SMALL_HYFUSION, SMALL_MBFN, weights
from .test_run import raster


@pytest.fixture
def refused(capsys):
    """Run the command line; check that it refuses as it should and return its error line."""

    def run(*arguments):
        code = cli.main([str(a) for a in arguments])
        captured = capsys.readouterr()
        lines = captured.err.strip().splitlines()
        assert code == 2, captured.err
        errors, hints = ([line for line in lines if line.startswith(w)] for w in ("error: ", "hint: "))
        assert len(errors) == len(hints) == 1 and len(hints[0]) > 12
        assert "Traceback" not in captured.err and captured.out == ""
        return errors[0]

    return run


@pytest.fixture
def files(tmp_path):
    from hypersharp.backend.degradation import degrade

    truth = synthetic_image(2, rows=120, cols=120)
    hs = raster(tmp_path / "hs.tif", degrade(truth, 3, 0.3)[0], 9.0)
    return hs, raster(tmp_path / "pan.tif", truth[3:7].mean(0, keepdim=True), 3.0)


def spoiled(folder, how):
    """Return a weights folder with one thing wrong, and words of the error."""
    if how == "another class":
        return weights(folder, SMALL_HYFUSION), "class 'hyfusion'"
    if how == "full-band":  # as the converter of official checkpoints writes it
        model = MBFN(MBFNConfig(14, 4, 3, width=4, growth=2, blocks=(1, 1, 1, 1), attention=4, heads=1))
        model.save_pretrained(folder, {"input": {"form": "full-band", "range": [-1, 1]}})
        return folder, "take 14 HS bands, a guide of 4 bands and the ratio 3"
    if how == "nowhere":
        return folder, "there are no weights"
    weights(folder, SMALL_MBFN)
    config, tensors = folder / "config.json", folder / "model.safetensors"
    content = json.loads(config.read_text())
    if how == "truncated":
        tensors.write_bytes(tensors.read_bytes()[:-40])
        return folder, "damaged or incomplete"
    if how == "half a header":
        tensors.write_bytes(tensors.read_bytes()[:40])
        return folder, "damaged or incomplete"
    if how == "no tensors":
        tensors.unlink()
        return folder, "there is no"
    if how == "not finite":
        from safetensors.torch import load_file, save_file

        values = load_file(tensors)
        values["last.weight"][0] = torch.nan
        save_file(values, tensors)
        return folder, "not finite"
    if how == "no configuration":
        config.unlink()
        return folder, "no weights in"
    if how == "no JSON":
        config.write_text(config.read_text()[:30])
        return folder, "is not JSON"
    if how == "binary":
        config.write_bytes(b"\xff\xfe\x00\x80")
        return folder, "is not JSON"
    changes = {
        "another layout": ({"format": 99}, "no known format"),
        "a list": ([1, 2], "no known format"),
        "input of another kind": ({"input": "subspace"}, "not valid"),
        "components of another kind": ({"input": {**content["input"], "components": "six"}}, "not valid"),
        "class of another kind": ({"class": ["mbfn"]}, "of class"),
        "architecture of another kind": ({"architecture": [1, 2]}, "not valid"),
        "a width below zero": ({"architecture": {**content["architecture"], "width": -4}}, "not valid"),
        "a width of words": ({"architecture": {**content["architecture"], "width": "wide"}}, "not valid"),
        "no heads": ({"architecture": {**content["architecture"], "heads": 0}}, "not valid"),
        "too few blocks": ({"architecture": {**content["architecture"], "blocks": [1, 1]}}, "not valid"),
        "a width beyond memory": (
            {"architecture": {**content["architecture"], "width": 10**8}},
            "another network",
        ),
        "another width": ({"architecture": {**content["architecture"], "width": 6}}, "of another network"),
        "an unknown entry": ({"architecture": {**content["architecture"], "colour": 1}}, "unknown entries"),
    }
    change, words = changes[how]
    config.write_text(json.dumps(change if isinstance(change, list) else {**content, **change}))
    return folder, words


SPOILS = ["another class", "full-band", "nowhere", "truncated", "half a header", "no tensors", "not finite"]
SPOILS += ["no configuration", "no JSON", "binary", "another layout", "a list", "input of another kind"]
SPOILS += ["components of another kind", "class of another kind", "architecture of another kind"]
SPOILS += ["a width below zero", "a width of words", "no heads", "too few blocks", "a width beyond memory"]
SPOILS += ["another width", "an unknown entry"]


@pytest.mark.parametrize("how", SPOILS)
def test_weights_that_do_not_serve(tmp_path, files, refused, how):
    folder, words = spoiled(tmp_path / "weights", how)
    output = tmp_path / "o.tif"
    error = refused("fuse", *files, "-o", output, "--method", "s3rnet", "--weights", folder, "--no-assess")
    assert words in error
    assert not list(tmp_path.glob("o*"))


@pytest.mark.parametrize("how", ["another class", "truncated", "nowhere"])
def test_training_does_not_start_from_them(tmp_path, files, refused, how):
    folder, words = spoiled(tmp_path / "start", how)
    output = tmp_path / "weights"
    error = refused("train", *files, "--method", "s3rnet", "-o", output, "--weights", folder)
    assert words in error and not output.exists()


def cubes(folder, how):
    """Return a folder of cubes with something wrong."""
    folder.mkdir()
    image = synthetic_image(1).numpy()
    if how == "all nan":
        image[:] = np.nan
    elif how == "all inf":
        image[:] = np.inf
    elif how == "too small":
        image = image[:, :10, :10]
    elif how == "three bands":
        image = image[:3]
    elif how == "constant":
        image[:] = 7.0
    if how == "no raster":
        (folder / "cube.tif").write_text("hello")
    elif how == "other files":
        (folder / "notes.txt").write_text("hello")
    elif how != "empty":
        raster(folder / "cube.tif", torch.from_numpy(image), 3.0)
    return folder


CUBES = {
    "empty": "no cube to train on",
    "other files": "no cube to train on",
    "no raster": "no cube to train on",
    "all nan": "no use for training",
    "all inf": "no use for training",
    "constant": "no use for training",
    "too small": "no use for training",
    "three bands": "",
}


@pytest.mark.parametrize("how", CUBES)
def test_cubes_that_are_no_use(tmp_path, refused, how):
    folder, output = cubes(tmp_path / "cubes", how), tmp_path / "weights"
    error = refused("train", "--cubes", folder, "--method", "s3rnet", "-o", output, "--steps", 2)
    assert "no cube to train on" in error and CUBES[how] in error
    assert not output.exists()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_single_bad_pixels_do_not_reach_the_network(tmp_path, cube_folder, value, monkeypatch, capsys):
    from hypersharp.backend.training import run as training_run

    monkeypatch.setattr(training_run, "VALIDATION_EXAMPLES", 1)
    for path in cube_folder.iterdir():
        with rasterio.open(path, "r+") as file:
            image = file.read()
            image[:, 10:12, 20:23] = value
            image[3, 30, 30] = value
            file.write(image)
    output = tmp_path / "weights"
    inputs = ["--cubes", str(cube_folder), "--method", "s3rnet", "-o", str(output)]
    code = cli.main(["train", *inputs, "--steps", "2", "--validate-every", "2"])
    assert code == 0, capsys.readouterr().err
    outcome = json.loads((output / "config.json").read_text())["training"]["outcome"]
    assert np.isfinite(outcome["gain_db"])
    from safetensors.torch import load_file

    assert all(bool(torch.isfinite(v).all()) for v in load_file(output / "model.safetensors").values())


def test_a_pair_without_a_valid_pixel(tmp_path, files, refused):
    nothing = raster(tmp_path / "nothing.tif", torch.full((14, 40, 40), torch.nan), 9.0)
    output = tmp_path / "weights"
    refused("train", nothing, files[1], "--method", "s3rnet", "-o", output, "--steps", 2)
    assert not output.exists()


OPTIONS = {
    "no steps": (["--steps", 0], "0 training steps"),
    "steps below zero": (["--steps", -5], "-5 training steps"),
    "no scenes": (["--batch", 0], "of 0 scenes"),
    "never validated": (["--validate-every", 0], "validation"),
    "patience below zero": (["--patience", -1], "patience"),
    "a seed below zero": (["--seed", -1], "seed"),
    "no such method": (["--method", "s4rnet"], "s4rnet cannot be trained"),
    "a classical method": (["--method", "gsa"], "gsa cannot be trained"),
    "nothing left": (["--leave-out", "scene"], "no cube to train on"),
    "nothing to validate on": (["--validate-on", "other"], "other"),
    "nothing to resume": (["--resume"], "nothing to resume"),
    "no such device": (["--device", "gpu"], "unknown device"),
    "words for steps": (["--steps", "many"], "--steps"),
}


@pytest.mark.parametrize("which", OPTIONS)
def test_wrong_options(tmp_path, cube_folder, refused, which):
    options, words = OPTIONS[which]
    output = tmp_path / "weights"
    base = {"--cubes": cube_folder, "--method": "s3rnet", "-o": output, "--steps": 2}
    arguments = [part for key, value in base.items() if key not in options for part in (key, value)]
    assert words in refused("train", *arguments, *options)
    assert not output.exists()


def test_inputs_that_do_not_go_together(tmp_path, files, cube_folder, refused):
    output = tmp_path / "weights"
    rest = ["--method", "s3rnet", "-o", output]
    for inputs in ([], [files[0]], [*files, "--cubes", cube_folder]):
        assert "a folder of cubes or one pair" in refused("train", *inputs, *rest)
    assert "no folder" in refused("train", "--cubes", tmp_path / "none", *rest)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "without cubes" in refused("train", *files, "--photographs", tmp_path, *rest)
    assert "no photograph" in refused("train", "--cubes", cube_folder, "--photographs", empty, *rest)
    assert not output.exists()


def test_an_output_that_cannot_be_written(tmp_path, files, refused):
    (tmp_path / "file").write_text("in the way")
    for output in (tmp_path / "file", tmp_path / "file" / "weights"):
        assert "cannot" in refused("train", *files, "--method", "s3rnet", "-o", output, "--steps", 2)
    assert (tmp_path / "file").read_text() == "in the way"
    if os.access("/proc", os.X_OK):
        refused("train", *files, "--method", "s3rnet", "-o", "/proc/weights", "--steps", 2)


def test_a_resumed_run_must_be_the_same(tmp_path, files, refused):
    output = tmp_path / "weights"
    output.mkdir()
    (output / "state.safetensors").write_bytes(b"no state")
    error = refused("train", *files, "--method", "s3rnet", "-o", output, "--steps", 2, "--resume")
    assert "cannot resume" in error
    assert [p.name for p in output.iterdir()] == ["state.safetensors"]


def test_learned_options_of_other_methods(tmp_path, files, refused):
    output = tmp_path / "o.tif"
    for options in (["--weights", "s3rnet"], ["--adapt", 5]):
        assert "gsa has no weights" in refused("fuse", *files, "-o", output, "--method", "gsa", *options)
    learned = ["fuse", *files, "-o", output, "--method", "s3rnet"]
    assert "adaptation steps" in refused(*learned, "--adapt", -1)
    assert "unknown precision" in refused(*learned, "--option", "precision=half")
    assert not list(tmp_path.glob("o*"))


def test_ctrl_c_keeps_the_best_weights_and_says_how_to_go_on(tmp_path, cube_folder, monkeypatch, capsys):
    import signal

    from hypersharp.backend.training import run as training_run
    from hypersharp.backend.training.trainer import Trainer

    monkeypatch.setattr(training_run, "VALIDATION_EXAMPLES", 1)
    real = Trainer.validate

    def press(self):
        gain = real(self)
        if self.step:
            signal.raise_signal(signal.SIGINT)
        return gain

    monkeypatch.setattr(Trainer, "validate", press)
    output = tmp_path / "weights"
    inputs = ["train", "--cubes", str(cube_folder), "--method", "s3rnet", "-o", str(output)]
    settings = ["--steps", "3", "--validate-every", "1"]
    assert cli.main([*inputs, *settings]) == 3
    words = capsys.readouterr().out
    assert "1 steps, cancelled: --resume goes on; weights of step " in words and "dB over lmmse" in words
    assert {p.name for p in output.iterdir()} == {
        "card.md",
        "config.json",
        "model.safetensors",
        "state.safetensors",
    }
    monkeypatch.setattr(Trainer, "validate", real)
    assert cli.main([*inputs, *settings, "--resume"]) == 0
    assert "3 steps; weights of step" in capsys.readouterr().out
    assert not (output / "state.safetensors").exists()


def test_a_method_whose_packages_are_missing_is_not_trained(tmp_path, cube_folder, refused, monkeypatch):
    import dataclasses

    from hypersharp.backend import registry

    info = dataclasses.replace(registry.METHODS["s3rnet"], needs=("no_such_package",))
    monkeypatch.setitem(registry.METHODS, "s3rnet", info)
    output = tmp_path / "weights"
    error = refused("train", "--cubes", cube_folder, "--method", "s3rnet", "-o", output)
    assert "s3rnet needs no_such_package" in error and not output.exists()


def test_training_goes_on_from_weights_of_other_widths(tmp_path, cube_folder, monkeypatch):
    """Shipped weights may be of an earlier preset; a student must fit its teacher all the same."""
    from hypersharp.backend.models.pretrained import from_pretrained
    from hypersharp.backend.training import run as training_run

    monkeypatch.setattr(training_run, "VALIDATION_EXAMPLES", 1)
    start, output = weights(tmp_path / "start", SMALL_MBFN), tmp_path / "weights"
    inputs = ["train", "--cubes", str(cube_folder), "-o", str(output), "--weights", start]
    settings = ["--steps", "2", "--validate-every", "2"]
    assert cli.main([*inputs, *settings, "--method", "csakd"]) == 2
    assert cli.main([*inputs, *settings, "--method", "s3rnet"]) == 0
    before, after = from_pretrained(start), from_pretrained(output)
    assert after.config == before.config == SMALL_MBFN
    moved = [float((a - b).abs().max()) for a, b in zip(after.parameters(), before.parameters())]
    assert 0 < max(moved) < 0.1
