"""The PSF, sampling and interpolation against closed forms."""

import math

import numpy as np
import pytest
import torch
from hypersharp.backend import degradation as d


@pytest.mark.parametrize("ratio", range(2, 11))
@pytest.mark.parametrize("gain", [0.15, 0.3, 0.45])
def test_the_psf_has_the_named_gain_at_nyquist(ratio, gain):
    """A cosine at the coarse Nyquist frequency comes through with the MTF's gain."""
    size = 40 * ratio
    # Sampled at coarse centres, a cosine of period 2 r with its crest on a centre alternates at +-gain.
    x = torch.arange(size, dtype=torch.float64)
    wave = torch.cos(math.pi * (x - (ratio - 1) / 2) / ratio)
    matrix = d.decimation_matrix((10, 30), d.fine_support((10, 30), ratio, size, gain), ratio, size, gain)
    start, stop = d.fine_support((10, 30), ratio, size, gain)
    low = matrix.double() @ wave[start:stop]
    # Truncating the Gaussian at 4 sigma changes its gain by less than 1e-3.
    np.testing.assert_allclose(low.abs().numpy(), gain, atol=1e-3)


@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6, 7, 10])
def test_sampling_is_centred(ratio):
    """A ramp keeps its values at coarse centres: no shift for odd or even ratios."""
    size = 30 * ratio
    ramp = torch.arange(size, dtype=torch.float32).expand(1, size, size).clone()
    for gain in (0.3, None):
        low, mask = d.degrade(ramp, ratio, gain)
        centres = torch.arange(30) * ratio + (ratio - 1) / 2
        assert mask.all()
        np.testing.assert_allclose(low[0, 15, 8:22], centres[8:22], rtol=0, atol=1e-3)


@pytest.mark.parametrize("ratio", [2, 3, 4, 6, 10])
def test_interpolation_is_exact_for_parabolas(ratio):
    """Cubic convolution with a = -1/2 reproduces second-degree polynomials (Keys 1981)."""
    y = torch.arange(20, dtype=torch.float64)
    coarse = (0.3 * y**2 - 2 * y + 1).float().expand(1, 20, 20).clone()
    fine = d.interpolate(coarse, ratio)
    x = (torch.arange(20 * ratio, dtype=torch.float64) + 0.5) / ratio - 0.5
    expected = 0.3 * x**2 - 2 * x + 1
    inner = slice(2 * ratio, -2 * ratio)
    np.testing.assert_allclose(fine[0, 10 * ratio, inner], expected[inner], rtol=0, atol=1e-3)


def test_operators_keep_constants():
    """Every operator's weights sum to one, borders included."""
    image = torch.full((2, 24, 30), 7.25)
    low, _ = d.degrade(image, 3, 0.3)
    torch.testing.assert_close(low, torch.full((2, 8, 10), 7.25))
    torch.testing.assert_close(d.interpolate(low, 3), image)
    smooth = d.smoothing_matrix((0, 24), (0, 24), 3, 24, 0.3)
    torch.testing.assert_close(smooth.sum(dim=1), torch.ones(24))


def test_windows_give_the_numbers_of_the_whole():
    """A matrix built for a window equals the same rows of the whole scene's matrix."""
    ratio, size, gain = 5, 200, 0.3
    whole = d.decimation_matrix((0, 40), (0, size), ratio, size, gain)
    support = d.fine_support((7, 12), ratio, size, gain)
    part = d.decimation_matrix((7, 12), support, ratio, size, gain)
    torch.testing.assert_close(part, whole[7:12, support[0] : support[1]], rtol=0, atol=0)
    up = d.interpolation_matrix((0, size), (0, 40), ratio, 40)
    need = d.coarse_support((33, 71), ratio, 40)
    torch.testing.assert_close(
        d.interpolation_matrix((33, 71), need, ratio, 40), up[33:71, need[0] : need[1]], rtol=0, atol=0
    )


def test_a_window_that_is_too_small_is_refused():
    with pytest.raises(ValueError, match="too small"):
        d.decimation_matrix((5, 6), (25, 30), 5, 100, 0.3)


def test_masked_pixels_do_not_leak():
    """Whatever stands under the mask, the result is the same, and equals the valid part's own mean."""
    image = torch.full((1, 20, 20), 3.0)
    mask = torch.ones(20, 20, dtype=torch.bool)
    mask[:, 11:] = False
    results = []
    for garbage in (0.0, -9999.0, 1e9):
        dirty = torch.where(mask, image, torch.tensor(garbage))
        low, valid = d.degrade(dirty, 4, 0.3, mask)
        results.append(torch.where(valid, low, torch.tensor(0.0)))
        assert valid[:, :2].all() and not valid[:, 4].any()
        # 1e-5: the normalised sum of float32 weights.
        np.testing.assert_allclose(low[0][valid], 3.0, rtol=1e-5)
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    torch.testing.assert_close(results[0], results[2], rtol=0, atol=0)


def test_fill_reaches_as_far_as_asked():
    image = torch.full((1, 9, 9), -5.0)
    mask = torch.zeros(9, 9, dtype=torch.bool)
    mask[4, 4] = True
    image[0, 4, 4] = 8.0
    filled = d.fill_invalid(image, mask, 2)
    assert (filled[0, 2:7, 2:7] == 8).all()
    assert (filled[0, :2] == 0).all()


@pytest.mark.parametrize("gain", [0.0, 1.0, -0.3])
def test_impossible_gains_are_refused(gain):
    with pytest.raises(ValueError, match="between 0 and 1"):
        d.gaussian_sigma(4, gain)
