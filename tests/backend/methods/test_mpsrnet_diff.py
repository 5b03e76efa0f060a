# SPDX-License-Identifier: GPL-2.0-or-later
"""MPSRNet-Diff as a user meets it: its options, both stages' progress, cancel, and what the report says of them."""

import json
import math
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from hypersharp.backend import control as control_module
from hypersharp.backend import protocol
from hypersharp.backend.assessment import STAGE_KEYS
from hypersharp.backend.cli import main
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.diffusion import blocks, prior, tiles
from hypersharp.backend.diffusion.denoiser import ARCHITECTURE, UNetDenoiser
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.job import parse_options
from hypersharp.backend.methods import mpsrnet_diff
from hypersharp.backend.methods.learned_planes import COARSE_PLANES, FINE_PLANES, FORM, OUTPUTS, PRIOR_PLANES
from hypersharp.backend.methods.lmmse import LMMSE
from hypersharp.backend.methods.mpsrnet_diff import MPSRNetDiff
from hypersharp.backend.models.mpsrnet import MPSRNet, MPSRNetConfig
from hypersharp.backend.pipeline import fuse
from hypersharp.backend.registry import METHODS, PRESETS, check_options, network_times
from hypersharp.backend.report.stages import StageCollector, prior_facts
from hypersharp.backend.scene import Scene, tile_windows

METHOD = "mpsrnet-diff"


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HYPERSHARP_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def denoiser(tmp_path):
    torch.manual_seed(0)
    sizes = {
        "block_out_channels": (8, 16),
        "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2,
        "norm_num_groups": 4,
    }
    UNetDenoiser(UNet2DModel(**{**ARCHITECTURE, **sizes})).save_pretrained(tmp_path / "denoiser")
    return str(tmp_path / "denoiser")


def network(folder, scale=0.05, takes_prior=True):
    torch.manual_seed(1)
    config = MPSRNetConfig(
        COARSE_PLANES, FINE_PLANES, None, OUTPUTS + takes_prior, PRIOR_PLANES, width=4, blocks=1, d_state=2,
        patch=2, scan_span=16, prior=takes_prior,
    )  # fmt: skip
    model = MPSRNet(config)
    for name, values in model.named_parameters():
        if scale == 0.0 and values.std() < 0.05:
            torch.nn.init.zeros_(values)
    model.save_pretrained(folder, {"input": {"form": FORM, "components": 2}})
    return str(folder)


@pytest.fixture
def options(tmp_path, denoiser):
    return {"weights": network(tmp_path / "w"), "prior_weights": denoiser, "precision": "float32"}


@pytest.fixture
def scene(plain):
    pair = plain.make_pair(bands=8, coarse=16, ratio=3, width=14)
    return plain.scene(pair.hs, pair.guide, 3)


def fitted(scene, options, control=None):
    method = MPSRNetDiff(options)
    method.fit(scene, control or Control())
    return method


def whole(scene, method):
    rows, cols = scene.shape
    return scene.tile((0, rows), (0, cols), method.halo)


def test_the_stages_are_what_they_are_called(scene, options):
    method = fitted(scene, options)
    tile = whole(scene, method)
    found = method.stages(tile)
    assert list(found) == ["closed_form", "prior", "fused"] == [*method.stage_names, "fused"]
    plain = LMMSE()
    plain.fit(scene, Control())
    lmmse = plain.fuse(scene.tile(*[(0, n) for n in scene.shape], plain.halo))
    spread = float(lmmse.std())
    assert torch.allclose(found["closed_form"], lmmse, atol=1e-3 * spread)
    rows, cols = ((0, n) for n in scene.shape)
    # The prior's base goes into what the network corrects.
    closed, k = method.closed, method.components
    change = closed.completion(closed.subspace.coefficients(lmmse), closed.regressed(tile), 3, k)
    corrected = lmmse.clone()
    closed.part(k, k + len(change)).add_to(corrected, change)
    assert torch.allclose(found["prior"], method.prior.refine(corrected, rows, cols), atol=1e-3 * spread)
    assert torch.equal(found["fused"], method.fuse(tile))
    assert float((found["prior"] - lmmse).abs().max()) > 1e-2 * spread
    assert not torch.equal(found["fused"], found["closed_form"])


