"""Where pixels lie: nesting, ratios, overlap, extents, rotation, missing georeference."""

import math

import numpy as np
import pytest
import rasterio
from affine import Affine
from hypersharp.backend import fuse
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.grid import pair_grid
from hypersharp.backend.io.raster import RasterInfo
from hypersharp.backend.io.wavelengths import BandTable
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

FINE = Affine(10.0, 0.0, 450000.0, 0.0, -10.0, 5400000.0)
UTM = CRS.from_epsg(32631)


def info(height, width, transform=FINE, crs=UTM, count=8):
    """Describe a raster without a file."""
    table = BandTable([None] * count, [None] * count, [True] * count, [None] * count)
    return RasterInfo(
        "x.tif",
        "raster",
        crs,
        transform,
        not transform.is_identity,
        count,
        height,
        width,
        "uint16",
        None,
        False,
        table,
    )


@given(
    ratio=st.integers(2, 10),
    rows=st.integers(4, 60),
    cols=st.integers(4, 60),
    shift=st.tuples(st.integers(-30, 30), st.integers(-30, 30)),
    angle=st.sampled_from([0.0, 71.0, -13.0]),
)
@settings(max_examples=120, deadline=None)
def test_nested_grids_are_found_exactly(ratio, rows, cols, shift, angle):
    """An HS grid of whole guide pixels nests, whatever its offset or rotation; the area is what both cover."""
    guide_t = FINE * Affine.rotation(angle)
    hs_t = guide_t * Affine.translation(*shift) * Affine.scale(ratio)
    height, width = rows * ratio, cols * ratio
    expected = (
        max(0, shift[1]),
        min(height, shift[1] + height),
        max(0, shift[0]),
        min(width, shift[0] + width),
    )
    if expected[0] >= expected[1] or expected[2] >= expected[3]:
        with pytest.raises(HyperSharpError, match="overlap"):
            pair_grid(info(rows, cols, hs_t), info(height, width, guide_t))
        return
    grid = pair_grid(info(rows, cols, hs_t), info(height, width, guide_t))
    assert grid.nested and grid.ratio == ratio
    assert grid.output_shape == (expected[1] - expected[0], expected[3] - expected[2])
    # Output pixel centres are guide pixel centres.
    col, row = ~guide_t * (grid.output_transform * (0, 0))
    assert (round(row, 6), round(col, 6)) == (expected[0], expected[2])
    # The coarse pixel of the frame's corner is an HS pixel.
    col, row = ~hs_t * (grid.coarse_transform * (0, 0))
    assert (round(row, 6), round(col, 6)) == (grid.hs_row, grid.hs_col)


def test_a_ratio_that_is_no_integer_is_resampled_to_the_nearest_one():
    grid = pair_grid(
        info(38, 60, Affine(30, 0, 450003, 0, -30, 5399998)),
        info(400, 500, Affine(3.6, 0, 450000, 0, -3.6, 5400000)),
    )
    assert not grid.nested
    assert grid.ratio == 8
    assert grid.true_ratio == pytest.approx(30 / 3.6)
    assert any("resampled" in w for w in grid.warnings)


@pytest.mark.parametrize("pixel", [10.0, 14.0, 5.0])
def test_a_guide_that_is_not_finer_is_refused(pixel):
    with pytest.raises(HyperSharpError, match="not finer"):
        pair_grid(info(50, 50, Affine(pixel, 0, 450000, 0, -pixel, 5400000)), info(50, 50))


def test_no_overlap_is_refused():
    away = Affine(40, 0, 900000, 0, -40, 5400000)
    with pytest.raises(HyperSharpError) as caught:
        pair_grid(info(20, 20, away), info(80, 80))
    assert caught.value.code is ErrorCode.NO_OVERLAP


