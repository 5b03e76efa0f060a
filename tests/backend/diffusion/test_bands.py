# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.diffusion.bands import RULES, band_loadings, select_bands, unexplained
from hypersharp.backend.errors import HyperSharpError


def covariance(image):
    flat = image.double().flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    return flat @ flat.T / flat.shape[1]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("count", [1, 2, 3, 5, 9])
def test_every_rule_selects_as_many_different_bands(cube, rule, count):
    bands = select_bands(covariance(cube), count, rule)
    assert len(set(bands)) == count and min(bands) >= 0 and max(bands) < len(cube)


@pytest.mark.parametrize("rule", ["pca", "rrqr", "equal"])
def test_three_bands_explain_an_image_of_rank_three(cube, rule):
    c = covariance(cube)
    bands = select_bands(c, 3, rule)
    assert unexplained(c, bands) < 2e-3
    loadings = band_loadings(c, bands)
    centred = cube.double() - cube.double().mean(dim=(1, 2), keepdim=True)
    built = torch.einsum("bk,krc->brc", loadings, centred[bands])
    assert float((built - centred).abs().max()) < 0.02 * float(centred.abs().max())
    torch.testing.assert_close(loadings[bands], torch.eye(3, dtype=torch.float64), atol=1e-2, rtol=0)


def test_unexplained_is_the_residual_of_the_regression():
    generator = torch.Generator().manual_seed(3)
    image = torch.randn(7, 20, 20, generator=generator)
    c = covariance(image)
    bands = select_bands(c, 2)
    centred = image.double() - image.double().mean(dim=(1, 2), keepdim=True)
    left = centred - torch.einsum("bk,krc->brc", band_loadings(c, bands), centred[bands])
    assert unexplained(c, bands) == pytest.approx(float(left.norm() / centred.norm()), rel=1e-6)


def test_pca_takes_the_band_that_loads_highest_and_keeps_apart():
    variances = torch.tensor(
        [1.0, 1.0, 1.0, 9.0, 8.9, 1.0, 1.0, 4.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64
    )
    c = torch.diag(variances)
    assert select_bands(c, 3, "pca") == [3, 4, 7]
    wide = torch.diag(variances.repeat_interleave(4))  # 48 bands: at least 4 apart
    chosen = select_bands(wide, 3, "mvpca")
    assert all(abs(a - b) >= 4 for i, a in enumerate(chosen) for b in chosen[:i])


def test_equal_is_the_published_interval():
    assert select_bands(torch.eye(102, dtype=torch.float64), 3, "equal") == [24, 49, 74]


def test_rrqr_avoids_bands_that_say_the_same(cube):
    twice = torch.cat([cube, cube[:1] * 1.0001])
    c = covariance(twice)
    assert len({0, len(cube)} & set(select_bands(c, 3, "rrqr"))) < 2


def test_what_cannot_be_is_refused():
    with pytest.raises(HyperSharpError):
        select_bands(torch.eye(5), 3, "best")
    with pytest.raises(HyperSharpError):
        select_bands(torch.eye(5), 6)
