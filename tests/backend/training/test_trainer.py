# SPDX-License-Identifier: GPL-2.0-or-later
import dataclasses

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.methods.kernel_regression import KERNEL_COMPONENTS, KernelRegression
from hypersharp.backend.methods.learned_base import fit_base, fit_closed_form
from hypersharp.backend.methods.learned_planes import (
    COARSE_PLANES,
    FINE_PLANES,
    KERNEL_FORM,
    LIMIT,
    OTHER_FORMS,
    OTHER_PLANES,
    OUTPUTS,
    PRIOR_PLANES,
    READ,
    Subspace,
    component_statistics,
    consistent,
    make_planes,
    nonlinear_share,
    read_output,
)
from hypersharp.backend.models.mbfn import MBFNConfig
from hypersharp.backend.registry import load_method
from hypersharp.backend.training.adapt import OneScene
from hypersharp.backend.training.examples import (
    ExampleStream,
    correction_in_bands,
    crop_example,
    make_example,
    psnr_gain,
)
from hypersharp.backend.training.pairs import Dice, PairSettings, draw_pair
from hypersharp.backend.training.presets import PRESETS, build
from hypersharp.backend.training.trainer import Trainer, TrainSettings

TINY = MBFNConfig(
    COARSE_PLANES, FINE_PLANES, None, OUTPUTS, width=4, growth=2, blocks=(1, 1, 1, 1), dense=1,
    attention=4, heads=1, window=5,
)  # fmt: skip
PAIRS = PairSettings(ratios=(2, 4), side=48, noise=0.3)
SETTINGS = TrainSettings(steps=12, side=24, validate_every=4, seed=3)


def coefficients_by(name, scene, subspace, count):
    """The first coefficients of what a form of `OTHER_FORMS` makes of a scene, by the method itself."""
    if name == KERNEL_FORM:
        kernel = KernelRegression(*fit_base(scene, Control()))
        kernel.fit(scene, Control())
        regressed = min(KERNEL_COMPONENTS, len(subspace.projector))
        return kernel.coefficients(scene.tile((0, scene.shape[0]), (0, scene.shape[1])), regressed)[:count]
    method_id, options = {"lmmse-local": ("lmmse", {"prior": 0.1})}.get(name, (name, {}))
    method = load_method(method_id)(options)
    method.fit(scene, Control())
    tile = scene.tile((0, scene.shape[0]), (0, scene.shape[1]), method.halo)
    return subspace.coefficients(method.fuse(tile))[:count]


def stream(cubes, seed=5):
    return ExampleStream(cubes, PAIRS, 3, seed, window=4, renew=3)


def trainer(cubes, settings=SETTINGS, student=False, validation=True):
    torch.manual_seed(0)
    net = build(TINY)
    small = build(dataclasses.replace(TINY, blocks=(0, 1, 1, 1), hs_groups=2)) if student else None
    held = [stream(cubes[3:], 9).example(i) for i in range(2)] if validation else []
    return Trainer(net, stream(cubes[:3]), settings, held, small)


def test_an_example_restates_the_closed_forms_error(cubes):
    pair = draw_pair(cubes[0], PAIRS, torch.Generator().manual_seed(1))
    example = make_example(pair, 3)
    assert example.usable
    assert example.coarse.shape[:2] == (3, COARSE_PLANES) and example.fine.shape[:2] == (3, FINE_PLANES)
    error = example.error.float()[:, example.mask]
    assert torch.allclose(error.square().mean(dim=1), torch.ones(len(error)), atol=1e-2)
    k, rows, cols = 3, *example.mask.shape
    nothing = torch.zeros(k, OUTPUTS, rows, cols)
    assert psnr_gain(nothing, example) == pytest.approx(0, abs=1e-6)


def test_the_ideal_correction_is_a_gain(cubes):
    example = dataclasses.replace(stream(cubes).example(0), trust=torch.zeros(3))
    units = torch.linalg.lstsq(example.basis, example.error.float().flatten(1)).solution
    output = torch.zeros(3, OUTPUTS, *example.mask.shape)
    output[:, -1] = units.view(3, *example.mask.shape) / 0.5
    assert psnr_gain(output, example) > 0.5
    output[:, -1] *= -1
    assert psnr_gain(output, example) < -0.5