def test_watching_changes_nothing_and_tells_of_every_tile(scene, options):
    method = fitted(scene, options)
    still = method.fuse(whole(scene, method))
    rows, cols = scene.shape
    bands = [5, 2, 0]
    collector = StageCollector("prior", [7, 4, 2], bands, (0, rows), (0, cols))
    method.watch = collector
    assert collector.picture() is None
    assert torch.equal(method.fuse(whole(scene, method)), still)
    once = collector.picture().values
    expected = method.stages(whole(scene, method))["prior"][bands].numpy()
    np.testing.assert_allclose(once, expected, rtol=1e-6)
    for r, c in tile_windows((0, rows), (0, cols), 18):  # again in tiles, as after memory has run out
        method.fuse(scene.tile(r, c, method.halo))
    picture = collector.picture()
    assert picture.bands == [7, 4, 2] and picture.factor == 1
    np.testing.assert_allclose(picture.values, expected, atol=2e-2 * expected.std())


def test_a_large_picture_is_one_of_block_means(monkeypatch):
    from hypersharp.backend.report import stages

    monkeypatch.setattr(stages, "MOST_PIXELS", 100)
    image = torch.arange(3 * 31 * 29, dtype=torch.float32).view(3, 31, 29)
    scene = Scene(TensorSource(torch.ones(4, 31, 29)), TensorSource(torch.ones(1, 62, 58)), 2, 0.3, 0.3)
    collector = StageCollector("prior", [0, 1, 2], [0, 1, 2], (10, 41), (6, 35))
    for rows, cols in tile_windows((10, 41), (6, 35), 8):
        part = image[:, rows[0] - 10 : rows[1] - 10, cols[0] - 6 : cols[1] - 6]
        collector(scene.tile(rows, cols), "prior", part)
        collector(scene.tile(rows, cols), "closed_form", part * 0 - 99)
    picture = collector.picture()
    assert picture.factor == 3 and picture.values.shape == (3, 11, 10)
    np.testing.assert_allclose(picture.values[:, 1, 2], image[:, 3:6, 6:9].mean(dim=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(picture.values[:, 10, 9], image[:, 30:, 27:].mean(dim=(1, 2)), rtol=1e-6)
    assert picture.on((0, 12), (0, 12), (12, 12)) is None  # a detail would show blocks
    assert picture.on((0, 31), (0, 29), (5, 4)).shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"preset": "soon"}, "preset"),
        ({"preset": ["quick"]}, "preset"),
        ({"prior_rank": 0}, "rank"),
        ({"prior_rank": 13}, "rank"),
        ({"prior_rank": "3"}, "rank"),
        ({"prior_rank": True}, "rank"),
        ({"cache": "maybe"}, "cache"),
        ({"steps": 5}, "unknown method option"),
    ],
)
def test_wrong_options_are_refused(option, words):
    with pytest.raises(HyperSharpError, match=words) as caught:
        MPSRNetDiff(option)
    assert caught.value.code is ErrorCode.USAGE and caught.value.hint


def test_registry_and_method_agree():
    info = METHODS[METHOD]
    assert tuple(prior.PRESETS) == PRESETS
    for option in info.options:
        assert MPSRNetDiff.defaults[option.name] == option.default
        for value in option.choices or (option.least, option.most):
            check_options(METHOD, {option.name: value})
            MPSRNetDiff({option.name: value})
    for bad in ({"preset": "soon"}, {"prior_rank": 13}, {"prior_rank": 2.0}, {"prior_rank": True}):
        with pytest.raises(HyperSharpError, match="cannot be") as caught:
            check_options(METHOD, bad)
        assert caught.value.exit_code == 2 and caught.value.hint
    with pytest.raises(HyperSharpError, match="gsa has no presets"):
        check_options("gsa", {"preset": "fine"})
    times = [network_times(info, {"preset": p}) for p in PRESETS]
    assert times[0] == 1.0 and times == sorted(times) and network_times(info, {}) == 1.0
    assert network_times(info, {"prior_rank": 4}) > network_times(info, {"prior_rank": 3}) == 1.0
    assert network_times(METHODS["gsa"], {}) == 1.0


