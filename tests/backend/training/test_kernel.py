# SPDX-License-Identifier: GPL-2.0-or-later
"""Training of what kernel regression has learned: examples, gains, that it learns, that it resumes to the same."""

import dataclasses
import json

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.methods.kernel_block import TERMS, regress
from hypersharp.backend.methods.kernel_regression import FACTS, INPUTS, WEIGHTS, KernelRegression
from hypersharp.backend.methods.learned_base import fit_base
from hypersharp.backend.models.kernel_features import (
    TABLE_UNIT,
    TRAINED_ORIENTATIONS,
    KernelConfig,
    KernelFeatures,
    joined,
)
from hypersharp.backend.models.pretrained import from_pretrained
from hypersharp.backend.training.kernel import (
    CONFIG,
    FEW_RATIOS,
    FEW_SIDES,
    FewPixelsStream,
    FewPixelsTrainer,
    KernelStream,
    KernelTrainer,
    kernel_gain,
    make_kernel_example,
)
from hypersharp.backend.training.pairs import Dice, PairSettings, draw_pair
from hypersharp.backend.training.trainer import TrainSettings
from hypersharp.backend.weights import SHIPPED

PAIRS = PairSettings(ratios=(2, 4), side=48, noise=0.3)
TINY = KernelConfig(INPUTS, len(TERMS), FACTS, width=6, features=4, dilations=(1, 1))
SETTINGS = TrainSettings(steps=6, examples=2, validate_every=3, mixed=False)


def tiny(seed=0):
    torch.manual_seed(seed)
    return KernelFeatures(TINY)


def example(cubes, seed=3, **changes):
    settings = dataclasses.replace(PAIRS, ratios=(4,), **changes)
    pair = draw_pair(cubes[0], settings, torch.Generator().manual_seed(seed))
    return pair, make_kernel_example(pair, 3, Dice(torch.Generator().manual_seed(1)), tiny())


def test_an_example_is_judged_as_the_image_is(cubes):
    """The gain on a block is the rise of PSNR over the closed form of the image that the regression makes."""
    pair, made = example(cubes, shift=0.0)
    model = tiny().eval()
    method, subspace, statistics = fit_base(pair.scene, Control())
    kernel = KernelRegression(method, subspace, statistics, model)
    kernel.fit(pair.scene, Control())
    assert made.block.valid.numel() == 144  # the scene is one block
    tile = pair.scene.tile((0, 48), (0, 48), method.halo)
    image = method.fuse(tile)
    change = kernel.coefficients(tile, 3) - subspace.coefficients(image)[:3]
    found = image + torch.einsum("bk,kyx->byx", subspace.basis, change)
    truth = pair.truth[:, made.rows, made.cols]
    before, after = ((x[:, made.rows, made.cols] - truth).square().mean(dim=1) for x in (image, found))
    with torch.no_grad():
        gain = float(kernel_gain(model.eval(), made))
    assert gain == pytest.approx(float(10 * torch.log10(before / after).mean()), abs=0.02)


def test_the_closed_form_itself_gains_nothing(cubes, monkeypatch):
    _, made = example(cubes)
    own = made.block.estimate[:, made.rows, made.cols]
    monkeypatch.setattr("hypersharp.backend.training.kernel.regress", lambda *_: own)
    assert float(kernel_gain(tiny(), made)) == pytest.approx(0.0, abs=1e-5)
    monkeypatch.setattr("hypersharp.backend.training.kernel.regress", lambda *_: None)
    assert float(kernel_gain(tiny(), made)) == 0.0


def test_it_learns(cubes):
    stream = KernelStream(cubes[:3], PAIRS, 3, 5, window=6, renew=1000)
    seen = [stream.example(i) for i in range(6)]
    torch.manual_seed(0)
    settings = dataclasses.replace(SETTINGS, steps=40, validate_every=40, learning_rate=4e-3, average=0.8)
    run = KernelTrainer(KernelFeatures(TINY), stream, settings, seen)
    before = run.gain()
    outcome = run.run(Control())
    assert outcome.gain_db > before + 0.1


def test_a_resumed_run_ends_the_same(cubes, tmp_path):
    def trainer():
        stream = KernelStream(cubes[:3], PAIRS, 3, 5, window=4, renew=1)
        seen = KernelStream(cubes[3:], PAIRS, 3, 6)
        return KernelTrainer(tiny(), stream, SETTINGS, [seen.example(0)])

    whole = trainer()
    whole.run(Control())
    first = trainer()
    for _ in range(3):
        first.train_step()
    first.validate()
    first.save(tmp_path / "state.safetensors")
    second = trainer()
    second.resume(tmp_path / "state.safetensors")
    second.run(Control())
    assert second.history == whole.history
    for key, value in whole.model.state_dict().items():
        assert torch.equal(second.model.state_dict()[key], value)


def test_the_stage_of_few_pixels_draws_small_scenes(cubes):
    stream = FewPixelsStream(cubes[:3], PAIRS, 3, 5)
    seen = {(e.block.valid.shape, e.block.valid.numel()) for e in (stream.example(i) for i in range(12))}
    sides = {side for shape, _ in seen for side in shape}
    assert sides <= set(range(FEW_SIDES[0], FEW_SIDES[1] + 1)) and len(sides) > 3
    ratios = {stream.pair_settings(Dice(torch.Generator().manual_seed(i))).ratios for i in range(60)}
    assert ratios == {(r,) for r in FEW_RATIOS}


