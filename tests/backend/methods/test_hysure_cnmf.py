# SPDX-License-Identifier: GPL-2.0-or-later
"""HySure against an independent minimiser of its paper's objective; CNMF against its update rules in plain numpy."""

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import Cancelled
from hypersharp.backend.methods.cnmf import SUM_WEIGHT, multiply, successive_projections
from hypersharp.backend.methods.hysure import divergence, gradient
from scipy.optimize import minimize


def psnr(fused, truth, border=8):
    cut = (slice(None), slice(border, -border), slice(border, -border))
    mse = ((fused[cut] - truth[cut]) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(truth[cut].max(axis=(1, 2)) ** 2 / mse)).mean())


def noisy_pair(plain, guide_bands, level=0.05):
    pair = plain.make_pair(bands=9, coarse=9, ratio=3, guide_bands=guide_bands, width=8)
    rng = np.random.default_rng(0)
    pair.hs = pair.hs + level * pair.hs.std() * rng.normal(size=pair.hs.shape)
    pair.guide = pair.guide + 0.02 * pair.guide.std() * rng.normal(size=pair.guide.shape)
    return pair


def slopes(x):
    down, right = np.zeros_like(x), np.zeros_like(x)
    down[:, :-1] = x[:, 1:] - x[:, :-1]
    right[:, :, :-1] = x[:, :, 1:] - x[:, :, :-1]
    return down, right


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_hysure_minimises_its_objective(plain, guide_bands):
    """Simoes et al. 2015, eq. 5, in the method's own basis; a quasi-Newton method finds as little."""
    pair = noisy_pair(plain, guide_bands)
    scene = plain.scene(pair.hs, pair.guide, 3)
    engine = plain.fuse("hysure", pair.hs, pair.guide, 3, register=False, iterations=300, weight=10.0).engine
    block = engine.block(scene.tile((0, 27), (0, 24), engine.halo))
    solved = engine.solve(block).numpy().astype(float)
    inward = engine.inward.numpy()
    z = np.einsum("jk,krc->jrc", inward, block.target.numpy().astype(float))
    g = block.guide.numpy().astype(float)
    noise, view, guide_noise = engine.noise.numpy(), engine.view.numpy(), engine.guide_noise.numpy()
    weight = 10.0 / engine.mean_gradient
    shape = solved.shape
    fine = np.eye(27 * 24).reshape(-1, 27, 24)
    down = plain.degrade(fine, 3).reshape(27 * 24, -1).T

    def objective(flat, smooth):
        y = flat.reshape(shape)
        left = y.reshape(shape[0], -1) @ down.T - z.reshape(shape[0], -1)
        seen = np.einsum("mk,krc->mrc", view, y) - g
        steps = slopes(y)
        size = np.sqrt(sum((s**2).sum(axis=0) for s in steps) + smooth**2)
        value = (left**2 / noise[:, None]).sum() / 2 + (seen**2 / guide_noise[:, None, None]).sum() / 2
        slope = ((left / noise[:, None]) @ down).reshape(shape)
        slope += np.einsum("mk,mrc->krc", view, seen / guide_noise[:, None, None])
        a, b = steps[0] / size, steps[1] / size
        adjoint = np.zeros(shape)
        adjoint[:, :-1] -= a[:, :-1]
        adjoint[:, 1:] += a[:, :-1]
        adjoint[:, :, :-1] -= b[:, :, :-1]
        adjoint[:, :, 1:] += b[:, :, :-1]
        return value + weight * size.sum(), (slope + weight * adjoint).reshape(-1)

    start = np.einsum("jk,krc->jrc", inward, block.start.numpy().astype(float))
    best = start.reshape(-1)
    for smooth in (0.3, 0.03, 0.003):
        smooth = smooth * engine.mean_gradient
        best = minimize(objective, best, (smooth,), "L-BFGS-B", jac=True, options={"maxiter": 800}).x
    reached = objective(np.einsum("jk,krc->jrc", inward, solved).reshape(-1), 0.0)[0]
    least, first = objective(best, 0.0)[0], objective(start.reshape(-1), 0.0)[0]
    assert least < 0.5 * first
    assert reached < 1.01 * least
    distance = np.abs(np.einsum("jk,krc->jrc", inward, solved).reshape(-1) - best).mean()
    assert distance < 0.1 * np.abs(best - start.reshape(-1)).mean()


