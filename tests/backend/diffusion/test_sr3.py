# SPDX-License-Identifier: GPL-2.0-or-later
"""The published checkpoint is a manual download: its names and shapes are written out here, at a narrow width."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypersharp.backend.diffusion.denoiser import Denoiser, load_denoiser
from hypersharp.backend.diffusion.sr3 import SR3Config, SR3UNet, convert_checkpoint, convert_state
from hypersharp.backend.errors import ErrorCode, HyperSharpError

MULTIPLIERS = (1, 2, 4, 8, 8)


def official_shapes(inner, multipliers=MULTIPLIERS, blocks=2):
    """Names and shapes of ddpm-cd's UNet: attention at the lowest level and in the middle."""
    shapes = {}

    def layer(name, out, inside, k=None):
        shapes[f"{name}.weight"] = (out, inside) if k is None else (out, inside, k, k)
        shapes[f"{name}.bias"] = (out,)

    def norm(name, size):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (size,)

    def resnet(name, inside, out, attention):
        layer(f"{name}.res_block.noise_func.noise_func.0", out, inner)
        for part, size in (("block1", inside), ("block2", out)):
            norm(f"{name}.res_block.{part}.block.0", size)
            layer(f"{name}.res_block.{part}.block.3", out, size, 3)
        if inside != out:
            layer(f"{name}.res_block.res_conv", out, inside, 1)
        if attention:
            norm(f"{name}.attn.norm", out)
            shapes[f"{name}.attn.qkv.weight"] = (3 * out, out, 1, 1)
            layer(f"{name}.attn.out", out, out, 1)

    layer("noise_level_mlp.1", 4 * inner, inner)
    layer("noise_level_mlp.3", inner, 4 * inner)
    layer("downs.0", inner, 3, 3)
    size, kept, index, last = inner, [inner], 1, len(multipliers) - 1
    for depth, factor in enumerate(multipliers):
        for _ in range(blocks):
            resnet(f"downs.{index}", size, inner * factor, depth == last)
            size = inner * factor
            kept.append(size)
            index += 1
        if depth < last:
            layer(f"downs.{index}.conv", size, size, 3)
            kept.append(size)
            index += 1
    resnet("mid.0", size, size, True)
    resnet("mid.1", size, size, False)
    index = 0
    for depth in range(last, -1, -1):
        for _ in range(blocks + 1):
            resnet(f"ups.{index}", size + kept.pop(), inner * multipliers[depth], depth == last)
            size = inner * multipliers[depth]
            index += 1
        if depth:
            layer(f"ups.{index}.conv", size, size, 3)
            index += 1
    norm("final_conv.block.0", size)
    layer("final_conv.block.3", 3, size, 3)
    return shapes


def official_state(inner, prefix="denoise_fn.", **options):
    generator = torch.Generator().manual_seed(7)
    state = {}
    for name, shape in official_shapes(inner, **options).items():
        fan = max(1, math.prod(shape[1:]))
        state[prefix + name] = torch.randn(shape, generator=generator) / fan**0.5
    if prefix:
        state |= {name: torch.ones(2000) for name in ("betas", "alphas_cumprod", "sqrt_recip_alphas_cumprod")}
        state |= {"posterior_variance": torch.ones(2000), "log_one_minus_alphas_cumprod": torch.ones(2000)}
    return state


