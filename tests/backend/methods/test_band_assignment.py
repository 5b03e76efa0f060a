"""Hypersharpening by band assignment: each HS band follows the one guide band that it correlates with most."""

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade, interpolate
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.registry import load_method
from hypersharp.backend.scene import Scene
from scenes import smooth_scene


@pytest.fixture
def scene():
    truth = torch.from_numpy(smooth_scene(8, 96, 96)).float()
    guide = torch.stack([truth[:3].mean(dim=0), truth[3:6].mean(dim=0), truth[6:].mean(dim=0)])
    return Scene(TensorSource(degrade(truth, 4, 0.3)[0]), TensorSource(guide), 4, 0.3, 0.3)


def test_against_a_plain_reading(scene):
    """The additive form, in numpy over the whole scene."""
    method = load_method("glp-hs")({"fit": "assign"})
    method.fit(scene, Control())
    image = method.fuse(scene.tile((0, 96), (0, 96), method.halo)).numpy()
    hs, guide = scene.hs.image.numpy().astype("float64"), scene.guide.image
    low = degrade(guide, 4, 0.3)[0]
    detail = (guide - interpolate(low, 4)).numpy()
    up = interpolate(scene.hs.image, 4).numpy()
    low = low.numpy().astype("float64")
    for band in range(8):
        correlations = [abs(np.corrcoef(hs[band].ravel(), g.ravel())[0, 1]) for g in low]
        best = int(np.argmax(correlations))
        gain = np.cov(hs[band].ravel(), low[best].ravel(), bias=True)[0, 1] / low[best].var()
        assert int((method.gains[band] != 0).sum()) == 1
        # float32 filters on values up to 4000
        np.testing.assert_allclose(image[band], up[band] + gain * detail[best], atol=0.05)


@pytest.mark.parametrize("name", ["glp-hs", "sfim-hs"])
def test_both_forms_take_it_and_refuse_what_is_unknown(scene, name):
    method = load_method(name)({"fit": "assign"})
    method.fit(scene, Control())
    assert torch.isfinite(method.fuse(scene.tile((0, 96), (0, 96), method.halo))).all()
    with pytest.raises(HyperSharpError, match="no fit"):
        load_method(name)({"fit": "nearest"}).fit(scene, Control())
