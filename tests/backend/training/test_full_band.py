# SPDX-License-Identifier: GPL-2.0-or-later
"""The full-band form: trained on a pair, fused by tiles; official checkpoints; what is refused."""

import dataclasses
import json

import pytest
import rasterio
import torch
from hypersharp.backend import cli
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.job import FULL_BAND, TrainJob
from hypersharp.backend.methods import full_band
from hypersharp.backend.methods.full_band import FullBandInput, load_full_band
from hypersharp.backend.methods.learned import CSAKD, HyFusionMethod, S3RNet
from hypersharp.backend.methods.mpsrnet_diff import MPSRNetDiff
from hypersharp.backend.models.convert import convert_checkpoint
from hypersharp.backend.models.hyfusion import HyFusion, HyFusionConfig
from hypersharp.backend.models.mbfn import MBFN, MBFNConfig
from hypersharp.backend.models.mpsrnet import MPSRNet, MPSRNetConfig
from hypersharp.backend.models.pretrained import read_config
from hypersharp.backend.pipeline import fuse
from hypersharp.backend.scene import Scene
from hypersharp.backend.training import full_band as training
from hypersharp.backend.training import trainer as trainers
from hypersharp.backend.training.adapt import OneScene, reduced_pair
from hypersharp.backend.training.run import run_train

from .conftest import synthetic_image
from .test_learned_method import fused, make_scene
from .test_run import raster

RATIO, BANDS = 4, 14
METHODS = {
    "s3rnet": (S3RNet, MBFN),
    "csakd": (CSAKD, MBFN),
    "hyfusion": (HyFusionMethod, HyFusion),
    "mpsrnet-diff": (MPSRNetDiff, MPSRNet),
}
LOCAL = {
    "s3rnet": MBFNConfig(
        BANDS, 1, RATIO, width=6, growth=2, blocks=(1, 1, 1, 1), dense=1, attention=4, heads=1, window=5
    ),
    "hyfusion": HyFusionConfig(BANDS, 1, RATIO, width=8, depth=1, growth=4, window=4, heads=1),
    "mpsrnet-diff": MPSRNetConfig(
        BANDS, 1, RATIO, prior=False, prior_bands=0, width=4, blocks=1, d_state=2, patch=2, scan_span=8
    ),
}
TINY_STUDENT = dataclasses.replace(LOCAL["s3rnet"], blocks=(0, 1, 1, 1), hs_groups=2)


def save(folder, model, **entry):
    """Write a weights folder in the full-band form; the entries are those of `input`."""
    takes = {"hs_scale": 1500.0, "guide_scale": 1500.0, "range": [0, 1], **entry}
    model.save_pretrained(folder, {"input": {"form": FULL_BAND, **takes}})
    return str(folder)


def network(kind, config=None):
    """Return a network with weights that make it look around."""
    torch.manual_seed(1)
    model = METHODS[kind][1](config or LOCAL[kind])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(1.5)
    return model.eval()


@pytest.fixture
def files(tmp_path):
    truth = synthetic_image(2, rows=168, cols=168)
    hs = raster(tmp_path / "hs.tif", degrade(truth, 3, 0.3)[0], 9.0)
    return hs, raster(tmp_path / "pan.tif", truth[3:7].mean(0, keepdim=True), 3.0)


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("method", METHODS)
def test_from_a_pair_to_weights_that_fuse_it(tmp_path, files, method, capsys):
    folder, output = tmp_path / "weights", tmp_path / "o.tif"
    settings = ["--method", method, "--form", FULL_BAND, "--steps", "2", "--validate-every", "2"]
    assert cli.main(["train", *files, *settings, "-o", str(folder)]) == 0
    assert "2 steps; weights of step 2: " in capsys.readouterr().out
    config = read_config(folder)
    entry = config["input"]
    assert {k: entry[k] for k in ("form", "hs_bands", "guide_bands", "ratio")} == {
        "form": FULL_BAND,
        "hs_bands": 14,
        "guide_bands": 1,
        "ratio": 3,
    }
    with rasterio.open(files[0]) as hs, rasterio.open(files[1]) as guide:
        for scale, file in ((entry["hs_scale"], hs), (entry["guide_scale"], guide)):
            share = float((file.read() < 1.02 * scale).mean())
            assert 0.98 < share <= 1
    assert config["training"]["data"]["pair"] == ["hs.tif", "pan.tif"]
    assert "14 HS bands, a guide of 1 band and the ratio 3" in (folder / "card.md").read_text()
    users = {method: folder}
    if method == "csakd":
        users["csakd-teacher"] = folder / "teacher"
        assert read_config(folder / "teacher")["input"] == entry
    for name, weights in users.items():
        arguments = ["--method", name, "--weights", str(weights), "--no-assess"]
        assert cli.main(["fuse", *files, "-o", str(output), *arguments]) == 0, capsys.readouterr().err
        # Of the pair that was trained on, the indices one scale down are no proof: that is told.
        assert "the weights were trained on hs.tif + pan.tif" in capsys.readouterr().err
        with rasterio.open(output) as file:
            assert file.count == 14 and file.shape == (168, 168)
            assert bool(torch.isfinite(torch.from_numpy(file.read())).all())