def test_the_steps_seed_and_rank_are_those_asked_for(scene, options):
    method = fitted(scene, {**options, "preset": "standard", "prior_rank": 2})
    facts = method.describe()["prior"]
    assert facts["steps"] == 20 and len(facts["bands"]) == 2 and len(facts["curves"]["hs"]) == 21
    json.dumps(facts)
    scene.seed = 4
    other = fitted(scene, {**options, "prior_rank": 2})
    assert other.describe()["prior"]["seed"] == 4 and other.describe()["prior"]["steps"] == 10


def test_a_second_run_with_another_second_stage_draws_nothing(tmp_path, scene, options, monkeypatch):
    calls = []
    real = tiles.TiledNoise.__call__
    monkeypatch.setattr(tiles.TiledNoise, "__call__", lambda *a: calls.append(1) or real(*a))
    first = fitted(scene, options)
    assert len(calls) == 10 and not first.from_cache
    other = network(tmp_path / "other", scale=0.0)
    second = fitted(scene, {**options, "weights": other})
    assert len(calls) == 10 and second.describe()["prior"]["from_cache"]
    assert torch.equal(first.prior.base, second.prior.base)
    fitted(scene, {**options, "cache": False})
    assert len(calls) == 20
    fitted(scene, {**options, "preset": "standard"})
    assert len(calls) == 40


def test_weights_without_a_prior_draw_none(tmp_path, scene, options, monkeypatch):
    monkeypatch.setattr(mpsrnet_diff, "cached_prior", None)
    method = fitted(scene, {**options, "weights": network(tmp_path / "none", takes_prior=False)})
    assert method.prior is None and "prior" not in method.describe()
    assert list(method.stages(whole(scene, method))) == ["closed_form", "fused"]


def test_a_cancel_is_heard_within_a_tile_of_the_denoiser(scene, options, monkeypatch):
    calls = []
    real = UNetDenoiser.epsilon

    def epsilon(self, *args):
        calls.append(time.monotonic())
        return real(self, *args)

    monkeypatch.setattr(UNetDenoiser, "epsilon", epsilon)
    with pytest.raises(Cancelled):
        fitted(scene, options, Control(is_cancelled=lambda: len(calls) >= 3))
    # The one that was running when the user stopped it was the last.
    assert len(calls) == 3


def test_memory_counts_the_prior(scene, options, tmp_path):
    method = fitted(scene, options)
    without = fitted(scene, {**options, "weights": network(tmp_path / "alone", takes_prior=False)})
    assert without.prior is None and len(method.prior.bands) == 3
    assert method.pixel_bytes - without.pixel_bytes == 4 * (method.components * PRIOR_PLANES + 2 * 3)


def test_a_large_scene_is_fused_with_a_prior_drawn_in_blocks(plain, options, monkeypatch):
    """Tiles read their windows of it, on the first run and from the cache, and the result is as without blocks."""
    monkeypatch.setattr(blocks, "BLEND", 12)
    pair = plain.make_pair(bands=8, coarse=40, ratio=3, width=34)
    scene = plain.scene(pair.hs, pair.guide, 3)
    in_one = fitted(scene, options).fuse(scene.tile((0, 120), (0, 102)))
    monkeypatch.setattr(MPSRNetDiff, "__init__", with_blocks(MPSRNetDiff.__init__, 81))
    found = []
    for known in (False, True):
        method = fitted(scene, options)
        facts = method.describe()["prior"]
        assert facts["blocks"] == 4 and max(facts["block_pixels"]) <= 81 and facts["from_cache"] == known
        tile = scene.tile((40, 90), (30, 100), method.halo)
        found.append(method.fuse(tile))
    assert torch.equal(*found)
    whole = method.fuse(scene.tile((0, 120), (0, 102), method.halo))
    spread = float(whole.std())
    torch.testing.assert_close(found[0], whole[:, 40:90, 30:100], rtol=0, atol=0.02 * spread)
    assert float((whole - in_one).square().mean().sqrt()) < 0.1 * spread


