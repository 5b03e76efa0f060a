# SPDX-License-Identifier: GPL-2.0-or-later
import dataclasses
import json

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.methods.kernel_regression import KERNEL_COMPONENTS
from hypersharp.backend.methods.learned import HyFusionMethod, S3RNet
from hypersharp.backend.methods.learned_planes import (
    COARSE_PLANES,
    FINE_PLANES,
    FORM,
    OTHER_FORMS,
    OTHER_PLANES,
    OUTPUTS,
    READ,
    START_SHAPE,
    consistent,
)
from hypersharp.backend.methods.lmmse import LMMSE
from hypersharp.backend.models.hyfusion import HyFusion, HyFusionConfig
from hypersharp.backend.models.mbfn import MBFN, MBFNConfig
from hypersharp.backend.models.pretrained import from_pretrained
from hypersharp.backend.registry import load_method
from hypersharp.backend.scene import Scene, tile_windows

from .conftest import synthetic_image

SMALL_MBFN = MBFNConfig(
    COARSE_PLANES, FINE_PLANES, None, OUTPUTS, width=4, growth=2, blocks=(1, 1, 1, 1), dense=1,
    attention=4, heads=1, window=5, start=START_SHAPE,
)  # fmt: skip
SMALL_HYFUSION = HyFusionConfig(
    COARSE_PLANES,
    FINE_PLANES,
    None,
    OUTPUTS,
    width=4,
    depth=1,
    growth=4,
    window=4,
    heads=1,
    start=START_SHAPE,
)


def weights(folder, config, scale=0.05, **entry):
    torch.manual_seed(1)
    model = MBFN(config) if isinstance(config, MBFNConfig) else HyFusion(config)
    torch.nn.init.normal_(model.last.weight, std=scale)
    if model.start is not None:
        torch.nn.init.normal_(model.start, std=scale)
    model.save_pretrained(folder, {"input": {"form": FORM, "components": 3, **entry}})
    return str(folder)


def make_scene(rows=160, ratio=4, guide_bands=1, hole=False, seed=3):
    truth = synthetic_image(seed, rows=rows, cols=rows)
    hs, _ = degrade(truth, ratio, 0.3)
    picks = torch.linspace(1, 10, guide_bands).long()
    mask = torch.ones(hs.shape[1:], dtype=torch.bool)
    if hole:
        mask[8:14, 10:20] = False
        hs = torch.where(mask, hs, torch.tensor(-9999.0))
    return truth, Scene(TensorSource(hs, mask), TensorSource(truth[picks]), ratio, 0.3, 0.2)


def fused(method, scene, side=None):
    method.fit(scene, Control())
    rows, cols = scene.shape
    out = None
    for r, c in tile_windows((0, rows), (0, cols), side or rows):
        part = method.fuse(scene.tile(r, c, method.halo))
        out = torch.zeros(len(part), rows, cols) if out is None else out
        out[:, r[0] : r[1], c[0] : c[1]] = part
    return out


@pytest.mark.parametrize(("cls", "config"), [(S3RNet, SMALL_MBFN), (HyFusionMethod, SMALL_HYFUSION)])
@pytest.mark.parametrize("hole", [False, True])
def test_tiles_cannot_be_seen(tmp_path, cls, config, hole):
    _, scene = make_scene(rows=336, hole=hole)
    folder = weights(tmp_path / "w", config)
    exact = {"weights": folder, "precision": "float32"}
    whole = fused(cls(exact), scene)
    tiled = fused(cls(exact), scene, side=112)
    plain = fused(LMMSE(), scene)
    corrected = (whole - plain).std()
    assert float(corrected) > 1e-3 * float(plain.std())
    # Far from the hole everything is defined by valid pixels; there tiling changes nothing but rounding.
    difference = (whole - tiled).abs()
    if hole:
        difference[:, :120, :140] = 0
    assert float(difference.max()) < 2e-3 * float(corrected)


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("ratio", [2, 3, 5])
def test_any_guide_and_ratio_by_the_same_weights(tmp_path, guide_bands, ratio):
    truth, scene = make_scene(rows=ratio * 24, ratio=ratio, guide_bands=guide_bands)
    out = fused(S3RNet({"weights": weights(tmp_path / "w", SMALL_MBFN)}), scene)
    assert out.shape == truth.shape and bool(torch.isfinite(out).all())


