"""An HS image that lies off the guide's ground: found, moved, told; and left alone where nothing says so."""

import json

import numpy as np
import pytest
import rasterio
import torch
from affine import Affine
from hypersharp.backend import assess, fuse
from hypersharp.backend.cli import main
from hypersharp.backend.control import Control
from hypersharp.backend.coregistration import LIMIT, find_coregistration
from hypersharp.backend.degradation import degrade
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.job import CompareJob, TrainJob
from hypersharp.backend.pair import Pair
from hypersharp.backend.training.setup import job_pair
from hypothesis import given, settings
from hypothesis import strategies as st
from scenes import rough_scene

GAIN = 0.3


def seen(scene, ratio, move, shape, noise=0.0, seed=0):
    """Return the HS image of a scene and the guide of what lies `move` fine pixels further up and left in it.

    The HS image then has to be moved down and right by `move`.
    """
    rows, cols = (n * ratio for n in shape)
    edge = (LIMIT + 2) * ratio
    truth = torch.from_numpy(scene).float()
    hs = degrade(truth[:, edge : edge + rows, edge : edge + cols].contiguous(), ratio, GAIN)[0]
    generator = torch.Generator().manual_seed(seed)
    hs = hs + noise * hs.std() * torch.randn(hs.shape, generator=generator)
    top, left = edge - move[0], edge - move[1]
    return hs, truth[:3, top : top + rows, left : left + cols]


def found_in(hs, guide, ratio):
    return find_coregistration(TensorSource(hs), TensorSource(guide), ratio, GAIN, Control())


@given(
    ratio=st.sampled_from([2, 3, 5]),
    move=st.tuples(st.floats(-6.5, 6.5), st.floats(-6.5, 6.5)),
    bands=st.sampled_from([4, 30]),
    noise=st.sampled_from([0.0, 0.1]),
    seed=st.integers(0, 5),
)
@settings(max_examples=60, deadline=None)
def test_offsets_are_found_to_a_pixel_of_the_guide(ratio, move, bands, noise, seed):
    """Whatever the ratio, noise and bands; those of a coarse pixel and less are left to the methods."""
    move = tuple(round(m * ratio) for m in move)
    side = 40 * ratio + 2 * (LIMIT + 2) * ratio
    found = found_in(*seen(rough_scene(bands, side, side, seed), ratio, move, (40, 40), noise), ratio)
    farthest = max(abs(m) for m in move) / ratio
    if farthest <= 1.0:
        assert not found.moves
    elif farthest >= 1.5:  # between, either is right
        assert max(abs(found.rows - move[0]), abs(found.cols - move[1])) <= max(1, ratio / 4)
        assert found.unexplained < 0.6 * found.unmoved


def test_images_of_other_ground_are_left_where_they_are():
    for seed in range(12):
        hs, _ = seen(rough_scene(8, 180, 180, seed), 3, (0, 0), (40, 40))
        _, guide = seen(rough_scene(8, 180, 180, seed + 100), 3, (0, 0), (40, 40))
        found = found_in(hs, guide, 3)
        assert not found.moves


def test_a_pattern_that_repeats_itself_moves_nothing():
    """Every period fits as well: there is no telling which."""
    y, x = np.mgrid[0:180, 0:180]
    pattern = np.sin(2 * np.pi * x / 12) * np.sin(2 * np.pi * y / 12)  # a period of four coarse pixels
    scene = 1000 + 100 * np.stack([pattern * w for w in (1.0, 0.6, 0.3, 0.8)])
    for move in ((0, 0), (6, 6)):
        assert not found_in(*seen(scene, 3, move, (40, 40)), 3).moves


def test_beyond_the_limit_nothing_is_moved():
    scene = rough_scene(8, 400, 400, 3)
    hs, _ = seen(scene, 3, (0, 0), (48, 48))
    _, guide = seen(scene, 3, (-3 * (LIMIT + 4), 0), (48, 48))
    assert not found_in(hs, guide, 3).moves


def test_what_is_too_small_or_too_empty_says_nothing():
    hs, guide = seen(rough_scene(8, 140, 140), 3, (9, 0), (17, 17))
    assert found_in(hs, guide, 3) is None
    hs, guide = seen(rough_scene(8, 180, 180), 3, (9, 0), (40, 40))
    nothing = torch.zeros(40, 40, dtype=torch.bool)
    assert find_coregistration(TensorSource(hs, nothing), TensorSource(guide), 3, GAIN, Control()) is None
    flat = torch.ones_like(guide)
    assert not found_in(hs, flat, 3).moves