def test_the_stage_of_few_pixels_changes_nothing_elsewhere(cubes):
    stream = FewPixelsStream(cubes[:3], PAIRS, 3, 5, window=4, renew=1000)
    few, whole = stream.example(0), KernelStream(cubes[:3], PAIRS, 3, 5).example(0)
    assert few.block.valid.sum() < 144 == whole.block.valid.sum()
    model = tiny().eval()
    with torch.no_grad():
        before = [float(kernel_gain(model, made)) for made in (few, whole)]
    table = model.table.detach().clone()
    settings = dataclasses.replace(SETTINGS, steps=8, learning_rate=0.05)
    trainer = FewPixelsTrainer(model, stream, settings, [few])
    trainer.run(Control())
    assert torch.equal(model.table[:-1], table[:-1]) and not torch.equal(model.table[-1], table[-1])
    model.eval()
    with torch.no_grad():
        after = [float(kernel_gain(model, made)) for made in (few, whole)]
    assert after[1] == pytest.approx(before[1], abs=1e-5) and abs(after[0] - before[0]) > 1e-3


def test_a_shifted_pair_is_judged_on_the_guides_ground(cubes):
    """What is regressed lies on the guide's grid: no resampling of the result, so no loss by it."""
    pair, made = example(cubes, seed=11, shift=1.0, noise=0.0)
    assert any(abs(s) > 0.1 for s in pair.facts["shift"])
    assert made.usable and float(kernel_gain(tiny(), made).detach()) > -3


def test_blocks_with_hardly_a_valid_pixel_are_not_used(cubes):
    cube = cubes[0]
    mask = torch.zeros_like(cube.mask)
    mask[:14, :14] = True
    holed = dataclasses.replace(cube, image=cube.image * mask, mask=mask)
    pair = draw_pair(holed, dataclasses.replace(PAIRS, ratios=(4,)), torch.Generator().manual_seed(0))
    with pytest.raises(ValueError, match="valid pixel"):
        make_kernel_example(pair, 3, Dice(torch.Generator().manual_seed(1)), tiny())


def test_weights_are_saved_and_come_back(tmp_path):
    model = tiny()
    model.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path, KernelFeatures)
    model.eval()
    image, facts = torch.randn(INPUTS, 9, 7), torch.randn(3, FACTS)
    assert torch.equal(loaded(image), model(image)) and loaded.reach == 2
    for a, b in zip(loaded.strengths(facts), model.strengths(facts)):
        assert torch.equal(a, b)


def test_kernels_do_not_depend_on_where_north_is():
    model = tiny()
    image = torch.randn(INPUTS, 9, 9)
    trained = len(TRAINED_ORIENTATIONS)
    assert model.train()(image).shape == (trained * TINY.features, 9, 9)
    model.eval()
    features = model(image)
    own = features.flatten(1)
    turned = torch.rot90(model(torch.rot90(image, 1, (1, 2))), -1, (1, 2))
    mirrored = model(image.flip(1)).flip(1)
    for other in (turned.flatten(1), mirrored.flatten(1)):
        assert torch.allclose(own.T @ own, other.T @ other, atol=1e-5)
    alone = model.train()(image).flatten(1)
    assert not torch.allclose(alone.T @ alone, own.T @ own, atol=1e-5)


def test_members_side_by_side_have_all_their_features():
    members = [tiny(seed).eval() for seed in (1, 2, 3)]
    whole = joined(members).eval()
    image, facts = torch.randn(INPUTS, 9, 8), torch.randn(3, FACTS)
    own = whole(image).flatten(1)
    kernel = own.T @ own
    kernels = [features.T @ features for features in (m(image).flatten(1) for m in members)]
    assert torch.allclose(kernel, sum(kernels) / 3, atol=1e-5)
    assert torch.allclose(whole._by_member(image[None]), whole.body(image[None]), atol=1e-6)
    for found, apart in zip(whole.strengths(facts), zip(*(m.strengths(facts) for m in members))):
        assert bool((found >= torch.stack(apart).amin(dim=0) - 1e-6).all())
        assert bool((found <= torch.stack(apart).amax(dim=0) + 1e-6).all())
    with pytest.raises(ValueError, match="one configuration"):
        joined([whole, *members])
    with pytest.raises(ValueError, match="one configuration"):
        joined([])


def test_regression_goes_as_far_from_the_closed_form_as_is_learned(cubes):
    _, made = example(cubes)
    model, found = tiny().eval(), {}
    for logit in (-20.0, 0.0, 20.0):
        with torch.no_grad():
            model.table[0, -1] = logit / TABLE_UNIT
            found[logit] = regress(model, made.block, made.rows, made.cols)
    own = made.block.estimate[:, made.rows, made.cols]
    assert torch.allclose(found[-20.0], own, atol=1e-5)
    assert float((found[20.0] - own).abs().max()) > 0.01
    assert torch.allclose(found[0.0], (own + found[20.0]) / 2, atol=1e-5)


def test_what_ships_was_not_trained_on_what_tables_measure_on():
    config = json.loads((SHIPPED / WEIGHTS / "config.json").read_text(encoding="utf-8"))
    data = config["training"]["data"]
    used = data["cubes"] + data["validated_on"]
    kept_out = ("aviris_abu_urban-4", "aviris_jasper_ridge", "aviris_moffett", "rosis_", "enmap_", "neon_")
    assert used and not [name for name in used if name.startswith(kept_out)]
    architecture = config["architecture"]
    assert (architecture["inputs"], architecture["terms"], architecture["facts"]) == (
        CONFIG.inputs,
        CONFIG.terms,
        CONFIG.facts,
    )