@pytest.fixture
def tiny(monkeypatch):
    """Networks of a second's training."""

    def recipe(method, hs_bands, guide_bands, ratio):
        sizes = {"hs_bands": hs_bands, "guide_bands": guide_bands, "ratio": ratio}
        torch.manual_seed(3)
        model = MBFN(dataclasses.replace(LOCAL["s3rnet"], **sizes))
        student = MBFN(dataclasses.replace(TINY_STUDENT, **sizes)) if method == "csakd" else None
        return training.Recipe(model, student, "fusion", 35.0, training.SYMMETRIC)

    monkeypatch.setattr(training, "recipe", recipe)


@pytest.mark.parametrize("method", ["s3rnet", "csakd"])
def test_training_learns_what_holds_where_it_was_not_trained(tmp_path, files, tiny, method):
    def gain(steps, every):
        job = TrainJob(str(tmp_path / f"w{steps}"), method, *files, steps=steps, validate_every=every)
        job.form = FULL_BAND
        return run_train(job).metrics["training"]

    little, more = gain(1, 1), gain(150, 50)
    assert more["outcome"]["gain_db"] > little["outcome"]["gain_db"] + 5
    assert more["outcome"]["best_step"] > 0 and more["settings"]["noise_db"] == 35.0
    if method == "csakd":
        assert more["outcome"]["teacher"][1] > little["outcome"]["teacher"][1] + 5


def test_a_progressive_network_begins_at_interpolation_and_rises(tmp_path, files, monkeypatch):
    monkeypatch.setattr(trainers, "WARM_UP", 10)
    job = TrainJob(str(tmp_path / "w"), "mpsrnet-diff", *files, steps=60, validate_every=30, form=FULL_BAND)
    facts = run_train(job).metrics["training"]
    assert facts["outcome"]["gain_db"] > facts["data"]["interpolation_db"] + 0.2
    assert facts["data"]["interpolation_db"] < 0


def trainer(student=False, **changes):
    _, scene = make_scene(rows=320)
    takes = FullBandInput(BANDS, 1, RATIO, 1500.0, 1500.0, training.SYMMETRIC)
    taught, judge = training.make_examples(reduced_pair(scene), takes)
    settings = training.FullBandSettings(
        steps=8, validate_every=3, side=24, noise_db=35.0, range=training.SYMMETRIC, **changes
    )
    torch.manual_seed(0)
    small = MBFN(TINY_STUDENT) if student else None
    return training.FullBandTrainer(MBFN(LOCAL["s3rnet"]), OneScene(taught), settings, [judge], small)


@pytest.mark.parametrize("student", [False, True])
def test_resumed_runs_end_as_if_they_had_not_stopped(tmp_path, student):
    whole = trainer(student)
    whole.run(Control())
    first = trainer(student)
    outcome = first.run(Control(is_cancelled=lambda: first.step >= 5), tmp_path / "s", save_every=2)
    assert outcome.stopped == "cancelled" and outcome.steps == 5
    second = trainer(student)
    second.resume(tmp_path / "s")
    final = second.run(Control())
    assert final.stopped == "done" and final.history == whole.history
    for name, net in whole._nets.items():
        for key, value in net.state_dict().items():
            assert torch.equal(value, second._nets[name].state_dict()[key]), key
            assert torch.equal(whole.best[name][key], second.best[name][key])
    with pytest.raises(HyperSharpError, match="other settings"):
        trainer(student, hs_scale=7.0).resume(tmp_path / "s")


