# SPDX-License-Identifier: GPL-2.0-or-later
"""The weights that networks start from: what they read, that they are found, kept and used."""

import dataclasses
import json

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.job import TrainJob
from hypersharp.backend.methods.learned_planes import (
    CONSTANT_PLANES,
    FINE_PLANES,
    OTHER_FORMS,
    OTHER_PLANES,
    OUTPUTS,
    READ,
    SMOOTHED_PLANES,
    SMOOTHING,
    START_SHAPE,
    SURROUNDINGS,
    TRUST_OF,
    TRUST_PLANES,
    start_facts,
    windowed_mean,
    with_start,
)
from hypersharp.backend.models.mbfn import MBFNConfig
from hypersharp.backend.models.pretrained import from_pretrained
from hypersharp.backend.training import run
from hypersharp.backend.training.adapt import OneScene
from hypersharp.backend.training.examples import ExampleStream, correction_in_bands, psnr_gain
from hypersharp.backend.training.pairs import PairSettings
from hypersharp.backend.training.presets import PRESETS, Preset, build
from hypersharp.backend.training.run import run_train
from hypersharp.backend.training.setup import taken_over
from hypersharp.backend.training.start import fit_start, normal_equations, solved
from hypersharp.backend.training.trainer import Trainer, TrainSettings

PAIRS = PairSettings(ratios=(2, 4), side=48, noise=0.3)
TINY = MBFNConfig(
    7, FINE_PLANES, None, OUTPUTS, width=4, growth=2, blocks=(1, 1, 1, 1), dense=1,
    attention=4, heads=1, window=5, start=START_SHAPE,
)  # fmt: skip


def examples(cubes, count=4):
    stream = ExampleStream(cubes, PAIRS, 3, 5)
    return [stream.example(i) for i in range(count)]


def nothing(example):
    return torch.zeros(len(example.fine), OUTPUTS, *example.fine.shape[2:])


def some_weights(seed=0, size=0.05):
    return size * torch.randn(START_SHAPE, generator=torch.Generator().manual_seed(seed))


def planted(example, weights):
    """The example as if the closed form were wrong by what these weights say."""
    example = dataclasses.replace(example, trust=torch.zeros(len(example.fine)))
    output = with_start(nothing(example), example.fine.float(), weights)
    return dataclasses.replace(example, error=correction_in_bands(output, example).half())


def test_the_smoothed_planes_are_means_of_the_others(cubes):
    fine = examples(cubes, 1)[0].fine.float()
    reach = SMOOTHING // 2
    for other, smoothed in zip(OTHER_PLANES, SMOOTHED_PLANES):
        window = fine[:, other, 10 - reach : 11 + reach, 20 - reach : 21 + reach]
        assert torch.allclose(fine[:, smoothed, 10, 20], window.mean(dim=(1, 2)), atol=5e-3)
        corner = fine[:, other, : reach + 1, : reach + 1].mean(dim=(1, 2))
        assert torch.allclose(fine[:, smoothed, 0, 0], corner, atol=5e-3)


def test_trust_falls_where_planes_are_large_and_only_there(cubes):
    example = examples(cubes, 1)[0]
    fine = example.fine.float()
    trust = fine[:, list(TRUST_PLANES)]
    assert float(trust.min()) >= 0 and float(trust.max()) <= 1
    reach = SURROUNDINGS // 2
    for i, plane in enumerate(READ[: len(TRUST_PLANES)]):
        window = fine[:, plane, 24 - reach : 25 + reach, 24 - reach : 25 + reach]
        expected = 1 / (1 + window.square().mean(dim=(1, 2)))
        assert torch.allclose(trust[:, i, 24, 24], expected, atol=5e-3)
    assert [READ[i] for i in TRUST_OF[: len(TRUST_PLANES)]] == list(READ[: len(TRUST_PLANES)])
    assert [READ[i] for i in TRUST_OF[len(TRUST_PLANES) :]] == list(OTHER_PLANES)


