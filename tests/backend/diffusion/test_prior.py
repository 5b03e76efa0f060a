# SPDX-License-Identifier: GPL-2.0-or-later
import math
from dataclasses import replace

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import interpolate
from hypersharp.backend.diffusion.anchor import ErrorStatistics
from hypersharp.backend.diffusion.prior import PRESETS, STAGE, PriorSettings, finish, sample_prior
from hypersharp.backend.diffusion.problem import make_problem
from hypersharp.backend.diffusion.sampling import SamplerSettings, draw
from hypersharp.backend.diffusion.tiles import TiledNoise
from hypersharp.backend.errors import Cancelled, HyperSharpError
from hypersharp.backend.protocol import Progress

from .conftest import White, low_rank_cube, make_scene, tiny_unet

QUICK = PriorSettings(preset="quick")


def psnr(image, truth, border=4):
    inner = (slice(None), slice(border, -border), slice(border, -border))
    error = (image - truth)[inner].square().mean(dim=(1, 2))
    peak = truth.amax(dim=(1, 2))
    return float((10 * torch.log10(peak**2 / error)).mean())


def with_sampler(settings=QUICK, **changes):
    return replace(settings, sampler=replace(settings.sampler, **changes))


# ------------------------------------------------------------------ the model of the data


def test_the_truth_explains_the_pair(cube, scene):
    """With a cube of rank three the model is exact: both terms vanish at the truth, and only there."""
    problem = make_problem(scene, Control(), residual="none", register=False)
    truth = problem.low_rank.as_base(cube)
    at_truth = problem.terms.rms(truth.float())
    assert at_truth["hs"] < 2e-3 and at_truth["guide"] < 2e-2
    elsewhere = problem.terms.rms(problem.interpolated)
    assert elsewhere["hs"] > 20 * at_truth["hs"] and elsewhere["guide"] > 5 * at_truth["guide"]


def test_the_terms_are_the_published_norms(cube, scene):
    """In all bands, written out: Y - D B (offset + E A + R), P - rho (...), each band over its deviation."""
    problem = make_problem(scene, Control(), rank=2, register=False)
    base = torch.rand(2, *scene.shape, generator=torch.Generator().manual_seed(0))
    hs, _ = scene.hs.read((0, scene.hs.rows), (0, scene.hs.cols))
    low_rank = problem.low_rank
    explained = torch.einsum("bk,kyx->byx", low_rank.loadings.float(), low_rank.as_base(hs))
    image = low_rank.offset.float()[:, None, None]
    image = image + interpolate(hs - low_rank.offset.float()[:, None, None] - explained, 4)
    image = image + torch.einsum("bk,kyx->byx", low_rank.loadings.float(), base)
    seen = torch.einsum("iy,byx,jx->bij", problem.terms.down[0], image, problem.terms.down[1])
    deviation = scene.statistics(0.3).hs_covariance.diagonal().sqrt().float()
    wanted = ((hs - seen) / deviation[:, None, None]).square().mean().sqrt()
    assert problem.terms.rms(base)["hs"] == pytest.approx(float(wanted), rel=1e-3)
    guide, _ = scene.guide.read((0, scene.shape[0]), (0, scene.shape[1]))
    model = problem.model
    centred = image - model.subspace.mean.float()[:, None, None]
    mixed = torch.einsum("kb,byx->kyx", model.response.float(), centred)
    left = guide - mixed - (model.guide_mean + model.guide_offset).float()[:, None, None]
    assert problem.terms.rms(base)["guide"] == pytest.approx(
        float(left.square().mean().sqrt() / guide.std()), rel=1e-3
    )