def test_a_cancelled_run_keeps_its_weights_and_resumes(tmp_path, files, tiny):
    job = TrainJob(str(tmp_path / "w"), "s3rnet", *files, steps=4, validate_every=2, form=FULL_BAND)
    done = []
    stopping = Control(done.append, lambda: any("step 2:" in str(m) for m in done))
    outcome = run_train(job, stopping).metrics["training"]["outcome"]
    assert outcome["stopped"] == "cancelled" and outcome["steps"] == 2
    assert (tmp_path / "w" / "model.safetensors").is_file()
    job.resume = True
    assert run_train(job).metrics["training"]["outcome"]["steps"] == 4
    assert not (tmp_path / "w" / "state.safetensors").exists()


def test_the_judging_part_has_no_pixel_of_the_other():
    truth, scene = make_scene(rows=320)
    pair = reduced_pair(scene)
    takes = FullBandInput(BANDS, 1, RATIO, 2.0, 4.0)
    taught, judge = training.make_examples(pair, takes)
    both = taught.truth.shape[-1] + RATIO + judge.truth.shape[-1]
    assert both == pair.truth.shape[-1]
    assert torch.allclose(judge.truth[0] * 2.0, pair.truth[..., -judge.truth.shape[-1] :])
    # A network's PSNR beside lmmse's, by another way.
    guess = judge.truth[0] + 0.01
    expected = (10 * torch.log10(judge.closed_form / 1e-4)).mean()
    assert training.gain_db((guess - judge.truth[0]).square().mean((1, 2)), judge.closed_form) == (
        pytest.approx(float(expected), abs=0.01)
    )


def test_unknown_truth_costs_nothing():
    run = trainer()
    crop = run.crop(run.stream.draw(0, None), training.Dice(torch.Generator().manual_seed(0)))
    hole = torch.zeros_like(crop.mask)
    hole[4:9, 3:12] = True
    spoiled = dataclasses.replace(
        crop, mask=crop.mask & ~hole, truth=torch.where(hole, torch.tensor(1e6), crop.truth)
    )
    clean = dataclasses.replace(spoiled, truth=crop.truth)
    found, expected = (float(run._loss(c).detach()) for c in (spoiled, clean))
    assert found < 10 and found == pytest.approx(expected)


def test_training_goes_on_from_weights_of_this_form(tmp_path, files, tiny):
    def job(name, **changes):
        values = {"steps": 1, "validate_every": 1, "form": FULL_BAND, "weights": str(tmp_path / "start")}
        return TrainJob(str(tmp_path / name), "s3rnet", *files, **{**values, **changes})

    config = dataclasses.replace(LOCAL["s3rnet"], ratio=3, width=8, growth=3)
    save(tmp_path / "start", MBFN(config), hs_scale=900.0, guide_scale=None)
    run_train(job("more"))
    entry, model = read_config(tmp_path / "more")["input"], load_full_band(tmp_path / "more", MBFN)[0]
    assert model.config.width == 8 and entry["hs_scale"] == 900.0 and 500 < entry["guide_scale"] < 3000
    with pytest.raises(HyperSharpError, match="another input: 'full-band'"):
        run_train(job("subspace", form="subspace"))
    save(tmp_path / "start", MBFN(dataclasses.replace(config, guide_bands=3)))
    with pytest.raises(HyperSharpError, match="a guide of 3 bands") as caught:
        run_train(job("other"))
    assert caught.value.code is ErrorCode.NO_WEIGHTS
    assert not (tmp_path / "other").exists() and not (tmp_path / "subspace").exists()


# ---------------------------------------------------------------- fusing


@pytest.mark.parametrize("hole", [False, True])
@pytest.mark.parametrize("kind", LOCAL)
def test_tiles_cannot_be_seen(tmp_path, kind, hole):
    _, scene = make_scene(rows=240, hole=hole)
    options = {"weights": save(tmp_path / "w", network(kind))}
    method = METHODS[kind][0](options)
    whole = fused(method, scene)
    tiled = fused(METHODS[kind][0](options), scene, side=70)
    assert method.full_band.local and bool(torch.isfinite(whole).all())
    assert float((whole - tiled).abs().max()) < 1e-4 * float(whole.std()) > 0


@pytest.mark.parametrize("kind", ["s3rnet", "hyfusion"])
def test_tiles_that_overlap_too_little_would_be_seen(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(METHODS[kind][1], "reach", lambda self, ratio: 1)
    _, scene = make_scene(rows=240)
    options = {"weights": save(tmp_path / "w", network(kind))}
    whole, tiled = (fused(METHODS[kind][0](options), scene, side) for side in (None, 70))
    assert float((whole - tiled).abs().max()) > 1e-3 * float(whole.std())


def test_the_result_is_the_networks(tmp_path):
    _, scene = make_scene(rows=120)
    model = network("s3rnet")
    weights = save(tmp_path / "w", model, hs_scale=800.0, guide_scale=500.0, range=[-1, 1])
    found = fused(S3RNet({"weights": weights}), scene, side=50)
    with torch.no_grad():
        hs, guide = scene.hs.image / 800 * 2 - 1, scene.guide.image / 500 * 2 - 1
        expected = (model(hs[None], guide[None])[0][0] + 1) / 2 * 800
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-2)


