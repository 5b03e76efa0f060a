# SPDX-License-Identifier: GPL-2.0-or-later
"""Sylvester, Bayes: the papers' systems written out in full and solved densely; the parts that they share."""

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.methods.subspace import fit_subspace
from hypersharp.backend.response_estimation import estimate_response, estimate_srf
from hypersharp.backend.scene import SceneStatistics


def psnr(fused, truth, border=8):
    cut = (slice(None), slice(border, -border), slice(border, -border))
    mse = ((fused[cut] - truth[cut]) ** 2).mean(axis=(1, 2))
    return float((10 * np.log10(truth[cut].max(axis=(1, 2)) ** 2 / mse)).mean())


def operators(plain, rows, cols, ratio):
    """D `[coarse, fine]` and U `[fine, coarse]` on flattened images, made by pushing every unit image through."""
    fine = np.eye(rows * ratio * cols * ratio).reshape(-1, rows * ratio, cols * ratio)
    coarse = np.eye(rows * cols).reshape(-1, rows, cols)
    down = plain.degrade(fine, ratio).reshape(len(fine), -1).T
    up = plain.upsample(coarse, ratio).reshape(len(coarse), -1).T
    return down, up


def learned(engine, *names):
    return [getattr(engine, name).numpy() for name in names]


def finish(plain, pair, engine, x):
    own = engine.subspace
    mean = own.mean.numpy()[:, None, None]
    outside = np.einsum("bs,src->brc", own.residual.numpy(), pair.hs - mean)
    inside = np.einsum("bk,krc->brc", own.decode.numpy(), x.reshape(own.rank, *pair.guide.shape[1:]))
    return mean + inside + plain.upsample(outside, pair.ratio)


def small_pair(plain, guide_bands, noise=0.01):
    pair = plain.make_pair(bands=9, coarse=9, ratio=3, guide_bands=guide_bands, width=8)
    pair.hs = pair.hs + noise * pair.hs.std() * np.random.default_rng(0).normal(size=pair.hs.shape)
    return pair


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_sylvester_solves_the_normal_equations(plain, guide_bands):
    """Wei et al. 2015, eq. 8: the gradient of the negative log posterior is zero. All unknowns at once."""
    pair = small_pair(plain, guide_bands)
    result = plain.fuse("sylvester", pair.hs, pair.guide, 3, register=False)
    own, engine = result.engine.subspace, result.engine
    down, up = operators(plain, 9, 8, 3)
    mixing, guide_noise, hs_noise, detail = learned(engine, "mixing", "guide_noise", "hs_noise", "detail")
    z = own.encode.numpy() @ (pair.hs.reshape(9, -1) - own.mean.numpy()[:, None])
    centre = (engine.guide_mean + engine.guide_offset).numpy()[:, None]
    g = pair.guide.reshape(guide_bands, -1) - centre
    prior = np.linalg.inv(detail)
    eye = np.eye(down.shape[1])
    system = np.kron(np.diag(1 / hs_noise), down.T @ down)
    system += np.kron(mixing.T @ np.diag(1 / guide_noise) @ mixing + prior, eye)
    right = np.diag(1 / hs_noise) @ z @ down + mixing.T @ np.diag(1 / guide_noise) @ g + prior @ (z @ up.T)
    x = np.linalg.solve(system, right.reshape(-1))
    expected = finish(plain, pair, engine, x)
    assert np.abs(result.image - expected).max() < 1e-4 * pair.truth.max()


@pytest.mark.parametrize("guide_bands", [1, 3])
def test_bayes_is_the_conditional_mean(plain, guide_bands):
    """Hardie et al. 2004: E[x | z, g], with the joint moments of the coarse images, in one dense formula."""
    pair = small_pair(plain, guide_bands)
    result = plain.fuse("bayes", pair.hs, pair.guide, 3, register=False)
    own, engine = result.engine.subspace, result.engine
    down, _ = operators(plain, 9, 8, 3)
    z = own.encode.numpy() @ (pair.hs.reshape(9, -1) - own.mean.numpy()[:, None])
    low = plain.degrade(pair.guide, 3).reshape(guide_bands, -1)
    g_mean = low.mean(axis=1)[:, None]
    noise = engine.hs_noise.numpy()
    czz, czg = z @ z.T / z.shape[1], z @ (low - g_mean).T / z.shape[1]
    gains = czg @ np.linalg.inv(np.cov(low, bias=True).reshape(guide_bands, -1))
    mu = gains @ (pair.guide.reshape(guide_bands, -1) - g_mean)
    given = czz - gains @ czg.T - np.diag(noise)
    floor = np.sqrt(1e-4 * czz.diagonal())
    values, vectors = np.linalg.eigh(given / np.outer(floor, floor))
    given = (vectors * np.maximum(values, 1)) @ vectors.T * np.outer(floor, floor)
    system = np.kron(given, down @ down.T) + np.kron(np.diag(noise), np.eye(len(down)))
    left = np.linalg.solve(system, (z - mu @ down.T).reshape(-1)).reshape(z.shape)
    expected = finish(plain, pair, engine, mu + given @ left @ down)
    assert np.abs(result.image - expected).max() < 1e-4 * pair.truth.max()