class _Samples(TensorSource):
    """A source whose bands have masks of their own."""

    def __init__(self, image, samples):
        super().__init__(image, samples.all(dim=0))
        self.samples = samples

    def read_samples(self, rows, cols):
        area = slice(None), slice(*rows), slice(*cols)
        return self.image[area], self.samples[area]


def test_gaps_and_bands_without_data_do_not_hide_it():
    hs, guide = seen(rough_scene(8, 180, 180), 3, (12, -9), (40, 40))
    samples = torch.ones(hs.shape, dtype=torch.bool)
    samples[2] = False
    samples[:, :12, 20:] = False
    hs[~samples] = 0.0
    known = torch.ones(guide.shape[1:], dtype=torch.bool)
    known[60:80, :50] = False
    guide = torch.where(known, guide, 0.0)
    found = find_coregistration(_Samples(hs, samples), TensorSource(guide, known), 3, GAIN, Control())
    assert max(abs(found.rows - 12), abs(found.cols + 9)) <= 1


RATIO, MOVED = 3, (-9, 12)
"""Rows and cols, in guide pixels, by which the HS raster's georeference is wrong."""


@pytest.fixture
def moved_pair(make_raster):
    """Return (HS raster, the same with a wrong georeference, guide)."""
    fine = Affine(10.0, 0.0, 450000.0, 0.0, -10.0, 5400000.0)
    truth = rough_scene(8, 44 * RATIO, 52 * RATIO, 1)
    coarse = degrade(torch.from_numpy(truth).float(), RATIO, GAIN)[0].numpy().astype("uint16")
    wrong = fine * Affine.translation(MOVED[1], MOVED[0])
    guide = make_raster("guide.tif", truth[:3].mean(axis=0, keepdims=True).astype("uint16"), transform=fine)
    nm = list(np.linspace(450, 900, 8))
    right = make_raster("hs.tif", coarse, transform=fine * Affine.scale(RATIO), wavelengths=nm)
    moved = make_raster("moved.tif", coarse, transform=wrong * Affine.scale(RATIO), wavelengths=nm)
    return right, moved, guide


def content(path):
    with rasterio.open(path) as dataset:
        return dataset.read(), dataset.transform, dataset.tags()


@pytest.mark.parametrize("method", ["gsa", "lmmse", "csakd"])
def test_every_method_gives_what_a_right_georeference_gives(moved_pair, tmp_path, method):
    right, moved, guide = moved_pair
    fuse(right, guide, tmp_path / "right.tif", method=method, assess=False)
    result = fuse(moved, guide, tmp_path / "again.tif", method=method, assess=False)
    expected, found = content(tmp_path / "right.tif"), content(tmp_path / "again.tif")
    assert found[1] == expected[1] and (found[0] == expected[0]).all()
    assert found[2]["HYPERSHARP_HS_MOVED"] == f"{-MOVED[0]} {-MOVED[1]}"
    said = [w for w in result.warnings if "moved by 9 down and 12 to the left" in w]
    assert len(said) == 1 and "--no-coregister" in said[0]
    assert result.metrics["inputs"]["grid"]["hs_moved_pixels"] == [9, -12]


def test_a_part_is_moved_as_the_whole_is(moved_pair, tmp_path):
    """An extent too small to tell by itself."""
    _, moved, guide = moved_pair
    box = (450300.0, 5399100.0, 450500.0, 5399300.0)
    fuse(moved, guide, tmp_path / "part.tif", extent=box, assess=False)
    assert content(tmp_path / "part.tif")[2]["HYPERSHARP_HS_MOVED"] == "9 -12"