def test_a_network_that_says_nothing_leaves_what_it_corrects(tmp_path):
    """The closed form, moved towards kernel regression beyond the coefficients that the network corrects."""
    _, scene = make_scene()
    method = S3RNet({"weights": weights(tmp_path / "w", SMALL_MBFN, scale=0.0)})
    found, plain = fused(method, scene), fused(LMMSE(), scene)
    closed, tile = method.closed, scene.tile((0, 160), (0, 160), method.halo)
    space, rank = closed.subspace, len(closed.trust)
    assert torch.allclose(closed.image(tile), plain)
    kernel = closed.kernel.coefficients(tile, min(KERNEL_COMPONENTS, rank))[3:]
    own = space.coefficients(plain)
    step = kernel - own[3 : 3 + len(kernel)]
    change = consistent(step, 4, closed.mtf_gain, closed.trust[3 : 3 + len(kernel)])
    expected = plain + torch.einsum("bk,kyx->byx", space.basis[:, 3 : 3 + len(kernel)], change)
    assert len(kernel) > 0 and not torch.allclose(expected, plain, atol=1e-3 * float(plain.std()))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3 * float(plain.std()))
    stages = method.stages(tile)
    assert torch.allclose(stages["closed_form"], plain, rtol=1e-4, atol=1e-3 * float(plain.std()))
    facts = method.describe()
    assert facts["components"] <= 3 and facts["network_parameters"] > 0
    json.dumps(facts)


def test_the_start_is_part_of_the_correction(tmp_path):
    """With a network that says nothing, what weights of one fact of one form's plane mean can be written out."""
    _, scene = make_scene(rows=96)
    folder = weights(tmp_path / "w", SMALL_MBFN, scale=0.0)
    method = S3RNet({"weights": folder, "precision": "float32"})
    plain = fused(method, scene)
    model = from_pretrained(folder)
    model.start[READ.index(OTHER_PLANES[OTHER_FORMS.index("gsa")]), 0] = 0.5
    model.save_pretrained(folder, {"input": {"form": FORM, "components": 3}})
    method = S3RNet({"weights": folder, "precision": "float32"})
    half = fused(method, scene)
    gsa = load_method("gsa")({})
    gsa.fit(scene, Control())
    space = method.closed.subspace
    towards = space.coefficients(
        gsa.fuse(scene.tile((0, 96), (0, 96), gsa.halo)) - plain + space.mean[:, None, None]
    )[:3]
    expected = consistent(0.5 * towards, 4, method.closed.mtf_gain, method.closed.trust[:3])
    found = space.coefficients(half - plain + space.mean[:, None, None])[:3]
    inner = slice(16, -16)
    assert float(towards[:, inner, inner].std()) > 0
    error = (found - expected)[:, inner, inner].std() / expected[:, inner, inner].std()
    assert float(error) < 0.05


def test_nodata_leaves_finite_values(tmp_path):
    _, scene = make_scene(hole=True)
    out = fused(S3RNet({"weights": weights(tmp_path / "w", SMALL_MBFN)}), scene)
    assert bool(torch.isfinite(out).all())
    valid = scene.tile((0, 160), (0, 160)).mask
    assert float(out[:, valid].abs().max()) < 4000