def test_the_closed_forms_residual_is_seen_by_both_sensors(scene):
    """X = closed form where the base is its own: then the terms are those of the closed form itself."""
    problem = make_problem(scene, Control(), rank=2, residual="lmmse", register=False)
    image = finish(scene, problem, problem.closed, {}, {"residual": "lmmse"}).image()
    method = problem.scene_model.closed
    rows, cols = scene.shape
    torch.testing.assert_close(
        image, method.fuse(scene.tile((0, rows), (0, cols), method.halo)), rtol=1e-5, atol=0.05
    )
    hs, _ = scene.hs.read((0, scene.hs.rows), (0, scene.hs.cols))
    seen = torch.einsum("iy,byx,jx->bij", problem.terms.down[0], image, problem.terms.down[1])
    deviation = scene.statistics(0.3).hs_covariance.diagonal().sqrt().float()
    wanted = ((hs - seen) / deviation[:, None, None]).square().mean().sqrt()
    assert problem.terms.rms(problem.closed)["hs"] == pytest.approx(float(wanted), rel=0.02)


def test_solve_finds_the_least_squares_image(scene):
    problem = make_problem(scene, Control(), register=False)
    start = problem.interpolated
    solved = problem.terms.solve(start, (400.0, 400.0), 1.0, 200).requires_grad_()
    hs, guide = problem.terms.norms(solved)
    loss = 400 * hs**2 + 400 * guide**2 + (solved - start).square().sum()
    (gradient,) = torch.autograd.grad(loss, solved)
    assert float(gradient.abs().max()) < 0.05
    assert problem.terms.rms(solved.detach())["guide"] < 0.1 * problem.terms.rms(start)["guide"]


def test_a_shifted_guide_and_another_blur_are_found():
    cube = low_rank_cube(rows=96, cols=96)
    truth, moved = cube[:, :, :-4], cube[:, :, 2:-2]
    hs = make_scene(truth).hs
    guide = make_scene(moved).guide
    scene = type(make_scene(truth))(hs, guide, 4, 0.3, 0.3)
    problem = make_problem(scene, Control())
    assert problem.facts["guide_shift_pixels"][1] == pytest.approx(-2.0, abs=0.2)
    assert problem.back is not None and make_problem(scene, Control(), frame="hs").back is None


# ------------------------------------------------------------------ guided sampling


@pytest.mark.parametrize("guidance", ["gradient", "solve"])
@pytest.mark.parametrize("guide_bands", [1, 3])
def test_both_terms_go_down_and_end_low(cube, guidance, guide_bands):
    response = torch.zeros(guide_bands, 12)
    for k in range(guide_bands):
        response[k, k * 4 : k * 4 + 4 if guide_bands > 1 else 12] = 0.25
    scene = make_scene(cube, response=response)
    prior = sample_prior(scene, with_sampler(guidance=guidance, steps=20), Control(), White(0.15))
    for name, values in prior.curves.items():
        assert len(values) == PRESETS["quick"] + 1
        assert values[-1] < 0.2 * values[0], name
        thirds = [sum(v) / len(v) for v in (values[:4], values[4:8], values[8:])]
        # Near the end a term may rise by rounding of what is left: one hundredth of where it began.
        least = 0.01 * values[0]
        assert thirds[0] > thirds[1] - least and thirds[1] > thirds[2] - least, name
        assert max(values[1:]) < values[0], name


def test_the_published_guidance_works_with_its_own_steps(cube):
    scene = make_scene(cube)
    settings = replace(QUICK, steps=200, sampler=SamplerSettings(guidance="published", sampler="ddpm"))
    prior = sample_prior(scene, settings, Control(), White(0.15))
    assert all(v[-1] < 0.35 * v[0] for v in prior.curves.values())


@pytest.mark.parametrize("terms, low, high", [(("hs",), "hs", "guide"), (("guide",), "guide", "hs")])
def test_each_term_can_guide_alone(scene, terms, low, high):
    plain = replace(QUICK, residual="itp")
    prior = sample_prior(scene, with_sampler(plain, terms=terms), Control(), White(0.15))
    free = sample_prior(scene, with_sampler(plain, terms=()), Control(), White(0.15))
    assert prior.curves[low][-1] < 0.2 * free.curves[low][-1]
    assert prior.curves[high][-1] > 2 * prior.curves[low][-1]


def test_three_guide_bands_and_rank_three_determine_the_image(cube):
    """As many equations as unknowns: the prior has nothing left to invent."""
    response = torch.softmax(3 * torch.randn(3, 12, generator=torch.Generator().manual_seed(1)), dim=1)
    scene = make_scene(cube, response=response)
    settings = with_sampler(noise=(0.003, 0.003), solve_iterations=60, guidance="solve")
    prior = sample_prior(scene, replace(settings, steps=20), Control(), White(0.15))
    assert psnr(prior.image(), cube) > 50