@pytest.mark.parametrize("guide_bands", [1, 4])
@pytest.mark.parametrize("method", ["sylvester", "bayes"])
def test_better_than_gsa_where_it_matters(plain, method, guide_bands):
    """With noise in the HS image."""
    pair = plain.make_pair(bands=30, coarse=40, guide_bands=guide_bands)
    noisy = pair.hs + 0.05 * pair.hs.std() * np.random.default_rng(4).normal(size=pair.hs.shape)
    gsa = psnr(plain.fuse("gsa", noisy, pair.guide, 4).image, pair.truth)
    assert psnr(plain.fuse(method, noisy, pair.guide, 4).image, pair.truth) > gsa + 1


@pytest.mark.parametrize("method", ["sylvester", "bayes"])
def test_degrades_to_the_hs_image(plain, method):
    """Noise-free HS image: the closed form leaves nothing to correct."""
    pair = plain.make_pair(bands=12, coarse=32, guide_bands=3)
    fused = plain.fuse(method, pair.hs, pair.guide, 4).image.astype(float)
    left = plain.degrade(fused, 4) - pair.hs
    control = plain.degrade(plain.upsample(pair.hs, 4), 4) - pair.hs
    assert np.sqrt((left**2).mean()) < 0.02 * np.sqrt((control**2).mean())


def statistics_of(hs, guide):
    joint = np.concatenate([hs, guide])
    return SceneStatistics(
        hs.shape[1],
        torch.as_tensor(joint.mean(axis=1)),
        torch.as_tensor(np.cov(joint, bias=True)),
        len(hs),
    )


def test_response_is_found():
    """Independent bands: the true non-negative weights and the offset come back."""
    rng = np.random.default_rng(0)
    hs = rng.gamma(3.0, 200.0, size=(12, 4000))
    weights = np.zeros((2, 12))
    weights[0, 2:6], weights[1, 5:11] = 0.25, [0.05, 0.1, 0.2, 0.3, 0.25, 0.1]
    response, offset = estimate_srf(statistics_of(hs, weights @ hs + np.array([[30.0], [-5.0]])))
    np.testing.assert_allclose(response.numpy(), weights, atol=1e-4)
    np.testing.assert_allclose(offset.numpy(), [30, -5], atol=0.5)


def test_response_is_never_negative_and_survives_dead_bands():
    rng = np.random.default_rng(1)
    hs = rng.normal(size=(5, 300)) * 100
    hs[3] = 7.0
    response, _ = estimate_srf(statistics_of(hs, (hs[:1] - hs[1:2])))
    assert float(response.min()) >= 0
    assert np.isfinite(response.numpy()).all()
    assert response[0, 1] == 0 and response[0, 0] > 0.5


@pytest.mark.parametrize("gain", [0.12, 0.3, 0.55])
@pytest.mark.parametrize("guide_bands", [1, 4])
def test_psf_is_found(plain, gain, guide_bands):
    pair = plain.make_pair(bands=10, coarse=40, guide_bands=guide_bands)
    hs = plain.degrade(pair.truth, 4, gain)
    hs = hs + 0.01 * hs.std() * np.random.default_rng(0).normal(size=hs.shape)
    scene = plain.scene(hs, pair.guide, 4)
    found = estimate_response(scene, fit_subspace(scene.statistics(plain.mtf)), Control())
    assert found.mtf_gain == pytest.approx(gain, abs=0.03)
    assert max(abs(s) for s in found.shift) < 0.1
    assert found.unexplained <= found.nominal_unexplained


def test_nothing_is_estimated_from_a_handful_of_pixels(plain):
    pair = plain.make_pair(coarse=10)
    scene = plain.scene(pair.hs, pair.guide, 4)
    assert estimate_response(scene, fit_subspace(scene.statistics(plain.mtf)), Control()) is None
