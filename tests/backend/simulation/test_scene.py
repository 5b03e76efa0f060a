"""The sample scene: plausible spectra, edges, texture; the same for the same seed."""

import pytest
import torch
from hypersharp.backend.simulation.scene import make_scene, sample_bands_nm
from hypersharp.backend.simulation.spectra import GRID_NM, INDEX, MATERIALS, material_spectra, sample_bands


@pytest.fixture(scope="module")
def scene():
    return make_scene(120, 100, seed=3)


def band(scene, nm):
    return min(range(len(scene.wavelengths_nm)), key=lambda i: abs(scene.wavelengths_nm[i] - nm))


def test_shape_and_bands(scene):
    assert tuple(scene.cube.shape) == (len(scene.wavelengths_nm), 120, 100)
    assert scene.cube.dtype == torch.int16
    assert len(scene.wavelengths_nm) >= 64
    assert scene.wavelengths_nm == sorted(scene.wavelengths_nm)
    assert 415 < scene.wavelengths_nm[0] < 430 and 2400 < scene.wavelengths_nm[-1] < 2460
    assert all(w > 0 for w in scene.fwhm_nm)


def test_opaque_water_vapour_windows_are_left_out():
    assert not [w for w in sample_bands_nm()[0] if 1350 < w < 1450 or 1800 < w < 1950]


def test_seed_decides(scene):
    assert torch.equal(make_scene(120, 100, seed=3).cube, scene.cube)
    assert not torch.equal(make_scene(120, 100, seed=4).cube, scene.cube)


def test_abundances_are_fractions(scene):
    total = scene.abundance.sum(dim=0)
    assert torch.allclose(total, torch.ones_like(total), atol=1e-4)
    assert float(scene.abundance.min()) >= -1e-6


def test_every_kind_of_ground_is_there():
    cover = make_scene(seed=0).abundance.mean(dim=(1, 2))
    assert int((cover > 1e-3).sum()) >= len(MATERIALS) - 2
    assert float(cover.max()) < 0.6


def test_edges_and_texture(scene):
    """A scene without detail would make every method look alike: neighbours must differ, but not be noise."""
    pan = scene.cube[: band(scene, 700)].float().mean(dim=0)
    step = (pan[:, 1:] - pan[:, :-1]).std() / pan.std()
    assert 0.2 < float(step) < 1.2


def test_vegetation_has_a_red_edge_and_water_is_dark_in_the_infrared():
    spectra = material_spectra()

    def at(name, nm):
        return float(spectra[INDEX[name], int((GRID_NM - nm).abs().argmin())])

    for name in ("green crop", "grass", "broadleaf tree", "conifer"):
        ndvi = (at(name, 850) - at(name, 670)) / (at(name, 850) + at(name, 670))
        assert ndvi > 0.6, name
        assert at(name, 550) > at(name, 670), name
        assert at(name, 1450) < 0.6 * at(name, 1250), name
    assert at("water", 850) < 0.02 < at("water", 500)
    assert at("red tile", 650) > 2 * at("red tile", 450)


def test_sampling_a_flat_spectrum_gives_it_back():
    flat = torch.full((1, len(GRID_NM)), 0.3, dtype=torch.float64)
    sampled = sample_bands(flat, torch.tensor([500.0, 2400.0]), torch.tensor([10.0, 30.0]))
    assert torch.allclose(sampled, torch.full_like(sampled, 0.3))