def test_windows_are_cut_at_the_borders():
    image = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0))
    mean = windowed_mean(image, 5)
    assert mean.shape == image.shape
    assert torch.allclose(mean[..., 4, 5], image[..., 2:7, 3:8].mean(dim=(2, 3)))
    assert torch.allclose(mean[..., 0, 10], image[..., :3, 8:].mean(dim=(2, 3)))


def test_weights_and_facts_say_the_same(cubes):
    fine = examples(cubes, 1)[0].fine.float()
    weights = some_weights()
    found = with_start(torch.zeros(3, OUTPUTS, *fine.shape[2:]), fine, weights)
    facts = start_facts(fine)
    assert facts.shape[:3] == (3, *START_SHAPE)
    expected = torch.einsum("jf,kjfyx->kjyx", weights, facts)
    assert torch.allclose(found[:, : len(READ)], expected, atol=1e-5)
    assert not found[:, len(READ) :].any()
    assert torch.equal(with_start(found, fine, None), found)


def test_a_rule_that_is_there_is_found_on_pairs_that_were_not_seen(cubes):
    rule = some_weights()
    seen = [planted(e, rule) for e in examples(cubes, 6)]
    start = fit_start(seen[:5])
    output = with_start(nothing(seen[5]), seen[5].fine.float(), start)
    assert psnr_gain(output, seen[5]) > 5
    assert psnr_gain(nothing(seen[5]), seen[5]) == pytest.approx(0, abs=1e-6)


def test_the_fit_is_the_least_squares_one(cubes):
    """Beside the fitted weights, in any direction, the error in the bands is larger."""
    example = examples(cubes, 1)[0]
    matrix, right = normal_equations(example)
    best = solved(matrix, right).double().flatten()

    def loss(w):
        return float(w @ matrix @ w - 2 * w @ right)

    assert loss(best) < 0
    for seed in range(5):
        step = some_weights(seed).double().flatten()
        assert loss(best + step) > loss(best) and loss(best - step) > loss(best)
    assert torch.allclose(matrix, matrix.T, rtol=1e-3, atol=1e-6)


def test_weights_that_are_not_fitted_are_0(cubes):
    keep = torch.ones(START_SHAPE, dtype=torch.bool)
    keep[READ.index(OTHER_PLANES[0])] = False
    keep[:, 1 + len(CONSTANT_PLANES) :] = False
    found = solved(*normal_equations(examples(cubes, 1)[0]), keep)
    assert not found[~keep].any() and found[keep].any()


def test_a_network_keeps_its_start(cubes, tmp_path):
    torch.manual_seed(0)
    net = build(TINY)
    net.start = some_weights()
    before = net.parameter_count()
    example = examples(cubes, 1)[0]
    run = Trainer(net, OneScene(example), TrainSettings(steps=3, side=24, validate_every=3), [example])
    run.validate()
    run.run(Control())
    run.load_best()
    assert [step for step, _ in run.history] == [0, 3]
    assert torch.equal(net.start, some_weights()) and net.parameter_count() == before
    net.save_pretrained(tmp_path)
    loaded = from_pretrained(tmp_path)
    assert torch.equal(loaded.start, net.start)
    alone = build(dataclasses.replace(TINY, start=()))
    assert alone.start is None and "start" not in alone.state_dict()