@pytest.mark.parametrize("guidance", ["gradient", "solve"])
def test_the_same_seed_gives_the_same_image(scene, guidance):
    settings = with_sampler(guidance=guidance, churn=1.0)
    first, second, other = (
        sample_prior(scene, replace(settings, seed=s), Control(), tiny_unet().requires_grad_(False))
        for s in (4, 4, 5)
    )
    assert torch.equal(first.base, second.base) and first.curves == second.curves
    assert not torch.equal(first.base, other.base)


def test_tiled_equals_untiled_but_for_blending():
    cube = low_rank_cube(rows=96, cols=96)
    scene = make_scene(cube)
    net = tiny_unet(2).requires_grad_(False)
    whole = sample_prior(scene, replace(QUICK, side=512), Control(), net)
    tiled = sample_prior(scene, replace(QUICK, side=48, overlap=16), Control(), net)
    spread = whole.base.std()
    assert float((whole.base - tiled.base).square().mean().sqrt()) < 0.25 * float(spread)
    step = (tiled.base - whole.base).diff(dim=2).abs().mean(dim=(0, 1))
    for border in (24, 48, 72):  # tiles begin at 0, 24 and 48
        assert float(step[border - 1 : border + 1].mean()) < 2.0 * float(step.mean()) + 1e-6


@pytest.mark.parametrize("rank", [1, 2, 3, 4, 6, 7])
def test_any_rank(rank):
    scene = make_scene(low_rank_cube(rank=5))
    prior = sample_prior(scene, replace(QUICK, rank=rank), Control(), tiny_unet().requires_grad_(False))
    assert prior.base.shape == (rank, *scene.shape) and prior.loadings.shape == (12, rank)
    assert bool(torch.isfinite(prior.image()).all()) and prior.curves["hs"][-1] < prior.curves["hs"][0]


@pytest.mark.parametrize(
    "start, residual", [("interpolated", "itp"), ("lmmse", "itp"), ("lmmse", "lmmse"), ("noise", "none")]
)
def test_starts_and_residuals(cube, scene, start, residual):
    prior = sample_prior(scene, replace(QUICK, start=start, residual=residual), Control(), White(0.15))
    assert prior.facts["start"] == start and prior.facts["residual"] == residual
    assert prior.facts["steps"] == 10
    first = prior.facts["first_signal_share"]
    assert first == pytest.approx(0.001) if start == "noise" else first >= QUICK.signal - 1e-3
    rows, cols = scene.shape
    whole = prior.image()
    part = prior.image((5, 30), (11, 40))
    torch.testing.assert_close(part, whole[:, 5:30, 11:40], rtol=1e-4, atol=0.05)
    assert whole.shape == (12, rows, cols)
    assert psnr(prior.refine(cube, (0, rows), (0, cols)), cube) >= psnr(whole, cube) - 0.5


def test_nodata_does_no_harm(cube):
    mask = torch.ones(cube.shape[1:], dtype=torch.bool)
    mask[:9, :13] = False
    holed = torch.where(mask, cube, torch.tensor(-9999.0))
    clean = sample_prior(make_scene(cube), QUICK, Control(), White(0.15))
    prior = sample_prior(make_scene(holed, mask=mask), QUICK, Control(), White(0.15))
    assert bool(torch.isfinite(prior.image()).all())
    far = (slice(None), slice(20, None), slice(20, None))
    spread = float(clean.image()[far].std())
    assert float((prior.image()[far] - clean.image()[far]).square().mean().sqrt()) < 0.3 * spread
    assert prior.curves["hs"][-1] < 0.2 * prior.curves["hs"][0]


def test_progress_and_cancel(scene):
    seen = []
    sample_prior(scene, QUICK, Control(seen.append), White())
    steps = [m for m in seen if isinstance(m, Progress) and m.stage == STAGE]
    assert steps[-1].done == steps[-1].total == PRESETS["quick"]
    net = White()
    control = Control(None, lambda: net.calls >= 3)
    with pytest.raises(Cancelled):
        sample_prior(scene, QUICK, control, net)
    assert net.calls == 3


