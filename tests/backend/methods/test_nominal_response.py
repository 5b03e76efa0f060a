"""A spectral response that the user names: a sensor, a table, some of its columns."""

import numpy as np
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.nominal_response import nominal_srf, scaled_to_guide
from hypersharp.backend.registry import load_method
from hypersharp.backend.scene import Scene
from scenes import smooth_scene

WAVELENGTHS = [float(w) for w in np.linspace(420, 900, 13)]


@pytest.fixture
def table(tmp_path):
    """Two triangular bands and one that lies outside."""
    path = tmp_path / "srf.csv"
    lines = ["wavelength_nm,green,red,swir"]
    for w in range(400, 1700, 5):
        curves = [max(0.0, 1 - abs(w - centre) / 80) for centre in (550, 700, 1600)]
        lines.append(",".join([str(w), *(f"{c:.4f}" for c in curves)]))
    path.write_text("\n".join(lines))
    return str(path)


def test_columns_of_a_table(table):
    both = nominal_srf(f"{table}:red,green", WAVELENGTHS, 2)
    torch.testing.assert_close(both.sum(dim=1), torch.ones(2, dtype=torch.float64))
    centres = (both @ torch.tensor(WAVELENGTHS, dtype=torch.float64)).tolist()
    assert centres == pytest.approx([700, 550], abs=8)  # in the order asked for
    assert nominal_srf(f"{table}:green", WAVELENGTHS, 1).shape == (1, 13)


def test_a_known_sensor():
    row = nominal_srf("ali-pan", WAVELENGTHS, 1)[0]
    inside = [480 <= w <= 690 for w in WAVELENGTHS]
    assert [bool(v > 0) for v in row] == inside and float(row.sum()) == pytest.approx(1)


@pytest.mark.parametrize(
    ("source", "bands", "message"),
    [
        ("nothing", 1, "no sensor and no response table"),
        ("{table}:blue", 1, "no column 'blue'"),
        ("{table}", 3, "has 2 band"),
        ("/gone.csv", 1, "cannot read"),
        ("ali-ms", 9, "no HS band lies"),
    ],
)
def test_what_cannot_be_is_refused(table, source, bands, message):
    with pytest.raises(HyperSharpError, match=message) as caught:
        nominal_srf(source.format(table=table), WAVELENGTHS, bands)
    assert caught.value.hint
    with pytest.raises(HyperSharpError, match="wavelength of every HS band"):
        nominal_srf(table, [None, *WAVELENGTHS[1:]], 2)


def test_the_gain_brings_it_to_the_guides_units():
    generator = torch.Generator().manual_seed(0)
    hs = torch.randn(5, 400, generator=generator, dtype=torch.float64)
    nominal = torch.tensor([[0.5, 0.5, 0, 0, 0], [0, 0, 0.2, 0.3, 0.5]], dtype=torch.float64)
    guide = torch.diag(torch.tensor([3.0, 0.25], dtype=torch.float64)) @ nominal @ hs
    covariance, cross = hs @ hs.T / 400, hs @ guide.T / 400
    expected = nominal * torch.tensor([[3.0], [0.25]], dtype=torch.float64)
    torch.testing.assert_close(scaled_to_guide(nominal, covariance, cross), expected)


@pytest.mark.parametrize("name", ["sylvester", "bayes", "hysure", "cnmf"])
def test_methods_take_it(name, table):
    """The response used is the named one, the estimate stands beside it, and the result is as good."""
    truth = torch.from_numpy(smooth_scene(13, 96, 96)).float()
    srf = nominal_srf(f"{table}:green,red", WAVELENGTHS, 2).float()
    guide = 0.1 * torch.einsum("gb,brc->grc", srf, truth) + 7.0  # another unit and an offset
    scene = Scene(TensorSource(degrade(truth, 4, 0.3)[0]), TensorSource(guide), 4, 0.3, 0.3, WAVELENGTHS)
    errors = {}
    for source in (None, f"{table}:green,red"):
        method = load_method(name)({"srf": source})
        method.fit(scene, Control())
        image = method.fuse(scene.tile((0, 96), (0, 96), method.halo))
        errors[source] = float((image - truth).square().mean().sqrt())
        said = method.describe()
        assert (said["guide_response_nominal"] is None) == (source is None)
        assert len(said["guide_response_estimated"]) == 2
    torch.testing.assert_close(method.response, 0.1 * srf.double(), rtol=0.02, atol=1e-4)
    assert errors[f"{table}:green,red"] < 1.5 * errors[None] + 1.0