def test_an_extent_may_lie_where_only_the_right_place_has_the_image(moved_pair, tmp_path):
    """A strip that the wrong georeference leaves out; fused, and scored by what the raster says."""
    _, moved, guide = moved_pair
    strip = (450000.0, 5398700.0, 450090.0, 5399000.0)
    fuse(moved, guide, tmp_path / "strip.tif", extent=strip, method="gsa", assess=False)
    image, transform, _ = content(tmp_path / "strip.tif")
    assert (transform.c, transform.f, image.shape[1:]) == (450000.0, 5399000.0, (30, 9))
    whole, _, _ = content(
        fuse(moved, guide, tmp_path / "w.tif", method="gsa", assess=False).outputs["OUTPUT"]
    )
    assert image.std() > 0 and abs(image.astype(float) - whole[:, 100:130, :9]).mean() < 0.2 * whole.std()
    scored = assess(tmp_path / "strip.tif", moved, guide)
    assert scored.metrics["inputs"]["grid"]["hs_moved_pixels"] == [9, -12]


def test_training_on_a_pair_sees_it_where_it_belongs(moved_pair):
    _, moved, guide = moved_pair
    for on, expected in ((True, (9, -12)), (False, (0, 0))):
        job = TrainJob("weights", "csakd", hs=moved, guide=guide, coregister=on)
        with job_pair(job, Control()) as pair:
            assert pair.grid.hs_moved == expected


@pytest.mark.parametrize("tag", ["", "9", "9 -12 3", "--9 2", "nine 2"])
def test_a_note_that_makes_no_sense_is_found_out_anew(moved_pair, tmp_path, tag):
    _, moved, guide = moved_pair
    fuse(moved, guide, tmp_path / "fused.tif", method="gsa", assess=False)
    with rasterio.open(tmp_path / "fused.tif", "r+") as dataset:
        dataset.update_tags(HYPERSHARP_HS_MOVED=tag)
    scored = assess(tmp_path / "fused.tif", moved, guide)
    assert scored.metrics["inputs"]["grid"]["hs_moved_pixels"] == [9, -12]


def test_switched_off_both_georeferences_are_believed(moved_pair, tmp_path):
    _, moved, guide = moved_pair
    result = fuse(moved, guide, tmp_path / "left.tif", coregister=False, assess=False)
    _, transform, tags = content(tmp_path / "left.tif")
    assert tags["HYPERSHARP_HS_MOVED"] == "0 0"
    assert (transform.c, transform.f) == (450120.0, 5400000.0)
    assert not any("moved" in w for w in result.warnings)
    command = ["fuse", moved, guide, "-o", str(tmp_path / "cli.tif"), "--no-coregister", "--no-assess"]
    assert main(command) == 0
    assert content(tmp_path / "cli.tif")[2]["HYPERSHARP_HS_MOVED"] == "0 0"


@pytest.mark.parametrize("coregister", [True, False])
def test_assess_goes_by_where_the_image_was_taken_to_lie(moved_pair, tmp_path, coregister):
    """The same indices as the fusion's own assessment, found out anew or not."""
    _, moved, guide = moved_pair
    fused = fuse(moved, guide, tmp_path / "fused.tif", coregister=coregister)
    scored = assess(tmp_path / "fused.tif", moved, guide)
    for section in ("reduced_resolution", "full_resolution"):
        expected = fused.metrics[section]["fused"]
        assert scored.metrics[section]["fused"] == pytest.approx(expected, rel=1e-3)
    assert scored.metrics["inputs"]["grid"]["hs_moved_pixels"] == ([9, -12] if coregister else [0, 0])
    off = assess(tmp_path / "fused.tif", moved, guide, coregister=False)
    assert off.metrics["inputs"]["grid"]["hs_moved_pixels"] == [0, 0]


def test_a_raster_of_another_program_is_assessed_where_the_image_belongs(moved_pair, tmp_path, make_raster):
    right, moved, guide = moved_pair
    fuse(right, guide, tmp_path / "right.tif", assess=False)
    image, transform, _ = content(tmp_path / "right.tif")
    other = make_raster("other.tif", image, transform=transform)
    scored = assess(other, moved, guide)
    assert scored.metrics["inputs"]["grid"]["hs_moved_pixels"] == [9, -12]
    off = assess(other, moved, guide, coregister=False)
    assert off.metrics["inputs"]["grid"]["hs_moved_pixels"] == [0, 0]