def test_divergence_is_the_adjoint_of_the_gradient():
    rng = np.random.default_rng(0)
    x, a, b = (torch.as_tensor(rng.normal(size=(3, 7, 9))) for _ in range(3))
    down, right = gradient(x)
    assert float((down * a).sum() + (right * b).sum()) == pytest.approx(
        float((x * divergence(a, b, torch.zeros_like(x))).sum())
    )


def test_more_weight_means_less_variation(plain):
    pair = plain.make_pair(bands=20, coarse=32, guide_bands=1)
    noisy = pair.hs + 0.1 * pair.hs.std() * np.random.default_rng(1).normal(size=pair.hs.shape)
    smooth, rough = (plain.fuse("hysure", noisy, pair.guide, 4, weight=w).image for w in (30.0, 1e-3))
    assert np.abs(np.diff(smooth, axis=2)).mean() < 0.95 * np.abs(np.diff(rough, axis=2)).mean()


@pytest.mark.parametrize("method", ["hysure", "cnmf"])
def test_cancel_stops_a_tile(plain, method):
    pair = plain.make_pair()
    scene = plain.scene(pair.hs, pair.guide, 4)
    stop = []
    control = Control(is_cancelled=lambda: bool(stop))
    engine = type(plain.fuse(method, pair.hs, pair.guide, 4).engine)()
    engine.fit(scene, control)
    stop.append(True)
    with pytest.raises(Cancelled):
        engine.fuse(scene.tile((0, 96), (0, 96), engine.halo))


@pytest.mark.parametrize("method", ["hysure", "cnmf"])
def test_degrades_to_the_hs_image(plain, method):
    pair = plain.make_pair(bands=12, coarse=32, guide_bands=3)
    fused = plain.fuse(method, pair.hs, pair.guide, 4).image.astype(float)
    left = plain.degrade(fused, 4) - pair.hs
    control = plain.degrade(plain.upsample(pair.hs, 4), 4) - pair.hs
    assert np.sqrt((left**2).mean()) < 0.03 * np.sqrt((control**2).mean())


def test_hysure_converges_beside_gaps_of_both_images(plain):
    """A wide PSF looks into a gap from all around: more iterations must not carry the result away."""
    pair = plain.make_pair(bands=12, coarse=32, guide_bands=3)
    hs = degrade(torch.from_numpy(pair.truth).float(), 4, 0.12)[0].numpy()
    mask = np.ones(hs.shape[1:], bool)
    mask[8:20, 10:24] = False
    mask[:, 30:] = False
    seen = mask.repeat(4, 0).repeat(4, 1)
    errors = []
    for iterations in (25, 200):
        fused = plain.fuse(
            "hysure", hs * mask, pair.guide * seen, 4, hs_mask=mask, guide_mask=seen, iterations=iterations
        )
        assert fused.engine.registration.mtf_gain < 0.2
        errors.append(np.sqrt(((fused.image - pair.truth)[:, seen] ** 2).mean()))
    assert errors[1] < 1.1 * errors[0] < 0.2 * pair.truth.std()


@pytest.mark.parametrize(("method", "guide_bands"), [("hysure", 1), ("hysure", 4), ("cnmf", 1)])
def test_better_than_gsa_with_noise(plain, method, guide_bands):
    pair = plain.make_pair(bands=30, coarse=40, guide_bands=guide_bands)
    noisy = pair.hs + 0.05 * pair.hs.std() * np.random.default_rng(4).normal(size=pair.hs.shape)
    gsa = psnr(plain.fuse("gsa", noisy, pair.guide, 4).image, pair.truth)
    assert psnr(plain.fuse(method, noisy, pair.guide, 4).image, pair.truth) > gsa + 0.5