def test_nodata_leaves_finite_values(tmp_path):
    _, scene = make_scene(rows=120, hole=True)
    out = fused(S3RNet({"weights": save(tmp_path / "w", network("s3rnet"))}), scene)
    model, plain = network("s3rnet"), make_scene(rows=120)[1]
    whole = fused(S3RNet({"weights": save(tmp_path / "v", model)}), plain)
    valid = scene.tile((0, 120), (0, 120)).mask
    # Nodata of -9999 would throw a network that is given 0 to 1 far off.
    assert float((out - whole)[:, valid].abs().max()) < 5 * float(whole.std())


PUBLISHED = MBFNConfig(BANDS, 1, RATIO, width=6, growth=2, blocks=(1, 1, 1, 1), attention=4, heads=1)


def test_a_network_that_looks_at_everything_runs_on_the_whole_scene(tmp_path):
    _, scene = make_scene(rows=160)
    weights = save(tmp_path / "w", network("s3rnet", PUBLISHED))
    method = S3RNet({"weights": weights})
    whole, tiled = fused(method, scene), fused(S3RNet({"weights": weights}), scene, side=64)
    assert torch.equal(whole, tiled) and method.describe()["by_tiles"] is False
    with pytest.raises(HyperSharpError, match="160 x 160 pixels take about") as caught:
        S3RNet({"weights": weights, "memory_gb": 0.43}).fit(scene, Control())
    assert "--form full-band" in caught.value.hint
    span = dataclasses.replace(LOCAL["mpsrnet-diff"], scan_span=None)
    assert not full_band.is_local(MPSRNet(span)) and full_band.is_local(MPSRNet(LOCAL["mpsrnet-diff"]))


def test_the_memory_bound_of_a_job_reaches_the_network(tmp_path, files):
    config = dataclasses.replace(PUBLISHED, ratio=3)
    weights = save(tmp_path / "w", network("s3rnet", config))
    with pytest.raises(HyperSharpError, match=r"the bound is 0\.42"):
        fuse(*files, tmp_path / "o.tif", method="s3rnet", weights=weights, memory_gb=0.42)
    assert not (tmp_path / "o.tif").exists()


def test_scales_that_nobody_knows_come_from_the_scene(tmp_path):
    truth, scene = make_scene(rows=120)
    weights = save(tmp_path / "w", network("s3rnet"), hs_scale=None, guide_scale=None)
    method = S3RNet({"weights": weights})
    plain = fused(method, scene)
    facts = method.describe()
    share = float((scene.hs.image <= facts["hs_scale"]).float().mean())
    assert share == pytest.approx(0.999, abs=1e-3) and "99.9%" in facts["scales_from"]
    # In other units the result is the same, in those units.
    other = Scene(TensorSource(scene.hs.image * 1e-4), TensorSource(scene.guide.image * 10), RATIO, 0.3, 0.2)
    assert torch.allclose(fused(S3RNet({"weights": weights}), other) * 1e4, plain, rtol=1e-3, atol=0.05)
    known = S3RNet({"weights": save(tmp_path / "v", network("s3rnet"))})
    known.fit(scene, Control())
    assert "trained_on" not in known.describe()
    assert known.describe()["scales_from"] == "the weights" and known.describe()["hs_scale"] == 1500


def test_a_whole_run_with_its_report(tmp_path, files):
    config = dataclasses.replace(LOCAL["mpsrnet-diff"], ratio=3)
    weights = save(tmp_path / "w", network("mpsrnet-diff", config))
    report = tmp_path / "r.html"
    result = fuse(*files, tmp_path / "o.tif", method="mpsrnet-diff", weights=weights, report=str(report))
    details = result.metrics["method_details"]
    assert details["form"] == FULL_BAND and details["hs_scale"] == 1500 and "prior" not in details
    assert "stages" not in result.metrics and result.metrics["reduced_resolution"]["fused"]["PSNR"] > 0
    assert FULL_BAND in report.read_text()