def test_what_was_best_before_the_first_step_is_kept(cubes):
    torch.manual_seed(0)
    net = build(TINY)
    example = examples(cubes, 1)[0]
    run = Trainer(net, OneScene(example), TrainSettings(steps=4, side=24, validate_every=2), [example])
    gains = iter([0.3, 0.1, 0.2])
    run.gain = lambda name="model": next(gains)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    run.validate()
    outcome = run.run(Control())
    assert outcome.best_step == 0 and outcome.gain_db == 0.3
    run.load_best()
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_training_begins_with_the_fit_and_goes_on_without_one(cube_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "s3rnet", Preset(TINY))
    monkeypatch.setattr(run, "START_EXAMPLES", 5)
    job = TrainJob(
        output=str(tmp_path / "w"), method="s3rnet", cubes=str(cube_folder), steps=4, validate_every=2, seed=2
    )
    result = run_train(job)
    history = result.metrics["training"]["outcome"]["history"]
    assert [step for step, _ in history] == [0, 2, 4]
    model = from_pretrained(tmp_path / "w")
    assert model.start.any()
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["training"]["data"]["start_examples"] == 5
    assert "Start:" in (tmp_path / "w" / "card.md").read_text()

    # Training further keeps the start of the weights that it goes on from, and fits none.
    def refuse(_):
        raise RuntimeError

    monkeypatch.setattr(run, "fit_start", refuse)
    more = dataclasses.replace(job, output=str(tmp_path / "more"), weights=str(tmp_path / "w"))
    assert "start_examples" not in run_train(more).metrics["training"]["data"]
    assert torch.equal(from_pretrained(tmp_path / "more").start, model.start)
    # Another network takes the start alone.
    monkeypatch.setitem(PRESETS, "s3rnet", Preset(dataclasses.replace(TINY, width=6)))
    other = dataclasses.replace(job, output=str(tmp_path / "other"), start_from=str(tmp_path / "w"))
    assert run_train(other).metrics["training"]["data"]["start_examples"] == 5
    assert torch.equal(from_pretrained(tmp_path / "other").start, model.start)
    plain = build(dataclasses.replace(TINY, start=()))
    plain.save_pretrained(tmp_path / "plain")
    with pytest.raises(HyperSharpError, match="no start that could be taken over"):
        run_train(dataclasses.replace(other, start_from=str(tmp_path / "plain")))
    for wrong in ({"weights": str(tmp_path / "w")}, {"cubes": None, "hs": "hs.tif", "guide": "pan.tif"}):
        with pytest.raises(HyperSharpError, match="a start is taken over for new weights"):
            run_train(dataclasses.replace(other, **wrong))


def test_a_resumed_run_has_its_start(cube_folder, tmp_path, monkeypatch):
    monkeypatch.setitem(PRESETS, "s3rnet", Preset(TINY))
    monkeypatch.setattr(run, "START_EXAMPLES", 5)
    monkeypatch.setattr(run, "VALIDATION_EXAMPLES", 1)
    job = TrainJob(
        output=str(tmp_path / "w"), method="s3rnet", cubes=str(cube_folder), steps=3, validate_every=1, seed=2
    )
    stopped = Control(is_cancelled=lambda: (tmp_path / "w" / "stop").exists())
    real = Trainer.validate

    def validate(self):
        if self.step:
            (tmp_path / "w" / "stop").touch()
        return real(self)

    monkeypatch.setattr(Trainer, "validate", validate)
    run_train(job, stopped)
    start = from_pretrained(tmp_path / "w").start
    assert start.any()
    (tmp_path / "w" / "stop").unlink()
    monkeypatch.setattr(Trainer, "validate", real)
    monkeypatch.setattr(run, "fit_start", None)
    result = run_train(dataclasses.replace(job, resume=True))
    assert result.metrics["training"]["outcome"]["steps"] == 3
    assert torch.equal(from_pretrained(tmp_path / "w").start, start)


def test_a_teacher_that_begins_anew_has_its_students_start():
    student, teacher, weights = build(TINY), build(TINY), build(TINY)
    weights.start = some_weights()
    assert taken_over(teacher, student, weights) is teacher
    assert torch.equal(student.start, weights.start) and torch.equal(teacher.start, weights.start)


def test_cubes_of_which_no_pair_can_be_drawn_are_refused_with_a_word(cube_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "VALIDATION_EXAMPLES", 0)

    def nothing(self, index):
        raise ValueError("no usable training pair could be drawn: flat")

    monkeypatch.setattr(ExampleStream, "example", nothing)
    with pytest.raises(HyperSharpError, match="cannot be trained on"):
        run_train(TrainJob(output=str(tmp_path / "w"), method="s3rnet", cubes=str(cube_folder), steps=2))


def test_all_forms_have_their_planes():
    assert len(SMOOTHED_PLANES) == len(OTHER_PLANES) == len(OTHER_FORMS)
    assert max(TRUST_PLANES) + 1 == FINE_PLANES
    for preset in PRESETS.values():
        assert preset.config.start == START_SHAPE
