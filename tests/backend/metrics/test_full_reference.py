# SPDX-License-Identifier: GPL-2.0-or-later
"""Full-reference indices against closed forms, textbook numpy, scikit-image, torchmetrics and sewar.

Tolerances: sums run in float64, so against float64 numpy of the same float32 input 1e-9 relative is rounding.
SAM and SSIM work in float32 (values scaled to about 1): 1e-5 relative.
"""

import math

import numpy as np
import pytest
import sewar
import torch
import torchmetrics.functional.image as tm
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.metrics import FULL_REFERENCE, FullReferenceSet
from hypersharp.backend.metrics.cc import CC
from hypersharp.backend.metrics.ergas import ERGAS
from hypersharp.backend.metrics.psnr import PSNR
from hypersharp.backend.metrics.q2n import Q2n
from hypersharp.backend.metrics.rmse import RMSE
from hypersharp.backend.metrics.sam import SAM
from hypersharp.backend.metrics.scc import SCC
from hypersharp.backend.metrics.ssim import SSIM
from hypersharp.backend.metrics.uiqi import UIQI
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

EXACT = 1e-9
SINGLE = 1e-5
SCALES = [1.0, 10000.0, 65535.0]
BANDS = [4, 31, 200, 426]


def score(metric, fused, reference, mask=None):
    mask = torch.ones(fused.shape[1:], dtype=torch.bool) if mask is None else mask
    metric.update(fused, reference, mask)
    return metric.compute()


def float64(*tensors):
    return [t.double().numpy() if t.is_floating_point() else t.numpy() for t in tensors]


# ---------------------------------------------------------------- closed forms


def test_identical_images_score_the_best_value(scene):
    _, reference, mask = scene()
    result = FullReferenceSet(4)
    result.update(reference, reference.clone(), mask)
    values = result.compute()
    for key, best in {
        "SAM": 0,
        "ERGAS": 0,
        "RMSE": 0,
        "CC": 1,
        "SSIM": 1,
        "UIQI": 1,
        "Q2n": 1,
        "SCC": 1,
    }.items():
        assert values[key].value == pytest.approx(best, abs=1e-12 if key != "SSIM" else 1e-6), key
    assert values["PSNR"].value is None and "unbounded" in values["PSNR"].reason


@pytest.mark.parametrize("scale", SCALES)
def test_a_constant_offset(scene, scale):
    _, reference, _ = scene(scale=scale)
    reference = reference.double()  # so that the offset is exact
    offset = 0.05 * scale
    assert score(RMSE(), reference + offset, reference).value == pytest.approx(offset, rel=1e-9)
    peaks = reference.amax(dim=(1, 2))
    expected = float((20 * torch.log10(peaks / offset)).mean())
    assert score(PSNR(), reference + offset, reference).value == pytest.approx(expected, rel=1e-9)
    assert score(CC(), reference + offset, reference).value == pytest.approx(1, abs=1e-12)
    assert score(SCC(), reference + offset, reference).value == pytest.approx(1, abs=1e-12)
    means = reference.mean(dim=(1, 2))
    expected = 25 * float(((offset / means) ** 2).mean().sqrt())
    assert score(ERGAS(4), reference + offset, reference).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("gain", [0.5, 1.25, 3.0])
def test_a_gain(scene, gain):
    _, reference, _ = scene(rows=64, cols=64)
    reference = reference.double()
    assert score(SAM(), gain * reference, reference).value == pytest.approx(0, abs=1e-5)
    assert score(CC(), gain * reference, reference).value == pytest.approx(1, abs=1e-12)
    expected = (2 * gain / (1 + gain**2)) ** 2
    assert score(UIQI(), gain * reference, reference).value == pytest.approx(expected, rel=1e-9)


def test_a_gain_in_q2n(scene):
    """Normalised by the reference, a gain g gives covariance g, spread 1 + g^2 and means 1 + (g - 1) m / s."""
    _, reference, _ = scene(bands=5, rows=32, cols=32)
    reference, gain = reference.double(), 1.3
    mean, std = reference.mean(dim=(1, 2)), reference.flatten(1).std(dim=1)
    # |sum of covariances e_i e_j*| of equal normalised images is the number of bands only for gain 1; for a
    # gain it is that times the gain, because z z* is real in every Cayley-Dickson algebra.
    fused_mean = float(((1 + (gain - 1) * mean / std) ** 2).sum())
    bias = 2 * math.sqrt(5 * fused_mean) / (5 + fused_mean)
    expected = 2 * gain / (1 + gain**2) * bias
    assert score(Q2n(), gain * reference, reference).value == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("degrees", [0.0, 1e-4, 0.01, 1.0, 45.0, 90.0, 135.0, 180.0])
