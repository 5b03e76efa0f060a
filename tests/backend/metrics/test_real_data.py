# SPDX-License-Identifier: GPL-2.0-or-later
"""The indices on real cubes: nodata, empty bands, capped bands, int16 and reflectance, 102 to 426 bands."""

import json

import pytest
import rasterio
import torch
from hypersharp.backend.metrics import FullReferenceSet, NoReferenceSet
from torch.nn.functional import avg_pool2d, interpolate

CUBES = ["enmap_potsdam", "neon_sjer_1m", "rosis_pavia_bridge", "aviris_jasper_ridge", "cave_*"]


@pytest.mark.data
@pytest.mark.parametrize("name", CUBES)
def test_real_cubes(data, name):
    path = next(iter(sorted((data / "cubes").glob(f"{name}.tif"))))
    with rasterio.open(path) as dataset:
        raw = torch.from_numpy(dataset.read().astype("float32"))[:, :120, :120]
        nodata = dataset.nodata
    rows, cols = (n // 3 * 3 for n in raw.shape[1:])
    truth = raw[:, :rows, :cols]
    empty = (truth == nodata).all(dim=(1, 2)) if nodata is not None else (truth != truth).all(dim=(1, 2))
    mask = (truth[~empty] != nodata).all(dim=0) if nodata is not None else torch.isfinite(truth).all(dim=0)
    truth = torch.where(mask, truth, truth.new_zeros(()))
    truth[empty] = 0
    hs = avg_pool2d(truth[None], 3)[0]
    mask_lr = avg_pool2d(mask[None].float(), 3)[0] == 1
    fused = interpolate(hs[None], scale_factor=3, mode="bicubic")[0]
    guide = truth.mean(dim=0, keepdim=True)
    full, none = FullReferenceSet(3), NoReferenceSet(3)
    full.update(fused, truth, mask)
    none.update(fused, guide, mask, avg_pool2d(fused[None], 3)[0], hs, avg_pool2d(guide[None], 3)[0], mask_lr)
    values = {**full.compute(), **none.compute()}
    json.dumps({k: [v.value, v.per_band] for k, v in values.items()}, allow_nan=False)
    for key, v in values.items():
        assert v.value is not None or key == "D_s_R", (key, v.reason)
    assert values["Q2n"].value < 1 and values["SAM"].value < 45
    if empty.any():
        first = int(empty.nonzero()[0]) + 1
        assert str(first) in values["PSNR"].reason and "left out" in values["PSNR"].reason