def test_a_cancel_does_not_wait_for_the_end_of_a_tile(tmp_path):
    _, scene = make_scene(rows=120)
    method = S3RNet({"weights": save(tmp_path / "w", network("s3rnet"))})
    wanted = []
    method.fit(scene, Control(is_cancelled=lambda: bool(wanted)))
    tile = scene.tile((0, 120), (0, 120), method.halo)
    wanted.append(True)
    with pytest.raises(HyperSharpError, match="cancelled"):
        method.fuse(tile)


# ---------------------------------------------------------------- official checkpoints


def official_state(hs, msi, width=8, growth=4):
    """A state dict with the official names, small: one block in each branch."""
    generator = torch.Generator().manual_seed(5)
    state = {}

    def conv(name, cin, cout, k, bias=True):
        state[f"{name}.weight"] = torch.randn(cout, cin, k, k, generator=generator) / (cin * k * k) ** 0.5
        if bias:
            state[f"{name}.bias"] = 0.1 * torch.randn(cout, generator=generator)

    for name, cin in (("hmconv1", hs + msi), ("mhconv1", hs + msi), ("hconv1", hs), ("mconv1", msi)):
        conv(name, cin, width, 3)
    for part in ("hmfeat", "mhfeat", "hfeat", "mfeat"):
        for dense in (1, 2, 3):
            for i in range(5):
                out = growth if i < 4 else width
                conv(f"{part}.0.MFB{dense}.conv{i + 1}", width + i * growth, out, 3)
    for name in ("query_conv", "key_conv", "value_conv"):
        conv(f"fuse_att.{name}", width, 64, 1)
    conv("fuse_att.output_conv", 64, width, 1)
    conv("fuse_att.attention_weights", 4 * width, 4, 1)
    conv("fuse", width, hs, 3)
    conv("last", hs, hs, 3, bias=False)
    return {f"_orig_mod.{name}": value for name, value in state.items()}


def test_a_converted_checkpoint_fuses(tmp_path, files):
    torch.save(official_state(14, 1), tmp_path / "official.pth")
    model = convert_checkpoint(tmp_path / "official.pth", tmp_path / "w", ratio=3)
    assert read_config(tmp_path / "w")["input"] == {
        "form": FULL_BAND,
        "hs_bands": 14,
        "guide_bands": 1,
        "ratio": 3,
        "hs_scale": None,
        "guide_scale": None,
        "range": [-1, 1],
    }
    output, metrics = tmp_path / "o.tif", tmp_path / "m.json"
    fuse(*files, output, method="csakd-teacher", weights=str(tmp_path / "w"), metrics=str(metrics))
    facts = json.loads(metrics.read_text())["method_details"]
    assert "this scene" in facts["scales_from"]
    hs, guide = (torch.from_numpy(rasterio.open(path).read()) for path in files)
    with torch.no_grad():
        own = [x / facts[key] * 2 - 1 for x, key in ((hs, "hs_scale"), (guide, "guide_scale"))]
        expected = (model(own[0][None], own[1][None])[0][0] + 1) / 2 * facts["hs_scale"]
    found = torch.from_numpy(rasterio.open(output).read())
    assert torch.allclose(found, expected, rtol=1e-3, atol=0.05)


def test_a_checkpoint_with_its_scales(tmp_path):
    torch.save(official_state(14, 1), tmp_path / "official.pth")
    convert_checkpoint(tmp_path / "official.pth", tmp_path / "w", 3, 10_000.0, 255.0)
    _, takes = load_full_band(tmp_path / "w", MBFN)
    assert (takes.hs_scale, takes.guide_scale, takes.range) == (10_000.0, 255.0, (-1, 1))
    for wrong in ({"ratio": 0}, {"hs_scale": 0.0}, {"guide_scale": float("nan")}):
        with pytest.raises(HyperSharpError, match="the scales are"):
            convert_checkpoint(tmp_path / "official.pth", tmp_path / "v", **{"ratio": 3, **wrong})
    assert not (tmp_path / "v").exists()


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"hs_bands": 15}, "take 15 HS bands, a guide of 1 band and the ratio 4"),
        ({"guide_bands": 4}, "take 14 HS bands, a guide of 4 bands and the ratio 4"),
        ({"ratio": 2}, "a guide of 1 band and the ratio 2; this pair has 14 HS bands"),
    ],
)
def test_pairs_that_the_weights_do_not_take(tmp_path, change, words):
    _, scene = make_scene(rows=64)
    weights = save(tmp_path / "w", MBFN(dataclasses.replace(LOCAL["s3rnet"], **change)))
    with pytest.raises(HyperSharpError, match=words) as caught:
        S3RNet({"weights": weights}).fit(scene, Control())
    assert caught.value.code is ErrorCode.NO_WEIGHTS and "train weights" in caught.value.hint