def test_a_known_angle(degrees):
    angle = math.radians(degrees)
    fused = torch.tensor([math.cos(angle), math.sin(angle)]).reshape(2, 1, 1).expand(2, 8, 8) * 3000
    reference = torch.tensor([1.0, 0.0]).reshape(2, 1, 1).expand(2, 8, 8) * 7
    assert score(SAM(), fused, reference).value == pytest.approx(degrees, rel=1e-5, abs=1e-5)


def test_sam_in_float32_of_equal_spectra_is_zero(scene):
    """arccos in float32 (torchmetrics) gives about 1e-4 rad for identical images."""
    _, reference, _ = scene(bands=200)
    assert score(SAM(), reference, reference).value == 0


# ---------------------------------------------------------------- textbook numpy


@pytest.mark.parametrize("bands", BANDS)
@pytest.mark.parametrize("scale", SCALES)
def test_against_textbook_numpy(scene, naive, bands, scale):
    fused, reference, mask = scene(bands=bands, rows=37, cols=45, scale=scale, seed=bands)
    values = FullReferenceSet(6)
    values.update(fused, reference, mask)
    values = values.compute()
    f, r, m = float64(fused, reference, mask)
    mse = ((f - r) ** 2).mean(axis=(1, 2))
    expected = {
        "PSNR": (10 * np.log10(r.max(axis=(1, 2)) ** 2 / mse)).mean(),
        "RMSE": np.sqrt(mse.mean()),
        "ERGAS": 100 / 6 * np.sqrt((mse / r.mean(axis=(1, 2)) ** 2).mean()),
        "CC": np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(f, r)]),
        "UIQI": np.mean([naive.q_image(a, b, m)[0] for a, b in zip(f, r)]),
    }
    for key, value in expected.items():
        assert values[key].value == pytest.approx(value, rel=EXACT), key
    assert values["SAM"].value == pytest.approx(naive.sam(f, r, m), rel=SINGLE)
    if bands <= 31:  # the textbook's loop over pixels is slow
        assert values["SCC"].value == pytest.approx(naive.scc(f, r, m), rel=EXACT)
    assert np.mean(values["PSNR"].per_band) == pytest.approx(values["PSNR"].value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtypes(scene, naive, dtype):
    fused, reference, mask = scene()
    f, r, m = float64(fused, reference, mask)
    assert score(SAM(), fused.to(dtype), reference.to(dtype)).value == pytest.approx(
        naive.sam(f, r, m), rel=SINGLE
    )
    expected = np.sqrt(((f - r) ** 2).mean())
    assert score(RMSE(), fused.to(dtype), reference.to(dtype)).value == pytest.approx(expected, rel=EXACT)


def test_a_large_mean_does_not_swamp_the_variance(scene):
    """The data's variation is 1e-4 of its mean, as in thermal bands in millikelvin."""
    fused, reference, mask = scene(rows=64, cols=64, scale=20.0)
    fused, reference = (fused + 200_000.0), (reference + 200_000.0)
    f, r, _ = float64(fused, reference, mask)
    expected = np.mean([np.corrcoef(a.ravel(), b.ravel())[0, 1] for a, b in zip(f, r)])
    assert score(CC(), fused, reference).value == pytest.approx(expected, rel=EXACT)


# ---------------------------------------------------------------- other libraries


def test_psnr_of_scikit_image(scene):
    fused, reference, _ = scene()
    theirs = [peak_signal_noise_ratio(r, f, data_range=r.max()) for f, r in zip(*float64(fused, reference))]
    result = score(PSNR(), fused, reference)
    assert result.per_band == pytest.approx(theirs, rel=EXACT)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(37, 45), (64, 96)])
