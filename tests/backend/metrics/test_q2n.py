# SPDX-License-Identifier: GPL-2.0-or-later
"""Q2n: the algebra, the textbook's products pixel by pixel, and the known failures of other codes."""

import numpy as np
import pytest
import torch
from hypersharp.backend.metrics.hypercomplex import components, conjugate_product, sign_table
from hypersharp.backend.metrics.q2n import Q2n


def score(fused, reference, mask=None):
    metric = Q2n()
    metric.update(fused, reference, torch.ones(fused.shape[1:], dtype=torch.bool) if mask is None else mask)
    return metric.compute()


@pytest.mark.parametrize("bands, expected", [(1, 1), (2, 2), (3, 4), (4, 4), (5, 8), (200, 256), (426, 512)])
def test_components(bands, expected):
    assert components(bands) == expected


@pytest.mark.parametrize("size", [1, 2, 4, 8, 16, 32])
def test_signs_are_those_of_the_recursive_product(naive, size):
    unit = np.eye(size)
    table = sign_table(size).numpy()
    for i in range(size):
        products = naive.cayley_dickson(np.broadcast_to(unit[i], (size, size)), unit)
        for j in range(size):
            expected = np.zeros(size)
            expected[i ^ j] = table[i, j]
            np.testing.assert_array_equal(products[j], expected)


def test_quaternions_are_hamiltons_up_to_names():
    """i^2 = j^2 = k^2 = -1, and the imaginary units anticommute."""
    table = sign_table(4).numpy()
    assert (np.diag(table)[1:] == -1).all()
    assert all(table[i, j] == -table[j, i] for i in range(1, 4) for j in range(1, 4) if i != j)


@pytest.mark.parametrize("bands", [1, 3, 4, 7, 16])
def test_mean_product_by_gathering(naive, bands):
    rng = np.random.default_rng(bands)
    z, w = rng.normal(size=(2, 50, bands))
    size = components(bands)
    padded = [np.pad(v, ((0, 0), (0, size - bands))) for v in (z, w)]
    padded[1][:, 1:] *= -1
    expected = naive.cayley_dickson(*padded).mean(axis=0)
    ours = conjugate_product(torch.from_numpy(z.T @ w / 50)[None])[0]
    np.testing.assert_allclose(ours.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("scale", [1.0, 10000.0, 65535.0])
@pytest.mark.parametrize("bands", [1, 4, 9, 33])
def test_against_the_textbook(scene, naive, bands, scale):
    """Odd sizes: the blocks at the border are 32 x 13, 5 x 32 and 5 x 13 (65 pixels, just enough)."""
    fused, reference, mask = scene(bands=bands, rows=37, cols=45, scale=scale, seed=bands)
    expected = naive.q2n(fused.double().numpy(), reference.double().numpy(), mask.numpy())
    assert score(fused, reference).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("bands", [200, 426])
def test_against_the_textbook_of_hundreds_of_bands(scene, naive, bands):
    fused, reference, mask = scene(bands=bands, rows=16, cols=10)
    expected = naive.q2n(fused.double().numpy(), reference.double().numpy(), mask.numpy())
    assert score(fused, reference).value == pytest.approx(expected, rel=1e-9)


def test_masked_against_the_textbook(scene, naive, holes):
    fused, reference, _ = scene(bands=5, rows=70, cols=91)
    mask = holes(70, 91)
    expected = naive.q2n(fused.double().numpy(), reference.double().numpy(), mask.numpy())
    assert score(fused, reference, mask).value == pytest.approx(expected, rel=1e-9)


def test_one_band_is_the_quality_index_of_the_normalised_band(scene):
    """With one band the algebra is the reals: 2 cov / (1 + v) * 2 m / (1 + m^2)."""
    fused, reference, _ = scene(bands=1, rows=32, cols=32)
    f, r = fused.double().flatten(), reference.double().flatten()
    z = (f - r.mean()) / r.std() + 1
    cov = ((r - r.mean()) / r.std() * (z - z.mean())).sum() / 1023
    expected = abs(float(2 * cov / (1 + z.var()) * 2 * z.mean() / (1 + z.mean() ** 2)))
    assert score(fused, reference).value == pytest.approx(expected, rel=1e-9)


def test_reflectance_from_0_to_1_is_not_rounded(scene):
    """A toolbox rounds to integers first: 1.0 for a noisy image in reflectance."""
    fused, reference, _ = scene(bands=8, rows=64, cols=64, scale=1.0, noise=0.1)
    reflectance = score(fused, reference).value
    assert reflectance < 0.95
    assert reflectance == pytest.approx(score(fused * 10000, reference * 10000).value, rel=1e-5)


def test_blocks_of_an_image_that_is_not_square(scene):
    """A toolbox pads rows by the columns' deficit: here the right part must count by its own pixels only."""
    fused, reference, _ = scene(bands=4, rows=32, cols=80)
    parts = [score(fused[:, :, a:b], reference[:, :, a:b]).value for a, b in ((0, 32), (32, 64), (64, 80))]
    expected = (2 * parts[0] + 2 * parts[1] + parts[2]) / 5
    assert score(fused, reference).value == pytest.approx(expected, rel=1e-12)


def test_whole_blocks_are_the_plain_mean(scene):
    fused, reference, _ = scene(bands=4, rows=64, cols=64)
    parts = [
        score(fused[:, i : i + 32, j : j + 32], reference[:, i : i + 32, j : j + 32]).value
        for i in (0, 32)
        for j in (0, 32)
    ]
    assert score(fused, reference).value == pytest.approx(np.mean(parts), rel=1e-12)


def test_a_band_that_is_constant_in_the_reference_is_left_out(scene):
    """Its deviation is zero: dividing by a tiny number instead turns the whole block to 0."""
    fused, reference, _ = scene(bands=5, rows=32, cols=32)
    reference[4], fused[4] = 3000.0, 3000.5
    expected = score(fused[:4], reference[:4]).value
    assert score(fused, reference).value == pytest.approx(expected, rel=1e-9)


def test_too_few_pixels_have_a_reason(scene):
    fused, reference, _ = scene(rows=7, cols=9)
    assert score(fused, reference) == score(fused, reference)
    assert score(fused, reference).value is None
    assert "64 valid pixels" in score(fused, reference).reason