def with_blocks(init, side):
    def changed(self, *arguments):
        init(self, *arguments)
        self.prior_settings = replace(self.prior_settings, block=side)

    return changed


# ---------------------------------------------------------------- through the pipeline


@pytest.fixture
def files(pair_files):
    hs, guide, _ = pair_files(bands=8, rows=32, cols=28, ratio=3)
    return hs, guide


def run(files, folder, options, control=None, **more):
    weights = options["weights"]
    parameters = {k: v for k, v in options.items() if k != "weights"}
    return fuse(
        *files,
        folder / "out.tif",
        method=METHOD,
        weights=weights,
        parameters=parameters,
        control=control,
        **more,
    )


def test_progress_goes_over_both_stages_to_the_end(files, tmp_path, options, monkeypatch):
    monkeypatch.setattr(control_module, "MESSAGE_INTERVAL_S", 0.0)
    monkeypatch.setattr(control_module, "ETA_AFTER_S", 0.0)
    for known in (False, True):
        said = []
        run(files, tmp_path, options, Control(said.append), report=str(tmp_path / "r.html"))
        progress = [m for m in said if isinstance(m, protocol.Progress)]
        stages = list(dict.fromkeys(m.stage for m in progress))
        assert stages == ["reading", "learning", prior.STAGE, "fusing", "assessing", "report"]
        fractions = [m.fraction for m in progress]
        assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0, abs=1e-3)
        drawing = [m for m in progress if m.stage == prior.STAGE]
        share = drawing[-1].fraction - drawing[0].fraction
        assert share > 0.3 and (known or len(drawing) >= 11)
        assert any(m.eta_s is not None for m in drawing) or known


def test_metrics_and_report_tell_what_each_stage_gained(files, tmp_path, options):
    result = run(
        files, tmp_path, options, report=str(tmp_path / "r.html"), metrics=str(tmp_path / "m.json"), seed=3
    )
    metrics = json.loads((tmp_path / "m.json").read_text())
    stages = metrics["stages"]["reduced_resolution"]
    assert list(stages) == ["interpolated", "closed_form", "prior", "fused"]
    assert all(list(column) == list(STAGE_KEYS) for column in stages.values())
    assert all(math.isfinite(v) for column in stages.values() for v in column.values())
    reduced = metrics["reduced_resolution"]
    assert set(reduced) == {"fused", "interpolated"}
    for name, column in reduced.items():
        assert {k: column[k] for k in STAGE_KEYS} == stages[name]
    alone = fuse(*files, tmp_path / "lmmse.tif", method="lmmse")
    expected = alone.metrics["reduced_resolution"]["fused"]
    assert stages["closed_form"]["PSNR"] == pytest.approx(expected["PSNR"], abs=1e-3)
    assert stages["prior"] != stages["closed_form"]
    page = (tmp_path / "r.html").read_text()
    assert page.count("Prior, drawn by diffusion") >= 3  # both pictures and the table
    assert "<h2>Stages</h2>" in page and "Closed form (LMMSE)" in page and 'class="curves"' in page
    assert f"{stages['prior']['PSNR']:.2f}" in page and "Diffusion steps" in page
    assert result.metrics["method_details"]["prior"]["seed"] == 3
    assert "curves" not in page.partition("What the method learned")[2].replace('class="curves"', "")


@pytest.mark.parametrize(
    ("facts", "said"),
    [
        ({"blocks": 4, "block_pixels": [240, 192]}, "4, of up to 240 x 192 pixels"),
        ({"blocks": 1, "block_pixels": [96, 96]}, None),
        ({}, None),
    ],
)
def test_the_report_says_when_a_prior_was_drawn_in_blocks(facts, said):
    shown = prior_facts({"method_details": {"prior": {"steps": 10, **facts}}})
    assert shown["Diffusion steps"] == 10 and shown.get("Drawn in blocks") == said