def test_ssim_of_scikit_image(scene, scale, size):
    """skimage filters with its own truncated Gaussian (radius 5 at truncate 3.5) and crops 5 pixels: Wang's form."""
    fused, reference, _ = scene(rows=size[0], cols=size[1], scale=scale)
    theirs = [
        structural_similarity(
            r, f, data_range=r.max() - r.min(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for f, r in zip(*float64(fused, reference))
    ]
    assert score(SSIM(), fused, reference).per_band == pytest.approx(theirs, abs=1e-5)


def test_ssim_where_the_variation_is_small_beside_the_level(scene):
    """float32 keeps 1e-4 of the range here, so the filters must not work on the raw values."""
    fused, reference, _ = scene(rows=48, cols=48, scale=20.0)
    fused, reference = fused + 5000, reference + 5000
    theirs = [
        structural_similarity(
            r, f, data_range=r.max() - r.min(), gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for f, r in zip(*float64(fused, reference))
    ]
    assert score(SSIM(), fused, reference).per_band == pytest.approx(theirs, abs=1e-5)


def test_sam_and_ergas_of_torchmetrics_and_sewar(scene):
    """torchmetrics works in float32 (1e-4); sewar wants rows, cols, bands and the inverse ratio."""
    fused, reference, mask = scene(bands=8, rows=64, cols=64)
    sam = score(SAM(), fused, reference).value
    assert sam == pytest.approx(
        math.degrees(float(tm.spectral_angle_mapper(fused[None], reference[None]))), rel=1e-4
    )
    ergas = score(ERGAS(6), fused, reference).value
    theirs = tm.error_relative_global_dimensionless_synthesis(fused[None], reference[None], ratio=6)
    assert ergas == pytest.approx(float(theirs), rel=1e-4)
    f, r, _ = (np.moveaxis(a, 0, -1) if a.ndim == 3 else a for a in float64(fused, reference, mask))
    assert sam == pytest.approx(math.degrees(sewar.sam(r, f)), rel=SINGLE)
    assert score(RMSE(), fused, reference).value == pytest.approx(sewar.rmse(r, f), rel=EXACT)


def test_the_ratio_the_wrong_way_round_is_refused():
    """ERGAS with 1/4 for 4 is 16 times too large in other codes."""
    with pytest.raises(HyperSharpError, match="ratio"):
        ERGAS(1 / 4)
    with pytest.raises(HyperSharpError, match="ratio"):
        ERGAS(float("nan"))


def test_uiqi_where_sewar_fails(scene, naive):
    """sewar's sums lose the covariance beside a large mean: about 1 for an image that is half noise."""
    fused, reference, mask = scene(bands=4, rows=64, cols=64, scale=1000.0, noise=0.2)
    fused, reference = fused + 1e6, reference + 1e6
    f, r, m = float64(fused, reference, mask)
    expected = np.mean([naive.q_image(a, b, m)[0] for a, b in zip(f, r)])
    assert score(UIQI(), fused, reference).value == pytest.approx(expected, rel=EXACT)
    assert expected < 0.8


def test_ssim_does_not_depend_on_the_unit(scene):
    """Codes with a fixed L score the same image 0.84 in DN and 0.996 with L = 65535."""
    fused, reference, _ = scene(scale=1.0)
    values = [score(SSIM(), fused * s, reference * s).value for s in (1, 10000, 65535)]
    assert values == pytest.approx([values[0]] * 3, abs=1e-5)


# ---------------------------------------------------------------- invariances


@pytest.mark.parametrize("key", sorted(FULL_REFERENCE))
def test_invariances_and_direction(scene, key):
    make = lambda: FullReferenceSet(4, [key])  # noqa: E731

    def value(fused, reference):
        metric = make()
        metric.update(fused, reference, torch.ones(fused.shape[1:], dtype=torch.bool))
        return metric.compute()[key].value

    fused, reference, _ = scene(rows=64, cols=64)
    base = value(fused, reference)
    rel = SINGLE * 10
    if key != "RMSE":
        assert value(fused * 2, reference * 2) == pytest.approx(base, rel=rel), "the unit"
    else:
        assert value(fused * 2, reference * 2) == pytest.approx(2 * base, rel=rel)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    # Q2n multiplies in an algebra where the order of bands matters: a small share of its value.
    assert value(fused[order], reference[order]) == pytest.approx(base, rel=5e-3 if key == "Q2n" else rel), (
        "bands"
    )
    if key in ("PSNR", "SAM", "ERGAS", "RMSE", "CC", "SSIM", "SCC", "UIQI", "Q2n"):
        assert value(fused.flip(1), reference.flip(1)) == pytest.approx(base, rel=rel), "flip"
        turned = value(fused.transpose(1, 2).contiguous(), reference.transpose(1, 2).contiguous())
        assert turned == pytest.approx(base, rel=rel), "transpose"
    worse = value(scene(rows=64, cols=64, noise=0.12)[0], reference)
    better = FULL_REFERENCE[key].better
    assert (worse < base) if better == "higher" else (worse > base), "more noise is worse"


@pytest.mark.parametrize("metric", [UIQI, Q2n])
def test_blocks_of_less_than_64_pixels_are_left_out(scene, naive, metric):
    """36 x 40 pixels: the corner block has 4 x 8, the others count by their pixels."""
    fused, reference, mask = scene(rows=36, cols=40)
    f, r, m = float64(fused, reference, mask)
    bandwise = np.mean([naive.q_image(a, b, m)[0] for a, b in zip(f, r)])
    expected = bandwise if metric is UIQI else naive.q2n(f, r, m)
    before = score(metric(), fused, reference).value
    assert before == pytest.approx(expected, rel=EXACT)
    fused[:, 32:, 32:] = 0
    assert score(metric(), fused, reference).value == before