def test_the_stream_depends_on_seed_and_index_alone(cubes):
    one, two = stream(cubes), stream(cubes)
    late = two.example(7)
    for i in range(8):
        early = one.example(i)
    assert torch.equal(early.fine, late.fine) and torch.equal(early.error, late.error)
    assert not torch.equal(stream(cubes, 6).example(7).fine[..., :8, :8], late.fine[..., :8, :8])


def test_a_crop_is_aligned(cubes):
    example = stream(cubes).example(1)
    crop = crop_example(example, 16, Dice(torch.Generator().manual_seed(0)), torch.device("cpu"))
    ratio = example.ratio
    assert crop.fine.shape[-1] == crop.coarse.shape[-1] * ratio == crop.error.shape[-1]
    places = example.coarse.float().unfold(2, crop.coarse.shape[2], 1).unfold(3, crop.coarse.shape[3], 1)
    hit = (places == crop.coarse[:, :, None, None]).flatten(4).all(-1).all(0).all(0).nonzero()[0]
    y, x = (hit * ratio).tolist()
    own = example.fine[..., y : y + crop.fine.shape[2], x : x + crop.fine.shape[3]].float()
    assert torch.equal(own, crop.fine)


def test_a_correction_keeps_what_the_sensor_sees():
    torch.manual_seed(0)
    correction = torch.randn(2, 32, 32)
    kept = consistent(correction, 4, 0.3, torch.tensor([1.0, 0.0]))
    seen = degrade(kept, 4, 0.3)[0]
    before = degrade(correction, 4, 0.3)[0]
    assert float(seen[0].norm() / before[0].norm()) < 0.5
    assert torch.equal(kept[1], correction[1])


def test_planes_do_not_depend_on_the_signs_of_the_basis(cubes):
    pair = draw_pair(cubes[2], dataclasses.replace(PAIRS, ratios=(4,)), torch.Generator().manual_seed(2))
    scene = pair.scene
    values, vectors = torch.linalg.eigh(torch.cov(scene.hs.image.flatten(1)))
    basis = vectors[:, -3:].flip(1)
    mean = scene.hs.image.mean(dim=(1, 2))
    made = []
    for signs in (torch.ones(3), torch.tensor([-1.0, 1.0, -1.0])):
        space = Subspace(basis * signs, (basis * signs).T, mean)
        facts = component_statistics(scene, space, Control())
        fine = space.coefficients(pair.truth)
        others = [fine * (0.9 + 0.1 * i) for i in range(len(OTHER_FORMS))]
        coarse = space.coefficients(scene.hs.image)
        planes = make_planes(fine, coarse, scene.guide.image, others, facts, 4, scene.mtf_hs)
        out = torch.randn(3, OUTPUTS, *fine.shape[1:], generator=torch.Generator().manual_seed(4))
        lifted = torch.einsum(
            "bk,kyx->byx", space.basis, read_output(out, planes.fine) * planes.unit[:, None, None]
        )
        made.append((planes, lifted))
    (a, lifted_a), (b, lifted_b) = made
    assert torch.allclose(a.fine, b.fine, atol=1e-3) and torch.allclose(a.coarse, b.coarse, atol=1e-3)
    assert torch.allclose(lifted_a, lifted_b, rtol=1e-3, atol=1e-2)
    assert float(a.fine[:, 1].std()) > 0.1


def halves_of(truth, noise, count=400):
    """Covariances of a coefficient, a guide and its logarithm in two halves of a made scene."""
    found = []
    for seed in (0, 1):
        generator = torch.Generator().manual_seed(seed)
        guide = torch.rand(count, generator=generator, dtype=torch.float64) + 0.1
        own = truth(guide) + noise * torch.randn(count, generator=generator, dtype=torch.float64)
        found.append(torch.cov(torch.stack([own, guide, guide.log()])))
    return found