def test_compare_hands_it_on(moved_pair, tmp_path):
    from hypersharp.backend.comparison import run_compare

    _, moved, guide = moved_pair
    for on in (True, False):
        folder = tmp_path / str(on)
        job = CompareJob(moved, guide, str(folder), methods=["gsa"], coregister=on, report=False)
        run_compare(job, Control())
        metrics = json.loads((folder / "gsa" / "metrics.json").read_text())
        assert metrics["inputs"]["grid"]["hs_moved_pixels"] == ([9, -12] if on else [0, 0])
        warned = json.loads((folder / "compare.json").read_text())["warnings"]
        assert sum("moved by" in w for w in warned) == on


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:32632"])
def test_resampled_pairs_are_moved_too(moved_pair, tmp_path, make_raster, crs):
    """A grid that does not nest, or of another CRS: what a right georeference gives but for the resampling."""
    from rasterio.warp import Resampling, calculate_default_transform, reproject

    right, moved, guide = moved_pair
    images = []
    for name in (right, moved):
        with rasterio.open(name) as dataset:
            image, transform = dataset.read(), dataset.transform * Affine.translation(0.1, 0.2)
            if crs != "EPSG:32631":
                size = calculate_default_transform(
                    "EPSG:32631", crs, dataset.width, dataset.height, *dataset.bounds, resolution=30
                )
                target = np.zeros((len(image), size[2], size[1]), image.dtype)
                reproject(
                    image,
                    target,
                    src_transform=transform,
                    src_crs="EPSG:32631",
                    dst_transform=size[0],
                    dst_crs=crs,
                    resampling=Resampling.cubic,
                )
                image, transform = target, size[0]
        path = make_raster(f"other{len(images)}.tif", image, transform=transform, crs=crs, nodata=0)
        fuse(path, guide, tmp_path / f"fused{len(images)}.tif", method="gsa", assess=False)
        images.append(content(tmp_path / f"fused{len(images)}.tif"))
    (expected, place, _), (found, other, tags) = images
    rows, cols = (int(n) for n in tags["HYPERSHARP_HS_MOVED"].split())
    assert abs(rows - 9) <= 1 and abs(cols + 12) <= 1
    # Both on common ground.
    left, top = (round(v) for v in ~place * (other.c, other.f))
    height = min(found.shape[1], expected.shape[1]) - abs(top) - 6
    width = min(found.shape[2], expected.shape[2]) - abs(left) - 6
    a = found[:, 3 + max(0, -top) :, 3 + max(0, -left) :][:, :height, :width].astype(float)
    b = expected[:, 3 + max(0, top) :, 3 + max(0, left) :][:, :height, :width].astype(float)
    known = (a > 0).all(axis=0) & (b > 0).all(axis=0)
    assert known.mean() > 0.8
    assert np.sqrt(((a - b)[:, known] ** 2).mean()) < 0.2 * b[:, known].std()


def test_without_a_georeference_nothing_is_looked_for(tmp_path, make_raster):
    truth = rough_scene(6, 120, 120)
    hs = degrade(torch.from_numpy(np.roll(truth, 9, 1)).float(), 3, GAIN)[0].numpy().astype("uint16")
    plain = {"transform": Affine.identity(), "crs": None}
    files = make_raster("a.tif", hs, **plain), make_raster("b.tif", truth[:1].astype("uint16"), **plain)
    with Pair(*files, mtf_hs=GAIN, mtf_guide=0.2, control=Control()) as pair:
        assert pair.coregistration is None and pair.grid.hs_moved == (0, 0)


def test_a_guide_of_other_ground_is_told(tmp_path, make_raster):
    fine = Affine(10.0, 0.0, 450000.0, 0.0, -10.0, 5400000.0)
    hs = degrade(torch.from_numpy(rough_scene(6, 240, 240, 1)).float(), 3, GAIN)[0].numpy().astype("uint16")
    guide = rough_scene(1, 240, 240, 2).astype("uint16")
    control = Control()
    files = (
        make_raster("a.tif", hs, transform=fine * Affine.scale(3)),
        make_raster("b.tif", guide, transform=fine),
    )
    with Pair(*files, mtf_hs=GAIN, mtf_guide=0.2, control=control):
        pass
    assert sum("do both show the same ground" in w for w in control.warnings) == 1


def test_smooth_scenes_in_register_raise_no_alarm(pair_files):
    for seed in range(4):
        hs, guide, _ = pair_files(seed=seed, guide_bands=1 + seed)
        control = Control()
        with Pair(hs, guide, mtf_hs=GAIN, mtf_guide=0.2, control=control) as pair:
            assert pair.grid.hs_moved == (0, 0)
        assert not any("ground" in w for w in control.warnings)
