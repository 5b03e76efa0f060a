"""Guide responses: which HS bands a simulated PAN or MSI band collects."""

import pytest
import torch
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.simulation.response import guide_response, read_response_csv

WAVELENGTHS = [400.0 + 10 * i for i in range(211)]  # 400-2500 nm


def test_pan_is_the_plain_mean_of_the_visible_bands():
    response = guide_response("pan", WAVELENGTHS)
    inside = torch.tensor([450 <= w <= 750 for w in WAVELENGTHS])
    assert response.weights.shape == (1, 211)
    assert torch.allclose(response.weights[0, inside], torch.full((31,), 1 / 31))
    assert not response.weights[0, ~inside].any()
    assert response.centre_nm[0] == pytest.approx(600, abs=1)
    assert not response.warnings


def test_msi_bands_peak_at_their_centres():
    response = guide_response("4", WAVELENGTHS, [10.0] * 211)
    assert response.weights.shape == (4, 211)
    assert torch.allclose(response.weights.sum(dim=1), torch.ones(4))
    for row, centre, got in zip(response.weights, (482.5, 562.5, 655, 830), response.centre_nm):
        assert abs(WAVELENGTHS[int(row.argmax())] - centre) <= 5
        assert got == pytest.approx(centre, abs=2)
        assert WAVELENGTHS[int(torch.nonzero(row).max())] < centre + 150


def test_overlapping_sensors_are_not_counted_twice():
    """A second detector over the same range, as where VNIR meets SWIR, must not double that range's weight."""
    doubled = WAVELENGTHS + [760.0 + 10 * i for i in range(8)]
    once = guide_response("4", WAVELENGTHS).weights[3]
    twice = guide_response("4", doubled).weights[3]
    low = [i for i, w in enumerate(doubled) if 760 <= w <= 830]
    assert float(twice[low].sum()) == pytest.approx(
        float(sum(once[i] for i, w in enumerate(WAVELENGTHS) if 760 <= w <= 830)), abs=0.05
    )


def test_unusable_bands_are_left_out():
    usable = [not 500 <= w <= 600 for w in WAVELENGTHS]
    weights = guide_response("pan", WAVELENGTHS, usable=usable).weights[0]
    assert not weights[[i for i, u in enumerate(usable) if not u]].any()
    assert float(weights.sum()) == pytest.approx(1)


def test_no_wavelengths_is_an_assumption_that_is_said():
    response = guide_response("4", [None] * 200)
    assert "states no wavelengths" in response.warnings[0] and "400 and 2500" in response.warnings[0]
    assert response.centre_nm == [None] * 4
    assert "400 and 1000" in guide_response("pan", [None] * 60).warnings[0]


def test_what_the_cube_does_not_see_is_left_out_or_refused():
    visible = [430.0 + 4 * i for i in range(60)]  # 430-666 nm
    response = guide_response("4", visible)
    assert len(response.names) == 3 and any("left out" in w for w in response.warnings)
    with pytest.raises(HyperSharpError, match="sees nothing"):
        guide_response("pan", [1000.0 + 10 * i for i in range(60)])


@pytest.mark.parametrize("guide", ["5", "0", "", "no/such.csv"])
def test_unknown_guides(guide):
    with pytest.raises(HyperSharpError) as error:
        guide_response(guide, WAVELENGTHS)
    assert error.value.hint


def test_csv(tmp_path):
    table = tmp_path / "srf.csv"
    table.write_text(
        "wavelength_nm,RED,PAN\n"
        + "".join(
            f"{w},{1.0 if 630 <= w <= 680 else -0.001},{1.0 if 500 <= w <= 700 else 0}\n"
            for w in range(700, 400, -1)
        )
    )
    wavelengths, bands = read_response_csv(table)
    assert wavelengths[0] == 401 and list(bands) == ["RED", "PAN"] and float(bands["RED"].min()) == 0
    response = guide_response(str(table), WAVELENGTHS)
    assert response.names == ["RED", "PAN"]
    assert response.centre_nm == [pytest.approx(655, abs=3), pytest.approx(600, abs=3)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a,b\n1,2\n2,3\n",
        "wavelength_nm\n1\n2\n",
        "wavelength_nm,A\n400,x\n500,1\n",
        "wavelength_nm,A\n400,1\n500\n",
        "wavelength_nm,A\n400,nan\n500,1\n",
    ],
)
def test_bad_csv(tmp_path, text):
    table = tmp_path / "bad.csv"
    table.write_text(text)
    with pytest.raises(HyperSharpError):
        guide_response(str(table), WAVELENGTHS)


@pytest.mark.data
def test_real_responses(data):
    for path in sorted((data / "srf").glob("[A-Z]*.csv")):
        response = guide_response(str(path), WAVELENGTHS, [10.0] * 211)
        assert torch.isfinite(response.weights).all(), path.name
    response = guide_response(str(data / "srf" / "S2A_MSI.csv"), WAVELENGTHS, [10.0] * 211)
    centre = dict(zip(response.names, response.centre_nm))
    assert centre["B_2"] == pytest.approx(492, abs=4) and centre["B_8A"] == pytest.approx(865, abs=4)