def test_facts_say_what_was_done(scene):
    import json

    prior = sample_prior(scene, QUICK, Control(), White())
    json.dumps(prior.facts)
    assert prior.facts["bands"] == prior.bands and len(prior.bands) == 3
    assert prior.facts["data_terms"]["hs"]["end"] < prior.facts["data_terms"]["hs"]["start"]
    assert 0 <= prior.facts["unexplained_by_bands"] < 0.05


@pytest.mark.parametrize("wrong", [{"rule": "best"}, {"residual": "opt"}, {"rank": 30}])
def test_what_cannot_be_is_refused(scene, wrong):
    with pytest.raises(HyperSharpError) as caught:
        sample_prior(scene, replace(QUICK, **wrong), Control(), White())
    assert caught.value.hint


@pytest.mark.parametrize("wrong", [{"preset": "best"}, {"start": "gsa"}])
def test_unknown_settings_are_refused(wrong):
    with pytest.raises(HyperSharpError):
        PriorSettings(**wrong)


def test_the_result_lies_on_the_ground_that_was_asked_for():
    cube = low_rank_cube(rows=96, cols=96)
    truth, moved = cube[:, :, :-4], cube[:, :, 2:-2]
    scene = type(make_scene(truth))(make_scene(truth).hs, make_scene(moved).guide, 4, 0.3, 0.3)
    for residual in ("itp", "lmmse"):
        for frame, own, other in (("guide", moved, truth), ("hs", truth, moved)):
            settings = replace(QUICK, frame=frame, residual=residual)
            image = sample_prior(scene, settings, Control(), White(0.15)).image()
            assert psnr(image, own, 12) > psnr(image, other, 12) + 1, (frame, residual)


class Greedy(White):
    """Runs out of memory on tiles of more than 100 pixels a side."""

    def epsilon(self, x, alpha_bar):
        if max(x.shape[2:]) > 100:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return super().epsilon(x, alpha_bar)


def test_too_little_memory_halves_the_tiles():
    scene = make_scene(low_rank_cube(rows=160, cols=120))
    control = Control()
    prior = sample_prior(scene, replace(QUICK, steps=4, half=False), control, Greedy(0.15))
    assert any("tiles of 80" in w for w in control.warnings)
    whole = sample_prior(scene, replace(QUICK, steps=4, half=False), Control(), White(0.15))
    torch.testing.assert_close(prior.base, whole.base, rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
def test_cuda_gives_the_same_as_the_cpu(shipped):
    import copy

    cube = low_rank_cube()
    settings = replace(QUICK, half=False)
    one = sample_prior(make_scene(cube), settings, Control(), shipped)
    other = sample_prior(make_scene(cube, device="cuda"), settings, Control(), copy.deepcopy(shipped).cuda())
    torch.testing.assert_close(other.base.cpu(), one.base, rtol=1e-2, atol=5e-3)


# ------------------------------------------------------------------ the closed form beside the network


def test_the_anchor_pulls_towards_the_closed_form(cube, scene):
    distances = []
    for anchor in (0.0, 3.0, 1000.0):
        prior = sample_prior(scene, with_sampler(anchor=anchor, guidance="solve"), Control(), White(0.15))
        closed = make_problem(scene, Control(), residual="lmmse").closed
        distances.append(float((prior.base - closed).square().mean().sqrt()))
    assert distances[0] > distances[1] > distances[2] and distances[2] < 0.1 * distances[0]


def test_the_closed_forms_error_is_found_one_scale_down():
    """Of two bands, the guide says one exactly and nothing of the other: only the latter is uncertain."""
    generator = torch.Generator().manual_seed(8)
    image = torch.randn(2, 60, 60, generator=generator)
    mask = torch.ones(60, 60, dtype=torch.bool)

    def error_precision(*parts):
        errors = ErrorStatistics(4, 0.3)
        for part in parts:
            errors.add(*part)
        return errors.precision()

    precision = error_precision((image, 3.0 * image[:1] + 5, mask))
    variance = torch.linalg.inv(precision).diagonal()
    assert float(variance[0]) < 1e-3 and 0.5 < float(variance[1]) < 1.5
    tiny = error_precision((image[:, :6, :6], image[:1, :6, :6], mask[:6, :6]))
    assert bool(torch.isfinite(tiny).all()) and bool((torch.linalg.eigvalsh(tiny) > 0).all())


def test_what_is_known_of_a_part_changes_nothing(scene):
    """Terms less a known part of the base, at the rest, are the terms at the whole."""
    problem = make_problem(scene, Control(), residual="lmmse")
    generator = torch.Generator().manual_seed(9)
    base, part = (torch.rand(3, *scene.shape, generator=generator) for _ in range(2))
    whole, rest = problem.terms.rms(base), problem.terms.without(part).rms(base - part)
    assert rest == pytest.approx(whole, rel=1e-3)
    first = problem.terms.solve(base, (9.0, 9.0), 1.0, 50, 2.0)
    second = problem.terms.without(part).solve(base - part, (9.0, 9.0), 1.0, 50, 2.0) + part
    torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-3)