def test_a_non_linear_regression_counts_where_both_halves_confirm_it():
    assert float(nonlinear_share(halves_of(torch.log, 0.01), 1, 1)) > 0.95
    one, other = halves_of(torch.log, 0.01)
    bent = other.clone()  # in the other half the same bend goes the other way
    bent[0, 2] = bent[2, 0] = 2 * bent[1, 0] * bent[2, 1] / bent[1, 1] - bent[2, 0]
    assert float(nonlinear_share([one, bent], 1, 1)) < 0.05


def test_few_pixels_get_a_linear_regression(cubes):
    """With fewer coarse pixels than one more step of coarsening needs, logarithms are not trusted."""
    scenes = []
    for side in (24, 48):
        cube = dataclasses.replace(
            cubes[0], image=cubes[0].image[:, :side, :side], mask=cubes[0].mask[:side, :side]
        )
        settings = PairSettings(ratios=(4,), side=side, noise=0.0, shift=0.0)
        scene = draw_pair(cube, settings, torch.Generator().manual_seed(2)).scene
        closed = fit_closed_form(scene, Control())
        scenes.append((scene, component_statistics(scene, closed.subspace, Control())))
    (small, facts), (_, others) = scenes
    m = small.guide.bands
    assert not facts.nonlinear[:, m:].any() and facts.nonlinear[:, :m].any()
    assert others.nonlinear[:, others.nonlinear.shape[1] // 2 :].any()


@pytest.mark.parametrize("index", range(len(OTHER_FORMS)))
def test_a_network_can_take_over_another_form(cubes, index):
    pair = draw_pair(cubes[2], dataclasses.replace(PAIRS, ratios=(4,)), torch.Generator().manual_seed(2))
    closed = fit_closed_form(pair.scene, Control())
    rows, cols = pair.scene.shape
    tile = pair.scene.tile((0, rows), (0, cols), closed.halo)
    estimate = closed.subspace.coefficients(closed.image(tile))[:3]
    facts = component_statistics(pair.scene, closed.subspace, Control())
    others = closed.other_coefficients(tile, closed.regressed(tile), 3)
    wanted = coefficients_by(OTHER_FORMS[index], pair.scene, closed.subspace, 3)
    planes = make_planes(
        estimate, closed.subspace.coefficients(tile.hs), tile.guide, others, facts, 4, closed.mtf_gain
    )
    output = torch.zeros(3, OUTPUTS, rows, cols)
    output[:, READ.index(OTHER_PLANES[index])] = 1.0
    found = estimate + read_output(output, planes.fine) * planes.unit[:, None, None]
    near = (planes.fine[:, OTHER_PLANES[index]].abs() < LIMIT - 1e-3).all(dim=0)
    assert float(near.float().mean()) > 0.5
    assert torch.allclose(found[:, near], wanted[:, near], rtol=1e-3, atol=1e-3 * float(estimate.std()))


def test_training_finds_a_rule_that_is_there(cubes):
    example = stream(cubes).example(0)
    rule = torch.zeros(3, OUTPUTS, *example.mask.shape)
    rule[:, 0] = 0.5
    example = dataclasses.replace(example, error=correction_in_bands(rule, example).half())
    settings = dataclasses.replace(
        SETTINGS, steps=150, validate_every=150, learning_rate=1e-2, average=0.9, side=48
    )
    torch.manual_seed(0)
    run = Trainer(build(TINY), OneScene(example), settings, [example])
    assert abs(run.gain()) < 0.5
    outcome = run.run(Control())
    assert outcome.gain_db > 3


@pytest.mark.parametrize("student", [False, True])
def test_resumed_runs_end_as_if_they_had_not_stopped(cubes, tmp_path, student):
    whole = trainer(cubes, student=student)
    whole.run(Control())
    first = trainer(cubes, student=student)
    stop = {"at": 7}
    outcome = first.run(Control(is_cancelled=lambda: first.step >= stop["at"]), tmp_path / "s", save_every=2)
    assert outcome.stopped == "cancelled" and outcome.steps == 7
    second = trainer(cubes, student=student)
    second.resume(tmp_path / "s")
    assert second.step == 7
    final = second.run(Control())
    assert final.stopped == "done" and final.history == whole.history
    for name in ("model", "student") if student else ("model",):
        for key, value in whole._nets[name].state_dict().items():
            assert torch.equal(value, second._nets[name].state_dict()[key]), key
            assert torch.equal(whole.best[name][key], second.best[name][key])


def test_resuming_something_else_is_refused(cubes, tmp_path):
    run = trainer(cubes)
    run.save(tmp_path / "s")
    with pytest.raises(HyperSharpError, match="other settings"):
        trainer(cubes, dataclasses.replace(SETTINGS, seed=4)).resume(tmp_path / "s")
    with pytest.raises(HyperSharpError, match="other networks"):
        trainer(cubes, student=True).resume(tmp_path / "s")
    data = (tmp_path / "s").read_bytes()
    (tmp_path / "s").write_bytes(data[: len(data) // 2])
    with pytest.raises(HyperSharpError, match="cannot resume"):
        trainer(cubes).resume(tmp_path / "s")


def test_early_stopping_keeps_the_best(cubes):
    run = trainer(cubes, dataclasses.replace(SETTINGS, steps=40, validate_every=2, patience=2))
    gains = iter([0.1, 0.4, 0.3, 0.2, 0.9])
    run.gain = lambda name="model": next(gains)
    outcome = run.run(Control())
    assert outcome.stopped == "early" and outcome.steps == 8
    assert outcome.best_step == 4 and outcome.gain_db == 0.4


@pytest.mark.parametrize(
    "error",
    [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] can't allocate memory")],
)
def test_crops_shrink_when_memory_runs_out(cubes, tmp_path, error):
    run = trainer(cubes, validation=False)
    real, sides = run._loss, []

    def loss(crop):
        sides.append(crop.fine.shape[-1])
        if crop.fine.shape[-1] > 20:
            raise error
        return real(crop)

    run._loss = loss
    heard = Control()
    outcome = run.run(heard, tmp_path / "s", save_every=2)
    assert outcome.stopped == "done" and outcome.steps == SETTINGS.steps
    assert sides[0] > 20 and max(sides[1:]) <= 20
    assert heard.warnings == ["memory ran out: training goes on with crops of 16 pixels, not 24"]
    again = trainer(cubes, validation=False)
    again.resume(tmp_path / "s")
    assert again.side == run.side == 16


def test_memory_that_never_suffices_ends_the_training(cubes):
    run = trainer(cubes, validation=False)

    def loss(crop):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    run._loss = loss
    with pytest.raises(torch.cuda.OutOfMemoryError):
        run.run(Control())
    run._loss = lambda crop: (_ for _ in ()).throw(RuntimeError("shapes do not fit"))
    side = run.side
    with pytest.raises(RuntimeError, match="shapes"):
        run.run(Control())
    assert run.side == side


def test_a_loss_that_is_no_number_is_an_error(cubes):
    run = trainer(cubes, validation=False)
    run.model.last.weight.data.fill_(float("nan"))
    with pytest.raises(HyperSharpError, match="diverged at step 0"):
        run.run(Control())


def test_students_gradient_does_not_reach_the_teacher(cubes):
    alone, pair = trainer(cubes), trainer(cubes, student=True)
    for _ in range(3):
        alone.train_step()
        pair.train_step()
    for key, value in alone.model.state_dict().items():
        assert torch.allclose(value, pair.model.state_dict()[key], atol=1e-6), key


def test_presets_are_compact_and_begin_at_the_closed_form(cubes):
    example = stream(cubes).example(0)
    for preset in PRESETS.values():
        for config in (preset.config, preset.student):
            if config is None:
                continue
            torch.manual_seed(0)
            net = build(config)
            assert net.parameter_count() < 400_000
            with torch.no_grad():
                prior = example.fine[:, :PRIOR_PLANES] if preset.prior else None
                planes = [x.float() for x in (example.coarse, example.fine, prior) if x is not None]
                out = net(*planes)[0]
            assert abs(psnr_gain(out, dataclasses.replace(example, prior=prior))) < 0.1
