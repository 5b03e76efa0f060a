# SPDX-License-Identifier: GPL-2.0-or-later
import json

import pytest
import rasterio
import torch
from hypersharp.backend import cli
from hypersharp.backend.control import Control
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.job import TrainJob, job_from_dict, job_to_dict
from hypersharp.backend.methods.learned import S3RNet, load_network
from hypersharp.backend.models.mbfn import MBFN
from hypersharp.backend.models.pretrained import read_config
from hypersharp.backend.training import run as training_run
from hypersharp.backend.training.run import run_train
from rasterio.transform import from_origin

from .conftest import synthetic_image
from .test_learned_method import fused, make_scene
from .test_photographs import encoded

QUICK = {"steps": 2, "validate_every": 2}


@pytest.fixture(autouse=True)
def few_validation_examples(monkeypatch):
    monkeypatch.setattr(training_run, "VALIDATION_EXAMPLES", 1)


def test_jobs_survive_json():
    job = TrainJob("out", "csakd", cubes="folder", leave_out=["a"], steps=5)
    assert job_from_dict(json.loads(json.dumps(job_to_dict(job)))) == job


def test_from_cubes_to_weights_that_fuse(cube_folder, tmp_path, capsys):
    out = tmp_path / "weights"
    inputs = ["--cubes", str(cube_folder), "--validate-on", "scene2", "--leave-out", "scene3"]
    settings = ["--method", "csakd", "-o", str(out), "--steps", "2", "--batch", "3"]
    code = cli.main(["train", *inputs, *settings, "--progress", "json"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert code == 0 and lines[-1]["type"] == "result"
    assert any(line["type"] == "progress" and line["stage"] == "training" for line in lines)
    facts = read_config(out)["training"]
    assert facts["settings"]["steps"] == 2 and facts["settings"]["examples"] == 3
    assert facts["data"]["cubes"] == ["scene0", "scene1"] and facts["data"]["validated_on"] == ["scene2"]
    assert facts["outcome"]["steps"] == 2 and facts["outcome"]["teacher"][0] == 2
    assert sorted(p.name for p in out.iterdir()) == ["card.md", "config.json", "model.safetensors", "teacher"]
    card = (out / "card.md").read_text()
    assert "scene0, scene1" in card and "seed 1029" in card and "csakd" in card
    student, components = load_network(out, MBFN)
    teacher, _ = load_network(out / "teacher", MBFN)
    assert student.config.blocks == (0, 1, 1, 1) and teacher.parameter_count() > student.parameter_count()
    _, scene = make_scene()
    assert bool(torch.isfinite(fused(S3RNet({"weights": str(out)}), scene)).all())


def test_photographs_lend_their_structure(cube_folder, tmp_path):
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    (photographs / "one.png").write_bytes(encoded())
    job = TrainJob(
        str(tmp_path / "w"), "s3rnet", cubes=str(cube_folder), photographs=str(photographs), **QUICK
    )
    data = run_train(job).metrics["training"]["data"]
    assert data["photographs"] == 1
    card = " ".join((tmp_path / "w" / "card.md").read_text().split())
    assert "50% of the pairs take their structure from 1 aerial photographs" in card


def test_a_cancelled_run_keeps_its_weights_and_resumes(cube_folder, tmp_path):
    job = TrainJob(str(tmp_path / "w"), "s3rnet", cubes=str(cube_folder), steps=3, validate_every=1)
    done = []
    control = Control(on_message=lambda m: done.append(getattr(m, "text", "")))
    stopping = Control(lambda m: done.append(m), lambda: sum("step 1:" in str(m) for m in done) > 0)
    result = run_train(job, stopping)
    assert result.metrics["training"]["outcome"]["stopped"] == "cancelled"
    assert result.metrics["training"]["outcome"]["steps"] == 1
    assert (tmp_path / "w" / "state.safetensors").is_file()
    job.resume = True
    result = run_train(job, control)
    assert any("resumed at step 1" in str(m) for m in done)
    assert result.metrics["training"]["outcome"]["steps"] == 3
    assert not (tmp_path / "w" / "state.safetensors").exists()


def raster(path, image, pixel):
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(image),
        height=image.shape[1],
        width=image.shape[2],
        dtype="float32",
        crs="EPSG:32633",
        transform=from_origin(0, 10_000, pixel, pixel),
    ) as file:
        file.write(image.numpy())
    return str(path)


def test_from_one_pair_and_from_earlier_weights(tmp_path, cube_folder):
    from hypersharp.backend.degradation import degrade

    truth = synthetic_image(2, rows=240, cols=240)
    hs = raster(tmp_path / "hs.tif", degrade(truth, 3, 0.3)[0], 9.0)
    guide = raster(tmp_path / "pan.tif", truth[3:7].mean(0, keepdim=True), 3.0)
    first = run_train(TrainJob(str(tmp_path / "a"), "s3rnet", hs=hs, guide=guide, **QUICK))
    assert first.outputs == {"WEIGHTS": str(tmp_path / "a")}
    assert read_config(tmp_path / "a")["training"]["data"]["pair"] == ["hs.tif", "pan.tif"]
    run_train(
        TrainJob(str(tmp_path / "b"), "s3rnet", cubes=str(cube_folder), weights=str(tmp_path / "a"), **QUICK)
    )
    with pytest.raises(HyperSharpError, match="another configuration"):
        run_train(
            TrainJob(
                str(tmp_path / "c"), "csakd", cubes=str(cube_folder), weights=str(tmp_path / "a"), **QUICK
            )
        )
    small = raster(tmp_path / "small.tif", degrade(truth, 3, 0.3)[0][:, :12, :12], 9.0)
    with pytest.raises(HyperSharpError, match="too small to train on"):
        run_train(TrainJob(str(tmp_path / "d"), "s3rnet", hs=small, guide=guide, **QUICK))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"method": "gsa", "cubes": "."}, "gsa cannot be trained"),
        ({"method": "s3rnet"}, "a folder of cubes or one pair"),
        ({"method": "s3rnet", "cubes": ".", "hs": "a", "guide": "b"}, "a folder of cubes or one pair"),
        ({"method": "s3rnet", "cubes": ".", "steps": 0}, "0 training steps"),
        ({"method": "s3rnet", "cubes": ".", "batch": 0}, "of 0 scenes"),
        ({"method": "s3rnet", "cubes": "./nothing/here"}, "no folder"),
    ],
)
def test_bad_jobs_are_refused(tmp_path, options, words):
    with pytest.raises(HyperSharpError, match=words) as caught:
        run_train(TrainJob(str(tmp_path / "w"), **options))
    assert caught.value.hint
    assert not (tmp_path / "w").exists()
