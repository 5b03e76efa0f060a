# SPDX-License-Identifier: GPL-2.0-or-later
"""Of a tile's context the learned methods need coefficients: they are made strip by strip, without the image."""

import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.degradation import degrade
from hypersharp.backend.io.source import TensorSource
from hypersharp.backend.methods import context
from hypersharp.backend.methods.context import coefficients_by_strips, narrowed, strips, widened
from hypersharp.backend.methods.learned_base import fit_closed_form
from hypersharp.backend.scene import Scene
from memory import MemoryWatch
from scenes import rough_scene

RATIO, SIDE, BANDS = 3, 126, 40


@pytest.fixture(params=["whole", "gaps", "shifted"])
def scene(request):
    truth = torch.as_tensor(rough_scene(BANDS, SIDE, SIDE, seed=3)).float()
    guide = truth[5:25].mean(0, keepdim=True)
    if request.param == "shifted":
        guide = torch.roll(guide, (1, -1), (1, 2))
    mask = torch.ones(SIDE, SIDE, dtype=torch.bool)
    if request.param == "gaps":
        mask[40:75, 20:60] = False
    hs, hs_mask = degrade(truth, RATIO, 0.3, mask)
    return Scene(TensorSource(hs, hs_mask), TensorSource(guide, mask), RATIO, 0.3, 0.3)


@pytest.fixture
def narrow(monkeypatch):
    """Strips of one coarse row."""
    monkeypatch.setattr(context, "STRIP_BYTES", 1)


def test_strips_give_what_the_whole_tile_gives(scene, narrow):
    closed = fit_closed_form(scene, Control())
    margin = 4
    tile = widened(scene.tile((30, 80), (36, 100), closed.halo + margin), margin)
    bands = [0, 7, 31]
    for form in (closed.method, *closed.others.values()):
        image = form.fuse(tile)
        coefficients, seen = coefficients_by_strips(form, closed.subspace, tile, bands)
        whole = closed.subspace.coefficients(image)
        assert torch.allclose(coefficients, whole, rtol=1e-3, atol=1e-3 * float(whole.std()))
        assert torch.allclose(seen, image[bands], rtol=1e-3, atol=1e-3 * float(image.std()))


def test_strips_cover_the_tile_in_whole_coarse_rows(scene, narrow):
    tile = scene.tile((30, 81), (36, 99), 6)
    found = list(strips(tile, 6))
    assert [rows for rows, _ in found] == [(n, n + RATIO) for n in range(0, 51, RATIO)]
    for (start, stop), strip in found:
        assert strip.rows == (30 + start, 30 + stop) and strip.cols == tile.cols
        assert torch.equal(strip.guide_core, tile.guide_core[:, start:stop])
        assert torch.equal(strip.mask, tile.mask[start:stop])


def test_a_narrowed_tile_is_what_would_have_been_read(scene):
    wide, rows = scene.tile((12, 102), (36, 99), 6), (48, 60)
    cut, read = narrowed(wide, rows, 6), scene.tile(rows, (36, 99), 6)
    assert (cut.rows, cut.coarse_rows, cut.fine_rows) == (read.rows, read.coarse_rows, read.fine_rows)
    known = read.hs_mask
    assert torch.equal(cut.hs[:, known], read.hs[:, known]) and torch.equal(cut.hs_mask, known)
    assert torch.equal(cut.guide[:, read.guide_mask], read.guide[:, read.guide_mask])
    assert torch.equal(cut.mask, read.mask)


def test_the_image_of_the_context_is_never_there(scene, narrow):
    closed = fit_closed_form(scene, Control())
    tile = widened(scene.tile((0, SIDE), (0, SIDE), closed.halo), 0)
    with MemoryWatch() as watch:
        coefficients_by_strips(closed.others["gsa"], closed.part(0, 3), tile)
    with MemoryWatch() as whole:
        closed.others["gsa"].fuse(tile)
    image = 4 * BANDS * SIDE**2
    assert watch.most < 0.5 * image < image < whole.most
