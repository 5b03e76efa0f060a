# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import torch
from hypersharp.backend.models.hyfusion import ERFB, HyFusion, HyFusionConfig, split_ratio
from hypersharp.backend.models.swin import SwinLayer, WindowAttention

SMALL = {"width": 8, "depth": 1, "growth": 8, "window": 4, "heads": 2}


@pytest.mark.parametrize(
    ("width", "millions"), [(40, 0.341), (48, 0.401), (96, 0.876), (160, 1.817), (172, 2.032), (192, 2.420)]
)
def test_erfb_parameter_counts(width, millions):
    # The stated counts were taken from the code that forces windows of 4 pixels, its index tables counted in.
    with torch.device("meta"):
        small, real = ERFB(width, window=4), ERFB(width)
    stated = sum(p.numel() for p in small.parameters()) + 4 * 16 * 16
    assert stated / 1e6 == pytest.approx(millions, abs=0.0006)
    heads = sum(layer.attention.heads for layer in real.layers)
    tables = (15**2 - 7**2) * heads
    assert sum(p.numel() for p in real.parameters()) == stated - 4 * 16 * 16 + tables


@pytest.mark.parametrize(
    ("width", "depth", "millions"),
    [(80, 1, 5.04), (80, 2, 7.20), (80, 6, 15.83), (96, 1, 5.86), (96, 2, 8.68), (96, 6, 19.96)],
)
def test_whole_model_counts(width, depth, millions):
    with torch.device("meta"):
        count = HyFusion(HyFusionConfig(width=width, depth=depth, window=4)).parameter_count()
    assert (count + (2 * depth + 1) * 1024) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("guide_bands", [1, 3, 4, 6, 9])
@pytest.mark.parametrize("ratio", [2, 3, 4, 5, 6, 8, 10])
def test_shapes(guide_bands, ratio):
    model = HyFusion(HyFusionConfig(6, guide_bands, ratio, **SMALL))
    out, _ = model(torch.rand(1, 6, 5, 3), torch.rand(1, guide_bands, 5 * ratio, 3 * ratio))
    assert out.shape == (1, 6, 5 * ratio, 3 * ratio)
    first, second = split_ratio(ratio)
    assert first * second == ratio


@pytest.mark.parametrize("shift", [0, 4])
def test_windows_are_shifted_and_isolated(shift):
    torch.manual_seed(0)
    layer = WindowAttention(8, 2, 8, shift)
    x = torch.randn(1, 16, 16, 8)
    changed = x.clone()
    changed[0, 7, 7] += 3.0  # the last pixel of the first unshifted window
    moved = (layer(x) - layer(changed)).abs()[0].amax(-1) > 1e-7
    expected = torch.zeros(16, 16, dtype=torch.bool)
    if shift:
        expected[4:12, 4:12] = True
    else:
        expected[:8, :8] = True
    assert torch.equal(moved, expected)


def test_window_attention_against_written_out_attention():
    torch.manual_seed(1)
    layer = WindowAttention(6, 2, 4, 2)
    torch.nn.init.normal_(layer.position_bias)
    x = torch.randn(1, 5, 7, 6)  # no multiple of the window: the last windows are partial
    out = layer(x)[0]
    q, k, v = layer.qkv(x)[0].split(6, dim=-1)
    for row, col in ((0, 0), (1, 1), (2, 3), (4, 6), (3, 5)):

        def window(i):
            return (i + 2) // 4

        mates = [
            (r, c)
            for r in range(5)
            for c in range(7)
            if window(r) == window(row) and window(c) == window(col)
        ]
        parts = []
        for head in range(2):
            part = slice(3 * head, 3 * head + 3)
            logits = torch.stack(
                [
                    q[row, col, part] @ k[r, c, part] / 3**0.5
                    + layer.position_bias[(row - r + 3) * 7 + (col - c + 3), head]
                    for r, c in mates
                ]
            )
            weights = logits.softmax(0)
            parts.append(sum(w * v[r, c, part] for w, (r, c) in zip(weights, mates)))
        assert torch.allclose(out[row, col], layer.project(torch.cat(parts)), atol=1e-5)


def test_origin_aligns_windows_to_the_scene():
    torch.manual_seed(2)
    layer = SwinLayer(8, 2, 4, 2)
    x = torch.randn(1, 8, 24, 24)
    whole = layer(x)
    tile = layer(x[..., 5:20, 3:20], origin=(5, 3))
    assert torch.allclose(whole[..., 10:14, 10:14], tile[..., 5:9, 7:11], atol=1e-5)
    unaligned = layer(x[..., 5:20, 3:20])
    assert not torch.allclose(whole[..., 10:14, 10:14], unaligned[..., 5:9, 7:11], atol=1e-3)


def test_a_crop_with_its_reach_gives_the_same_pixels():
    torch.manual_seed(3)
    ratio = 4
    model = HyFusion(HyFusionConfig(2, 1, None, 1, width=4, depth=1, growth=4, window=4, heads=1)).eval()
    reach = model.reach(ratio)
    size = 2 * reach + 3
    hs, guide = torch.randn(1, 2, size, size), torch.randn(1, 1, size * ratio, size * ratio)
    with torch.no_grad():
        whole = model(hs, guide)[0]
        crop = model(hs[..., 1:, 1:], guide[..., ratio:, ratio:], (ratio, ratio))[0]
    inner = (reach + 1) * ratio
    assert torch.allclose(whole[..., inner:, inner:], crop[..., inner - ratio :, inner - ratio :], atol=1e-5)


def test_every_parameter_gets_a_gradient():
    model = HyFusion(HyFusionConfig(5, 2, 4, **SMALL))
    out, _ = model(torch.rand(1, 5, 6, 6), torch.rand(1, 2, 24, 24))
    out.square().mean().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in model.parameters())
