# SPDX-License-Identifier: GPL-2.0-or-later
"""Maps: their means are the indices, masked pixels are NaN, tiles join without seams."""

import pytest
import torch
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.metrics import FullReferenceSet
from hypersharp.backend.metrics.d_rho import DRho
from hypersharp.backend.metrics.maps import d_rho_map, rmse_map, sam_map


def test_sam_and_rmse_maps_average_to_the_indices(scene, holes):
    fused, reference, _ = scene(rows=70, cols=91)
    mask = holes(70, 91)
    metrics = FullReferenceSet(4, ["SAM", "RMSE"])
    metrics.update(fused, reference, mask)
    values = metrics.compute()
    angle, error = sam_map(fused, reference, mask), rmse_map(fused, reference, mask)
    for found in (angle, error):
        assert found.shape == mask.shape and found.dtype == torch.float32
        assert torch.equal(torch.isfinite(found), mask)
    # The maps are float32.
    assert float(angle[mask].double().mean()) == pytest.approx(values["SAM"].value, rel=1e-6)
    assert float(error[mask].double().square().mean().sqrt()) == pytest.approx(values["RMSE"].value, rel=1e-6)


def test_zero_spectra_have_no_angle(scene):
    fused, reference, mask = scene()
    reference[:, 3, 4] = 0
    angle = sam_map(fused, reference, mask)
    assert torch.isnan(angle[3, 4]) and int(torch.isnan(angle).sum()) == 1


@pytest.mark.parametrize("ratio", [2, 3, 4, 5])
def test_d_rho_map_averages_to_the_index_and_has_no_seams(scene, holes, ratio):
    rows, cols = 24 * ratio, 15 * ratio
    fused, truth, _ = scene(bands=4, rows=rows, cols=cols)
    guide = torch.stack([truth[:2].mean(dim=0), truth[2:].mean(dim=0)])
    mask, assignment = holes(rows, cols, share=0.001), torch.tensor([0, 0, 1, 1])
    whole = d_rho_map(fused, guide, mask, ratio, assignment=assignment)
    metric = DRho(ratio, assignment)
    coarse = torch.zeros(4, 24, 15).normal_(generator=torch.Generator().manual_seed(0))
    metric.update(fused, guide, mask, coarse, coarse, coarse[:2], torch.ones(24, 15, dtype=torch.bool))
    seen = torch.isfinite(whole)
    assert not seen[~mask].any()
    assert float(whole[seen].double().mean()) == pytest.approx(metric.compute().value, rel=1e-6)
    split, halo = 7 * ratio, ratio // 2
    upper = d_rho_map(
        fused[:, : split + halo],
        guide[:, : split + halo],
        mask[: split + halo],
        ratio,
        (slice(0, split), slice(None)),
        assignment,
    )
    lower = d_rho_map(
        fused[:, split - halo :],
        guide[:, split - halo :],
        mask[split - halo :],
        ratio,
        (slice(halo, None), slice(None)),
        assignment,
    )
    torch.testing.assert_close(torch.cat([upper, lower]), whole, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_d_rho_map_is_centred(scene):
    """A disturbed pixel of the image shows in the ratio x ratio windows around it, no others."""
    fused, _, mask = scene(bands=1, rows=21, cols=21)
    guide = fused.clone()
    fused[0, 10, 10] *= 3
    shown = d_rho_map(fused, guide, mask, 3) > 1e-4
    expected = torch.zeros(21, 21, dtype=torch.bool)
    expected[9:12, 9:12] = True
    assert torch.equal(shown, expected)


def test_input_that_does_not_fit_is_refused(scene):
    fused, reference, mask = scene()
    for call in (
        lambda: sam_map(fused[1:], reference, mask),
        lambda: rmse_map(fused, reference, mask[1:]),
        lambda: d_rho_map(fused, reference, mask, 3),
        lambda: d_rho_map(fused, reference[:1, 1:], mask, 3),
    ):
        with pytest.raises(HyperSharpError):
            call()
