# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.degradation import degrade
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.training.cubes import read_cube, read_cubes
from hypersharp.backend.training.pairs import Dice, PairSettings, draw_pair, draw_responses, shift_image
from hypersharp.backend.training.run import split_cubes

PLAIN = PairSettings(ratios=(3,), side=48, noise=0.0, shift=0.0, known_mtf=1.0, pan=1.0, bands=1.0)


def drawn(cube, settings, seed):
    return draw_pair(cube, settings, torch.Generator().manual_seed(seed))


def test_a_pair_follows_walds_protocol(cubes):
    pair = drawn(cubes[0], PLAIN, 3)
    hs, _ = pair.scene.hs.read((0, 16), (0, 16))
    expected, _ = degrade(pair.truth, 3, pair.facts["mtf"])
    assert torch.equal(hs, expected)
    assert pair.scene.mtf_hs == pair.facts["mtf"]
    guide, _ = pair.scene.guide.read((0, 48), (0, 48))
    assert guide.shape[0] == 1
    spectrum = torch.linalg.lstsq(pair.truth.flatten(1).T, guide.flatten(1).T).solution[:, 0]
    assert torch.allclose(spectrum @ pair.truth.flatten(1), guide.flatten(), rtol=1e-3)


def test_the_same_seed_gives_the_same_pair_and_another_one_another(cubes):
    a, b, c = (drawn(cubes[1], PairSettings(side=48), s) for s in (5, 5, 6))
    assert a.facts == b.facts
    assert torch.equal(a.truth, b.truth) and torch.equal(a.scene.hs.image, b.scene.hs.image)
    assert a.facts != c.facts


def test_everything_is_drawn(cubes):
    settings = PairSettings(ratios=(2, 3, 4), side=48)
    facts = [drawn(cubes[i % 4], settings, i).facts for i in range(60)]
    assert {f["ratio"] for f in facts} == {2, 3, 4}
    assert min(f["mtf"] for f in facts) < 0.2 and max(f["mtf"] for f in facts) > 0.4
    assert all(0.15 <= f["mtf"] <= 0.45 for f in facts)
    assert 1 in {f["guide_bands"] for f in facts} and max(f["guide_bands"] for f in facts) > 4
    assert len({f["bands"] for f in facts}) > 3
    noisy = [f["snr_db"] for f in facts if f["snr_db"] is not None]
    assert 15 < len(noisy) < 45 and all(25 <= s <= 45 for s in noisy)
    assert 5 < sum(f["shift"] != (0.0, 0.0) for f in facts) < 30
    assert any(not f["known"] for f in facts)


def test_noise_has_the_stated_power(cubes):
    import dataclasses

    noisy = dataclasses.replace(PLAIN, noise=1.0, noise_db=(20.0, 20.001))
    pair = drawn(cubes[0], noisy, 1)
    clean, _ = degrade(pair.truth, 3, pair.facts["mtf"])
    noise = pair.scene.hs.image - clean
    snr = 10 * torch.log10(clean.square().mean() / noise.square().mean())
    assert float(snr) == pytest.approx(20, abs=0.7)


def test_guide_noise_has_the_stated_power_and_leaves_the_rest(cubes):
    import dataclasses

    noisy = dataclasses.replace(PLAIN, guide_noise=1.0, guide_noise_db=(30.0, 30.001))
    pair, clean = (drawn(cubes[0], settings, 1) for settings in (noisy, PLAIN))
    assert torch.equal(pair.scene.hs.image, clean.scene.hs.image) and torch.equal(pair.truth, clean.truth)
    noise = pair.scene.guide.image - clean.scene.guide.image
    snr = 10 * torch.log10(clean.scene.guide.image.square().mean() / noise.square().mean())
    assert float(snr) == pytest.approx(30, abs=0.3)


def test_nodata_stays_out(cubes):
    cube = cubes[0]
    cube.mask[:, :20] = False
    cube.image[:, :, :20] = 0
    pair = drawn(cube, PLAIN, 2)
    assert 0.4 < float(pair.mask.float().mean()) < 0.7
    assert bool((pair.truth[:, pair.mask] > 0).all())
    cube.mask[:] = False
    with pytest.raises(ValueError, match="no valid pixel"):
        drawn(cube, PLAIN, 2)


def test_responses_are_means(cubes):
    for seed in range(30):
        dice = Dice(torch.Generator().manual_seed(seed))
        weights = draw_responses(cubes[0].wavelength_nm, seed % 2 == 0, dice)
        assert torch.allclose(weights.sum(dim=1), torch.ones(len(weights)), atol=1e-5)
        assert bool((weights >= 0).all())


def test_shift_by_a_whole_pixel():
    image = torch.rand(2, 9, 9)
    moved = shift_image(image, 1.0, 0.0)
    assert torch.allclose(moved[:, 2:-2, 2:-2], image[:, 3:-1, 2:-2], atol=1e-5)


def test_reading_cubes(cube_folder, cubes):
    cube = read_cube(cube_folder / "scene0.tif")
    assert torch.allclose(cube.image, cubes[0].image)
    assert bool(cube.mask.all()) and len(cube.wavelength_nm) == 14
    (cube_folder / "broken.tif").write_bytes(b"no raster")
    names = [c.name for c in read_cubes(cube_folder, ("scene2",))]
    assert names == ["scene0", "scene1", "scene3"]
    with pytest.raises(HyperSharpError, match="no folder"):
        read_cubes(cube_folder / "nothing")
    empty = cube_folder / "empty"
    empty.mkdir()
    with pytest.raises(HyperSharpError, match="no cube to train on"):
        read_cubes(empty)


def test_scenes_are_held_out(cubes):
    training, validation = split_cubes(cubes, (), 0)
    assert len(validation) == 1 and len(training) == 3
    assert not {c.name for c in training} & {c.name for c in validation}
    training, validation = split_cubes(cubes, ("scene1",), 0)
    assert [c.name for c in validation] == ["scene1"]
    (left,), (right,) = split_cubes(cubes[:1], (), 0)
    assert left.image.shape[2] + right.image.shape[2] == 48
    assert torch.equal(torch.cat([left.image, right.image], 2), cubes[0].image)


def test_the_truth_lies_on_the_guide_s_ground(cubes):
    """The closed form puts its result there: training against another ground would teach to shift it back."""
    import dataclasses

    moved = dataclasses.replace(PLAIN, shift=1.0)
    for seed in range(4):
        pair = drawn(cubes[0], moved, seed)
        assert pair.facts["shift"] != (0.0, 0.0)
        bands = pair.truth.flatten(1).double().T
        guide = pair.scene.guide.image.flatten(1).double().T
        left = guide - bands @ torch.linalg.lstsq(bands, guide).solution
        assert float(left.std() / guide.std()) < 1e-4
        unmoved, _ = degrade(pair.truth, 3, pair.facts["mtf"])
        assert float((pair.scene.hs.image - unmoved).std() / unmoved.std()) > 1e-3