def test_wrong_weights_are_refused(tmp_path):
    _, scene = make_scene()

    def refused(cls, folder, words):
        with pytest.raises(HyperSharpError, match=words) as caught:
            cls({"weights": str(folder)}).fit(scene, Control())
        assert caught.value.code is ErrorCode.NO_WEIGHTS and caught.value.hint

    folder = tmp_path / "w"
    weights(folder, SMALL_MBFN)
    refused(HyFusionMethod, folder, "class 'mbfn'")
    refused(S3RNet, tmp_path / "nothing", "there are no weights")
    (tmp_path / "empty").mkdir()
    refused(S3RNet, tmp_path / "empty", "no weights in")
    weights(tmp_path / "full", SMALL_MBFN, form="full-band")
    refused(S3RNet, tmp_path / "full", "contradicts itself")
    weights(tmp_path / "older", SMALL_MBFN, form="subspace-1")
    refused(S3RNet, tmp_path / "older", "another input: 'subspace-1'")
    weights(tmp_path / "planes", dataclasses.replace(SMALL_MBFN, guide_bands=4))
    refused(S3RNet, tmp_path / "planes", "other planes")
    weights(tmp_path / "start", dataclasses.replace(SMALL_MBFN, start=(3, 4)))
    refused(S3RNet, tmp_path / "start", "other planes")
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-50])
    refused(S3RNet, folder, "damaged or incomplete")


@pytest.mark.parametrize("steps", [-1, 2.5, "many", True])
def test_wrong_numbers_of_adaptation_steps_are_refused(steps):
    with pytest.raises(HyperSharpError, match="adaptation steps"):
        S3RNet({"adapt": steps})


def test_adaptation_is_used_only_when_it_helps(tmp_path, monkeypatch):
    from hypersharp.backend.training.trainer import Trainer

    folder = weights(tmp_path / "w", SMALL_MBFN, scale=0.0)
    _, scene = make_scene(rows=320)
    results = {}
    for gain in (0.5, -0.5):
        gains = iter([0.0] + [gain] * 10)
        monkeypatch.setattr(Trainer, "gain", lambda self, name="model", gains=gains: next(gains))
        method = S3RNet({"weights": folder, "adapt": 4})
        control = Control()
        method.fit(scene, control)
        results[gain] = float(method.model.last.weight.abs().max())
        assert method.adaptation == {"steps": 4, "gain_db": gain, "used": gain > 0}
        assert bool(control.warnings) is (gain < 0)
        assert method.describe()["adaptation"]["gain_db"] == gain
    assert results[0.5] > 0 and results[-0.5] == 0.0


def test_adaptation_really_tunes_on_the_pair(tmp_path):
    folder = weights(tmp_path / "w", SMALL_MBFN, scale=0.003)
    _, scene = make_scene(rows=320)
    method = S3RNet({"weights": folder, "adapt": 8})
    method.fit(scene, Control())
    assert method.adaptation["steps"] == 8
    assert isinstance(method.adaptation["gain_db"], float)
    with pytest.raises(HyperSharpError, match="cancelled"):
        late = iter([False] * 40)
        S3RNet({"weights": folder, "adapt": 500}).fit(scene, Control(is_cancelled=lambda: next(late, True)))


def test_a_pair_too_small_to_adapt_to_is_fused_all_the_same(tmp_path):
    _, scene = make_scene(rows=64)
    method = S3RNet({"weights": weights(tmp_path / "w", SMALL_MBFN), "adapt": 5})
    control = Control()
    method.fit(scene, control)
    assert method.adaptation == {"steps": 0, "gain_db": None, "used": False}
    assert any("too small to adapt" in w for w in control.warnings)


def test_a_cancel_does_not_wait_for_the_end_of_a_tile(tmp_path):
    _, scene = make_scene()
    method = S3RNet({"weights": weights(tmp_path / "w", SMALL_MBFN)})
    wanted = []
    method.fit(scene, Control(is_cancelled=lambda: bool(wanted)))
    tile = scene.tile((0, 160), (0, 160), method.halo)
    wanted.append(True)
    with pytest.raises(HyperSharpError, match="cancelled"):
        method.fuse(tile)