@pytest.mark.parametrize(
    "entry",
    [
        {"hs_bands": "many"},
        {"hs_bands": 0},
        {"guide_bands": True},
        {"ratio": 2.5},
        {"ratio": -4},
        {"hs_scale": 0},
        {"guide_scale": "unknown"},
        {"hs_scale": float("nan")},
        {"range": [1, 0]},
        {"range": 1},
        {"range": [0, 1, 2]},
        {"range": [0, None]},
    ],
)
def test_a_configuration_that_is_not_valid(tmp_path, entry):
    save(tmp_path / "w", network("s3rnet"), **entry)
    with pytest.raises(HyperSharpError, match="is not valid: input is") as caught:
        load_full_band(tmp_path / "w", MBFN)
    assert caught.value.code is ErrorCode.NO_WEIGHTS


def test_weights_that_contradict_themselves_or_are_of_another_kind(tmp_path):
    def refused(words, network=MBFN):
        with pytest.raises(HyperSharpError, match=words) as caught:
            load_full_band(tmp_path / "w", network)
        assert caught.value.code is ErrorCode.NO_WEIGHTS and caught.value.hint

    save(tmp_path / "w", network("s3rnet"), hs_bands=15)
    refused("contradicts itself")
    save(tmp_path / "w", network("s3rnet"), ratio=3)
    refused("contradicts itself")
    started = network("s3rnet")
    started.config = dataclasses.replace(started.config, start=(2, 3))
    started.register_buffer("start", torch.zeros(2, 3))
    save(tmp_path / "w", started)
    refused("contradicts itself")
    save(tmp_path / "w", network("s3rnet"), form="subspace-2")
    refused("another input: 'subspace-2'")
    save(tmp_path / "w", network("hyfusion"))
    refused("class 'hyfusion'")
    save(tmp_path / "w", MPSRNet(dataclasses.replace(LOCAL["mpsrnet-diff"], prior=True, prior_bands=14)))
    refused("take a prior", MPSRNet)


def test_what_a_network_of_any_ratio_takes(tmp_path):
    save(tmp_path / "w", MBFN(dataclasses.replace(LOCAL["s3rnet"], ratio=None)))
    _, takes = load_full_band(tmp_path / "w", MBFN)
    assert takes.ratio is None and "any ratio" in str(takes)
    for ratio in (2, 3):
        truth, scene = make_scene(rows=24 * ratio, ratio=ratio)
        assert fused(S3RNet({"weights": str(tmp_path / "w")}), scene).shape == truth.shape


def test_adaptation_is_refused_with_a_way_out(tmp_path):
    _, scene = make_scene(rows=64)
    weights = save(tmp_path / "w", network("s3rnet"))
    with pytest.raises(HyperSharpError, match="not adapted while fusing") as caught:
        S3RNet({"weights": weights, "adapt": 5}).fit(scene, Control())
    assert "hypersharp train" in caught.value.hint


@pytest.mark.parametrize("memory", [0, -1, "much", True, None])
def test_wrong_memory_bounds_are_refused(memory):
    with pytest.raises(HyperSharpError, match="memory bound"):
        S3RNet({"memory_gb": memory})


def test_training_jobs_that_make_no_sense(tmp_path, files, capsys, cube_folder):
    output = tmp_path / "w"

    def refused(*arguments):
        assert cli.main(["train", *arguments, "--method", "s3rnet", "-o", str(output), "--steps", "1"]) == 2
        error = capsys.readouterr().err
        assert "hint: " in error and not output.exists()
        return error

    error = refused("--cubes", str(cube_folder), "--form", FULL_BAND)
    assert "not trained on cubes" in error and "give one pair" in error
    assert "invalid choice" in refused(*files, "--form", "whole")
    with pytest.raises(HyperSharpError, match="unknown form 'whole'"):
        run_train(TrainJob(str(output), "s3rnet", *files, form="whole"))
    small = raster(tmp_path / "small.tif", synthetic_image(2)[:, :12, :12], 9.0)
    assert "too small to train on" in refused(small, files[1], "--form", FULL_BAND)
    nothing = raster(tmp_path / "nothing.tif", torch.full((14, 40, 40), torch.nan), 9.0)
    refused(nothing, files[1], "--form", FULL_BAND)
