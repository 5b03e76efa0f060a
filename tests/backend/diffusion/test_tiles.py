# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.control import Control
from hypersharp.backend.diffusion.tiles import TiledNoise, band_groups, ramp, tile_starts
from hypersharp.backend.errors import Cancelled

from .conftest import White, tiny_unet


class Neighbours:
    """A local network: differs from pixel to pixel, but only by its neighbours."""

    multiple = 4

    def epsilon(self, x, alpha_bar):
        weight = torch.full((3, 1, 3, 3), 1 / 9.0, dtype=x.dtype)
        return torch.nn.functional.conv2d(x, weight, padding=1, groups=3).sin()


@pytest.mark.parametrize("size", [1, 40, 64, 65, 100, 333])
def test_tiles_cover_everything_and_overlap(size):
    starts = tile_starts(size, 64, 16)
    covered = torch.zeros(size)
    for start in starts:
        assert start >= 0 and (start + 64 <= size or size < 64)
        covered[start : start + 64] += 1
    assert bool((covered > 0).all())
    assert all(b - a <= 64 - 16 for a, b in zip(starts, starts[1:]))


def test_weights_rise_over_the_overlap():
    weights = ramp(32, 8)
    assert bool((weights > 0).all()) and bool((weights[8:24] == 1).all())
    assert bool((weights[:8].diff() > 0).all()) and torch.equal(weights, weights.flip(0))


@pytest.mark.parametrize("count", range(1, 10))
def test_every_band_goes_through_the_network(count):
    groups = band_groups(count)
    assert all(len(g) == 3 for g in groups) and {b for g in groups for b in g} == set(range(count))
    assert len(groups) == max(1, -(-count // 3))


@pytest.mark.parametrize("bands", [1, 2, 3, 4, 6, 7])
def test_any_number_of_bands_gets_its_own_noise(bands):
    x = torch.randn(bands, 13, 18, generator=torch.Generator().manual_seed(2))
    found = TiledNoise(White(0.25), 8, 4)(x, 0.6, Control())
    torch.testing.assert_close(found, 0.4**0.5 * x / (0.6 * 0.25 + 0.4))


@pytest.mark.parametrize("shape", [(30, 41), (64, 64), (97, 50), (5, 3)])
def test_tiles_of_a_local_network_are_the_whole(shape):
    """Away from the image's border, where the network sees padding, blending changes nothing."""
    x = torch.randn(3, *shape, generator=torch.Generator().manual_seed(3))
    whole = TiledNoise(Neighbours(), 512, 16)(x, 0.5, Control())
    tiled = TiledNoise(Neighbours(), 32, 16)(x, 0.5, Control())
    # A tile's outermost pixel sees padding; its weight is next to nothing.
    assert float((whole - tiled).abs().max()) < 0.02


def test_there_is_no_step_across_a_tile_border():
    net = tiny_unet().requires_grad_(False)
    x = torch.nn.functional.avg_pool2d(
        torch.randn(1, 3, 100, 100, generator=torch.Generator().manual_seed(4)), 5, 1, 2
    )[0]
    found = TiledNoise(net, 48, 16)(x, 0.9, Control())
    starts = tile_starts(104, 48, 16)
    step = found.diff(dim=2).abs().mean(dim=(0, 1))
    borders = sorted({s // 2 * 2 for s in starts[1:]} | {s // 2 * 2 + 48 for s in starts[:-1]})
    for border in (b for b in borders if b < 100):
        near = step[border - 2 : border + 1].mean()
        around = torch.cat([step[border - 10 : border - 2], step[border + 1 : border + 9]]).mean()
        assert float(near / around) < 1.5, border


def test_recomputed_tiles_give_the_same_gradient():
    net = tiny_unet(1).requires_grad_(False)
    x = torch.randn(3, 72, 72, generator=torch.Generator().manual_seed(5))
    gradients = []
    for many in (0, 1000):
        v = x.clone().requires_grad_()
        import hypersharp.backend.diffusion.tiles as tiles

        kept, tiles.FEW_TILES = tiles.FEW_TILES, many
        try:
            loss = TiledNoise(net, 32, 8)(v, 0.7, Control()).square().sum()
        finally:
            tiles.FEW_TILES = kept
        gradients.append(torch.autograd.grad(loss, v)[0])
    torch.testing.assert_close(*gradients)


def test_a_cancel_is_heard_between_tiles():
    net = White()
    answers = iter([False, False, True])
    with pytest.raises(Cancelled):
        TiledNoise(net, 16, 4)(torch.zeros(3, 64, 64), 0.5, Control(None, lambda: next(answers)))
    assert net.calls == 2