def reference_forward(s, x, level, inner, multipliers, groups):
    """The network written straight from its description, on the official names."""

    def conv(name, v, **options):
        return F.conv2d(v, s[f"{name}.weight"], s.get(f"{name}.bias"), **options)

    def block(name, v):
        v = F.silu(F.group_norm(v, groups, s[f"{name}.block.0.weight"], s[f"{name}.block.0.bias"]))
        return conv(f"{name}.block.3", v, padding=1)

    def resnet(name, v):
        h = block(f"{name}.res_block.block1", v)
        key = f"{name}.res_block.noise_func.noise_func.0"
        h = h + F.linear(level_code, s[f"{key}.weight"], s[f"{key}.bias"])[:, :, None, None]
        h = block(f"{name}.res_block.block2", h)
        v = h + (conv(f"{name}.res_block.res_conv", v) if f"{name}.res_block.res_conv.weight" in s else v)
        if f"{name}.attn.norm.weight" in s:
            n, c, rows, cols = v.shape
            q = F.group_norm(v, groups, s[f"{name}.attn.norm.weight"], s[f"{name}.attn.norm.bias"])
            q, k, val = conv(f"{name}.attn.qkv", q).flatten(2).chunk(3, dim=1)
            share = torch.softmax(torch.einsum("ncp,ncq->npq", q, k) / c**0.5, dim=-1)
            v = v + conv(f"{name}.attn.out", torch.einsum("npq,ncq->ncp", share, val).view(n, c, rows, cols))
        return v

    frequency = torch.exp(-math.log(1e4) * torch.arange(inner // 2) / (inner // 2))
    code = torch.cat([(level[:, None] * frequency).sin(), (level[:, None] * frequency).cos()], dim=1)
    code = F.silu(F.linear(code, s["noise_level_mlp.1.weight"], s["noise_level_mlp.1.bias"]))
    level_code = F.linear(code, s["noise_level_mlp.3.weight"], s["noise_level_mlp.3.bias"])
    kept, index = [conv("downs.0", x, padding=1)], 1
    for depth in range(len(multipliers)):
        for _ in range(2):
            kept.append(resnet(f"downs.{index}", kept[-1]))
            index += 1
        if depth < len(multipliers) - 1:
            kept.append(conv(f"downs.{index}.conv", kept[-1], stride=2, padding=1))
            index += 1
    v = resnet("mid.1", resnet("mid.0", kept[-1]))
    index = 0
    for depth in range(len(multipliers) - 1, -1, -1):
        for _ in range(3):
            v = resnet(f"ups.{index}", torch.cat([v, kept.pop()], dim=1))
            index += 1
        if depth:
            v = conv(f"ups.{index}.conv", F.interpolate(v, scale_factor=2), padding=1)
            index += 1
    return block("final_conv", v)


def test_the_full_network_has_the_published_size_and_names():
    with torch.device("meta"):
        model = SR3UNet(SR3Config())
    assert model.parameter_count() / 1e6 == pytest.approx(391.05, abs=0.005)
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == official_shapes(128)


@pytest.mark.parametrize("prefix", ["denoise_fn.", "module.denoise_fn.", ""])
def test_a_checkpoint_becomes_a_denoiser(tmp_path, prefix):
    inner = 8
    torch.save(official_state(inner, prefix), tmp_path / "gen.pth")
    convert_checkpoint(tmp_path / "gen.pth", tmp_path / "w", half=False)
    denoiser = load_denoiser(tmp_path / "w")
    assert isinstance(denoiser, Denoiser) and denoiser.multiple == 16
    generator = torch.Generator().manual_seed(3)
    x, share = torch.randn(2, 3, 32, 48, generator=generator), torch.tensor([0.2, 0.95])
    bare = {k.removeprefix(prefix): v for k, v in official_state(inner, prefix).items()}
    wanted = reference_forward(bare, x, share.sqrt(), inner, MULTIPLIERS, 8)
    with torch.no_grad():
        found = denoiser.epsilon(x, share)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert float((found[0] - denoiser.epsilon(x, share.flip(0))[0]).abs().max()) > 1e-3


def test_the_architecture_is_read_from_the_shapes():
    model = convert_state(official_state(16, multipliers=(1, 2, 4), blocks=1))
    assert model.config == SR3Config(16, (1, 2, 4), 1, (2,), 16, 3)


@pytest.mark.parametrize("change", ["missing", "shape", "unknown", "other"])
def test_what_is_no_such_checkpoint_is_refused(change):
    state = official_state(8)
    if change == "missing":
        del state["denoise_fn.mid.0.attn.out.bias"]
    if change == "shape":
        state["denoise_fn.ups.0.res_block.block1.block.3.weight"] = torch.zeros(3, 3, 3, 3)
    if change == "unknown":
        state["denoise_fn.extra.weight"] = torch.zeros(2)
    if change == "other":
        state = {"conv.weight": torch.zeros(3, 3, 3, 3)}
    with pytest.raises(HyperSharpError) as caught:
        convert_state(state)
    assert caught.value.code == ErrorCode.NO_WEIGHTS


class Evil:
    def __reduce__(self):
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path, capsys):
    torch.save({"denoise_fn.downs.0.weight": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(HyperSharpError):
        convert_checkpoint(tmp_path / "evil.pth", tmp_path / "w")
    assert "unpickled" not in capsys.readouterr().out