def test_cnmf_follows_its_update_rules(plain):
    """Yokoya et al. 2012, eqs. 6 and 8 with the sum-to-one row, by loops over iterations; then the residual."""
    pair = noisy_pair(plain, 3, level=0.01)
    result = plain.fuse("cnmf", pair.hs, pair.guide, 3, register=False, inner=40)
    engine, own = result.engine, result.engine.subspace
    encode, decode, mean = own.encode.numpy(), own.decode.numpy(), own.mean.numpy()[:, None]
    w, base = engine.endmembers.numpy().astype(float), engine.base.numpy()[:, None]
    unit = SUM_WEIGHT * engine.unit
    z = encode @ (pair.hs.reshape(9, -1) - mean)
    v = np.vstack([np.maximum(decode @ z + mean - base, 0), np.full(72, unit)])
    augmented = np.vstack([w, np.full(w.shape[1], unit)])
    h = np.full((w.shape[1], 72), 1 / w.shape[1])
    for _ in range(40):
        h = h * (augmented.T @ v) / (augmented.T @ augmented @ h)
    fine = plain.upsample(h.reshape(-1, 9, 8), 3).reshape(w.shape[1], -1).clip(1e-9)
    scale = engine.guide_scale.numpy()[:, None]
    g = np.maximum((pair.guide.reshape(3, -1) - engine.constant.numpy()[:, None]) * scale, 0)
    v = np.vstack([g, np.full(g.shape[1], unit)])
    augmented = np.vstack([scale * (engine.view.numpy() @ w), np.full(w.shape[1], unit)])
    for _ in range(40):
        fine = fine * (augmented.T @ v) / (augmented.T @ augmented @ fine)
    x = encode @ (w @ fine + base - mean)
    down = plain.degrade(np.eye(27 * 24).reshape(-1, 27, 24), 3).reshape(27 * 24, -1).T
    for k, strength in enumerate(engine.strength.numpy()):
        left = np.linalg.solve(down @ down.T + strength * np.eye(72), z[k] - down @ x[k])
        x[k] += down.T @ left
    outside = (own.residual.numpy() @ (pair.hs.reshape(9, -1) - mean)).reshape(9, 9, 8)
    expected = (decode @ x + mean).reshape(9, 27, 24) + plain.upsample(outside, 3)
    assert np.abs(result.image - expected).max() < 2e-3 * pair.truth.max()


def test_multiplicative_updates_never_raise_the_misfit():
    rng = np.random.default_rng(0)
    factors, values = torch.as_tensor(rng.uniform(size=(8, 4))), torch.as_tensor(rng.uniform(size=(8, 30)))
    start = torch.full((4, 30), 0.25, dtype=torch.float64)
    misfit = [
        float((values - factors @ multiply(factors, values, start, n, Control())).square().sum())
        for n in (0, 1, 2, 5, 20, 100)
    ]
    assert misfit == sorted(misfit, reverse=True)
    assert float(multiply(factors, values, start, 50, Control()).min()) >= 0


def test_pure_pixels_are_found():
    """Mixtures of four spectra with the pure ones among them: the projections pick exactly those."""
    rng = np.random.default_rng(0)
    pure = rng.uniform(0.1, 1, size=(20, 4))
    shares = rng.dirichlet(np.ones(4), size=200).T
    shares[:, [3, 50, 77, 120]] = np.eye(4)
    found = successive_projections(torch.as_tensor(pure @ shares), 6)
    assert found.shape == (20, 4)
    for spectrum in pure.T:
        assert np.abs(found.numpy() - spectrum[:, None]).max(axis=0).min() < 1e-9


def test_endmembers_are_never_negative(plain):
    pair = plain.make_pair(bands=12, coarse=24, guide_bands=2)
    engine = plain.fuse("cnmf", pair.hs - 900.0, pair.guide, 4).engine
    assert float(engine.endmembers.min()) >= 0
    assert float(engine.base.max()) <= 0 and float(engine.base.min()) < -100