def test_one_bright_roof_does_not_change_the_rest(cube, shipped):
    bright = cube.clone()
    bright[:, 8:12, 8:12] *= 12.0
    far = (slice(None), slice(24, None), slice(20, None))
    plain, roof = (
        sample_prior(make_scene(c), PriorSettings(preset="quick"), Control(), shipped).image()[far]
        for c in (cube, bright)
    )
    truth = cube[far]
    before, after = ((i - truth).square().mean().sqrt() for i in (plain, roof))
    assert float(after) < 2.0 * float(before) + 0.02 * float(truth.std())


# ------------------------------------------------------------------ the network at work


def test_gradients_go_through_the_network(scene):
    """The published guidance differentiates the data terms by the noisy image, not by the clean estimate."""
    problem = make_problem(scene, Control(), register=False)
    net = tiny_unet(3).requires_grad_(False)
    x = torch.randn(3, *scene.shape, generator=torch.Generator().manual_seed(2)).requires_grad_()
    share = 0.8

    def loss(v):
        epsilon = TiledNoise(net)(v, share, Control())
        return sum(problem.terms.norms(((v - math.sqrt(1 - share) * epsilon) / share**0.5 + 1) / 2))

    (gradient,) = torch.autograd.grad(loss(x), x)
    direction = gradient / gradient.norm()
    with torch.no_grad():
        slope = float(loss(x + 0.05 * direction) - loss(x - 0.05 * direction)) / 0.1
    assert slope == pytest.approx(float(gradient.norm()), rel=0.05)


def test_half_precision_gives_nearly_the_same(scene, shipped):
    full, half = (sample_prior(scene, replace(QUICK, half=h), Control(), shipped) for h in (False, True))
    assert float((full.base - half.base).abs().mean()) < 0.1 * float(full.base.std())


def test_the_shipped_network_beats_interpolation_and_white_noise(cube, scene, shipped):
    """What it knows of imagery is worth something beside the data terms alone."""
    hs, _ = scene.hs.read((0, scene.hs.rows), (0, scene.hs.cols))
    prior = sample_prior(scene, PriorSettings(), Control(), shipped)
    assert psnr(prior.image(), cube) > psnr(interpolate(hs, 4), cube) + 3
    blind = sample_prior(scene, PriorSettings(), Control(), White(0.15))
    assert psnr(prior.image(), cube) > psnr(blind.image(), cube)


def test_unguided_samples_look_like_imagery(scene, shipped):
    """Neighbouring pixels and bands of an unguided sample go together, unlike noise's."""
    problem = make_problem(scene, Control(), register=False)
    sample = draw(TiledNoise(shipped), problem.terms, SamplerSettings(steps=20, terms=()), Control()).base
    left, right = sample[:, :, :-1].flatten(), sample[:, :, 1:].flatten()
    assert float(torch.corrcoef(torch.stack([left, right]))[0, 1]) > 0.7