def test_two_crs_over_the_same_ground():
    """An HS image in latitude and longitude is brought to the guide's UTM grid."""
    from rasterio.warp import transform_bounds

    west, south, east, north = transform_bounds(UTM, "EPSG:4326", 450000, 5398000, 452000, 5400000)
    hs_t = Affine((east - west) / 50, 0, west, 0, -(north - south) / 50, north)
    grid = pair_grid(info(50, 50, hs_t, CRS.from_epsg(4326)), info(200, 200))
    assert not grid.nested and grid.ratio == 4
    assert grid.output_shape == (200, 200)


def test_without_georeference_sizes_must_agree():
    bare = Affine.identity()
    grid = pair_grid(info(20, 25, bare, None), info(80, 100, bare, None))
    assert grid.nested and grid.ratio == 4
    assert any("same area" in w for w in grid.warnings)
    with pytest.raises(HyperSharpError, match="integer ratio"):
        pair_grid(info(20, 25, bare, None), info(81, 100, bare, None))


@given(st.floats(450000, 451000), st.floats(1.0, 800.0), st.floats(5398500, 5399900), st.floats(1.0, 800.0))
@settings(max_examples=80, deadline=None)
def test_extents_snap_outwards_to_the_guide(x, width, y, height):
    extent = (x, y, x + width, y + height)
    hs = info(50, 50, FINE * Affine.scale(4))
    try:
        grid = pair_grid(hs, info(200, 200), extent)
    except HyperSharpError as error:
        assert error.code is ErrorCode.NO_OVERLAP
        return
    left, top = grid.output_transform * (0, 0)
    rows, cols = grid.output_shape
    right, bottom = grid.output_transform * (cols, rows)
    clipped = (max(x, 450000), max(y, 5398000), min(x + width, 452000), min(y + height, 5400000))
    assert left <= clipped[0] + 1e-3 and right >= clipped[2] - 1e-3
    assert bottom <= clipped[1] + 1e-3 and top >= clipped[3] - 1e-3
    assert math.isclose((left - 450000) / 10, round((left - 450000) / 10), abs_tol=1e-6)
    # Never more than one pixel beyond what was asked for.
    assert clipped[0] - left < 10.001 and right - clipped[2] < 10.001


def test_an_extent_outside_is_refused():
    with pytest.raises(HyperSharpError, match="outside"):
        pair_grid(info(50, 50, FINE * Affine.scale(4)), info(200, 200), (0, 0, 10, 10))


@pytest.mark.parametrize("ratio", [2, 3, 5, 8])
@pytest.mark.parametrize("shift", [(0, 0), (7, 3), (-5, 4)])
def test_fused_pixels_lie_on_the_ground_where_they_were(make_raster, tmp_path, ratio, shift):
    """Ramps of easting and northing come out as the easting and northing of each fused pixel's centre."""
    rows = cols = 24
    hs_t = FINE * Affine.translation(*shift) * Affine.scale(ratio)

    def ramps(height, width, transform, count):
        c, r = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
        x, y = transform * (c, r)
        east, north = x - 449000, y - 5390000
        return np.stack([east, north, east + north, east - north + 20000, 2 * east][:count]).astype("float32")

    hs = make_raster("hs.tif", ramps(rows, cols, hs_t, 5), transform=hs_t)
    guide = make_raster("guide.tif", ramps(rows * ratio, cols * ratio, FINE, 1))
    out = tmp_path / "out.tif"
    # A hundredth of a fine pixel (10 m) for plain interpolation. A ramp's replicated border spoils regressions a
    # little: a quarter of a pixel, where the smallest possible misplacement would be half of one.
    for method, tolerance in (("bicubic", 0.1), ("gsa", 2.5), ("sfim", 2.5), ("mtf-glp-hpm", 2.5)):
        fuse(hs, guide, out, method=method, assess=False)
        with rasterio.open(out) as fused:
            truth = ramps(fused.height, fused.width, fused.transform, 5)
            got = fused.read()
        border = 4 * ratio
        inner = (slice(None), slice(border, -border), slice(border, -border))
        np.testing.assert_allclose(got[inner], truth[inner], rtol=0, atol=tolerance)