def test_methods_of_one_piece_have_no_stages(files, tmp_path):
    result = fuse(*files, tmp_path / "o.tif", method="gsa", report=str(tmp_path / "r.html"))
    assert "stages" not in result.metrics
    page = (tmp_path / "r.html").read_text()
    assert "<h2>Stages</h2>" not in page and "drawn by diffusion" not in page


def test_a_cancel_leaves_neither_output_nor_prior(files, tmp_path, options, monkeypatch):
    monkeypatch.setattr(control_module, "MESSAGE_INTERVAL_S", 0.0)
    stage = []

    def listen(message):
        if isinstance(message, protocol.Progress):
            stage.append((message.stage, message.done))

    with pytest.raises(Cancelled):
        run(files, tmp_path, options, Control(listen, lambda: (prior.STAGE, 2) in stage))
    assert not (tmp_path / "out.tif").exists()
    assert not list(tmp_path.glob("cache/priors/*"))


def test_the_command_line(files, tmp_path, options, capsys):
    arguments = ["fuse", *files, "-o", str(tmp_path / "c.tif"), "--method", METHOD]
    arguments += ["--weights", options["weights"], "--option", f"prior_weights={options['prior_weights']}"]
    assert main([*arguments, "--preset", "standard", "--metrics", str(tmp_path / "m.json")]) == 0
    metrics = json.loads((tmp_path / "m.json").read_text())
    assert metrics["parameters"]["preset"] == "standard"
    assert metrics["method_details"]["prior"]["steps"] == 20
    (tmp_path / "c.tif").unlink()
    for more, words in (
        (["--preset", "soon"], "invalid choice"),
        (["--option", "prior_rank=40"], "prior_rank"),
        (["--option", "preset=soon"], "preset"),
        (["--method", "gsa", "--preset", "fine"], "no presets"),
    ):
        capsys.readouterr()
        assert main([*arguments, *more]) == 2
        said = capsys.readouterr().err
        assert words in said and "hint:" in said and "Traceback" not in said
    assert not (tmp_path / "c.tif").exists()
    assert main(["methods"]) == 0
    assert "preset=quick|standard|fine" in capsys.readouterr().out


def test_the_doctor_tells_of_the_cache(scene, options, tmp_path, capsys):
    fitted(scene, options)
    assert main(["doctor", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)["prior_cache"]
    assert told["folder"] == str(tmp_path / "cache" / "priors") and told["priors"] == 1
    assert told["limit_mb"] == 2048 and told["writable"]


def test_options_are_read_as_values():
    assert parse_options(["preset=fine", "prior_rank=6", "cache=false"]) == {
        "preset": "fine",
        "prior_rank": 6,
        "cache": False,
    }


def test_cached_facts_and_new_ones_are_told_apart(scene, options):
    first, second = fitted(scene, options).describe(), fitted(scene, options).describe()
    assert first["prior"].pop("from_cache") is False and second["prior"].pop("from_cache") is True
    assert json.dumps(first) == json.dumps(second)


def test_degrading_is_what_the_closed_form_agrees_with(scene, options):
    """A correction of the network is invisible to the HS sensor."""
    method = fitted(scene, options)
    found = method.stages(whole(scene, method))
    difference = found["fused"] - found["closed_form"]
    seen = degrade(difference, 3, method.closed.mtf_gain)[0]
    assert float(seen.std()) < 0.3 * float(difference.std())


def test_it_says_which_scan_ran(scene, options, monkeypatch):
    assert fitted(scene, options).describe()["selective_scan"] == "chunked torch scan"
    monkeypatch.setattr(mpsrnet_diff, "scan_name", lambda device: "mamba-ssm kernel")
    assert fitted(scene, options).describe()["selective_scan"] == "mamba-ssm kernel"
