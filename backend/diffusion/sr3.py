# SPDX-License-Identifier: GPL-2.0-or-later
"""The published denoiser of PLRDiff and its relatives, and its conversion: an SR3 UNet told the noise level.

    python -m hypersharp.backend.diffusion.sr3 I190000_E97_gen.pth FOLDER

The checkpoint (ddpm-cd's `I190000_E97_gen.pth`, 391 M parameters, a manual download) is read as plain tensors
(`weights_only=True`) and written as a weights folder, which `PriorSettings.weights` may name.

Architecture: SR3 (Saharia et al., IEEE TPAMI 2022) as ddpm-cd configures it: inner 128, multipliers 1, 2, 4, 8, 8,
two residual blocks a level, self-attention at 1/16, conditioned on the square root of the signal share, which is
added to the features of every block. Written for this project; only parameter names are those of the checkpoint.
"""

from __future__ import annotations

import argparse
import math
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import ErrorCode, HyperSharpError
from ..models.convert import read_checkpoint
from ..models.pretrained import WEIGHTS_NAME, PretrainedModel, from_pretrained, register_model

PREFIXES = ("module.", "netG.", "denoise_fn.")
BUFFERS = re.compile(r"^(betas|alphas_cumprod|alphas_cumprod_prev|sqrt_|log_one_minus|posterior_)")
"""What the checkpoint's diffusion holds beside the network: its own schedule."""


@dataclass(frozen=True)
class SR3Config:
    """Architecture of an SR3 UNet.

    Attributes:
        inner: features of the first level.
        multipliers: features of each level, relative to `inner`.
        blocks: residual blocks a level.
        attention: levels (0 is the full resolution) with self-attention.
        groups: of the group normalisation.
        channels: of the image.
    """

    inner: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 8, 8)
    blocks: int = 2
    attention: tuple[int, ...] = (4,)
    groups: int = 32
    channels: int = 3


class _Swish(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(x)


class _NoiseLevel(nn.Module):
    """Sines and cosines of the noise level, `[n]` to `[n, size]`."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, level: Tensor) -> Tensor:
        half = self.size // 2
        position = torch.arange(half, device=level.device, dtype=level.dtype) / half
        angle = level[:, None] * torch.exp(-math.log(1e4) * position)[None, :]
        return torch.cat([angle.sin(), angle.cos()], dim=1)


class _Affine(nn.Module):
    """Adds a linear function of the noise level to the features."""

    def __init__(self, level: int, features: int) -> None:
        super().__init__()
        self.noise_func = nn.Sequential(nn.Linear(level, features))

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return x + self.noise_func(level)[:, :, None, None]


class _Block(nn.Module):
    """Normalise, swish, convolve; position 2 is the checkpoint's dropout, which only training uses."""

    def __init__(self, inside: int, outside: int, groups: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, inside),
            _Swish(),
            nn.Identity(),
            nn.Conv2d(inside, outside, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.block(x)


class _Residual(nn.Module):
    def __init__(self, inside: int, outside: int, level: int, groups: int) -> None:
        super().__init__()
        self.noise_func = _Affine(level, outside)
        self.block1 = _Block(inside, outside, groups)
        self.block2 = _Block(outside, outside, groups)
        self.res_conv = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        return self.block2(self.noise_func(self.block1(x), level)) + self.res_conv(x)


class _Attention(nn.Module):
    """Self-attention of one head over all pixels."""

    def __init__(self, features: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, features)
        self.qkv = nn.Conv2d(features, 3 * features, 1, bias=False)
        self.out = nn.Conv2d(features, features, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, features, rows, cols = x.shape
        q, k, v = self.qkv(self.norm(x)).view(n, 1, 3 * features, rows * cols).transpose(2, 3).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return x + self.out(mixed[:, 0].transpose(1, 2).reshape(n, features, rows, cols))


class _ResidualAttention(nn.Module):
    def __init__(self, shape: tuple[int, int], level: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.with_attn = attention
        self.res_block = _Residual(*shape, level, groups)
        if attention:
            self.attn = _Attention(shape[1], groups)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = self.res_block(x, level)
        return self.attn(x) if self.with_attn else x


class _Down(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class _Up(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(features, features, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2.0, mode="nearest"))


@register_model("SR3UNet", SR3Config)
class SR3UNet(PretrainedModel):
    """The UNet; a `Denoiser`.

    Args:
        config: architecture.
    """

    def __init__(self, config: SR3Config) -> None:
        super().__init__(config)
        inner, groups, level = config.inner, config.groups, config.inner
        self.multiple = 2 ** (len(config.multipliers) - 1)
        self.noise_level_mlp = nn.Sequential(
            _NoiseLevel(inner), nn.Linear(inner, 4 * inner), _Swish(), nn.Linear(4 * inner, inner)
        )
        features = inner
        kept = [features]
        downs: list[nn.Module] = [nn.Conv2d(config.channels, inner, 3, padding=1)]
        last = len(config.multipliers) - 1
        for depth, factor in enumerate(config.multipliers):
            attention = depth in config.attention
            for _ in range(config.blocks):
                shape = (features, inner * factor)
                downs.append(_ResidualAttention(shape, level, groups, attention))
                features = inner * factor
                kept.append(features)
            if depth < last:
                downs.append(_Down(features))
                kept.append(features)
        self.downs = nn.ModuleList(downs)
        self.mid = nn.ModuleList(
            [_ResidualAttention((features, features), level, groups, first) for first in (True, False)]
        )
        ups: list[nn.Module] = []
        for depth in range(last, -1, -1):
            attention, wide = depth in config.attention, inner * config.multipliers[depth]
            for _ in range(config.blocks + 1):
                ups.append(_ResidualAttention((features + kept.pop(), wide), level, groups, attention))
                features = wide
            if depth > 0:
                ups.append(_Up(features))
        self.ups = nn.ModuleList(ups)
        self.final_conv = _Block(features, config.channels, groups)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        """Return the noise in `x` `[n, 3, rows, cols]` at the levels sqrt(alpha_bar) `[n]`."""
        level = self.noise_level_mlp(level.to(x.dtype))
        kept = []
        for layer in self.downs:
            x = layer(x, level) if isinstance(layer, _ResidualAttention) else layer(x)
            kept.append(x)
        for layer in self.mid:
            x = layer(x, level)
        for layer in self.ups:
            x = (
                layer(torch.cat([x, kept.pop()], 1), level)
                if isinstance(layer, _ResidualAttention)
                else layer(x)
            )
        return self.final_conv(x)

    def epsilon(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """See `Denoiser.epsilon`."""
        return self(x, alpha_bar.sqrt())


def load_sr3(folder: str | Path) -> SR3UNet:
    """Load a converted checkpoint, frozen.

    Raises:
        HyperSharpError: code `no_weights`; see `from_pretrained`.
    """
    model = from_pretrained(folder, SR3UNet)
    if not isinstance(model, SR3UNet):  # `from_pretrained` refuses others; this tells the type checker
        raise TypeError(type(model).__name__)
    return model.requires_grad_(False)


def read_architecture(state: dict[str, Tensor]) -> SR3Config:
    """Return the architecture that a state dict's names and shapes show.

    Args:
        state: parameters of the UNet alone, by the checkpoint's names.

    Raises:
        HyperSharpError: code `no_weights`; it is no such UNet.
    """
    try:
        inner, channels = state["downs.0.weight"].shape[:2]
        widths: list[list[int]] = [[]]
        attention: set[int] = set()
        for index in range(1, 1 + max(int(k.split(".")[1]) for k in state if k.startswith("downs."))):
            conv = state.get(f"downs.{index}.res_block.block1.block.3.weight")
            if conv is None:
                widths.append([])  # a step down
                continue
            widths[-1].append(conv.shape[0])
            if f"downs.{index}.attn.qkv.weight" in state:
                attention.add(len(widths) - 1)
        if len({len(w) for w in widths}) != 1 or any(len(set(w)) != 1 or w[0] % inner for w in widths):
            raise ValueError("levels of different form")
        groups = math.gcd(32, inner)
        return SR3Config(
            inner,
            tuple(w[0] // inner for w in widths),
            len(widths[0]),
            tuple(sorted(attention)),
            groups,
            channels,
        )
    except (KeyError, ValueError, IndexError, TypeError) as error:
        raise HyperSharpError(
            f"this is no SR3 UNet: {error}", "convert ddpm-cd's I190000_E97_gen.pth", ErrorCode.NO_WEIGHTS
        ) from error


def convert_state(state: dict[str, Tensor]) -> SR3UNet:
    """Return the network of a checkpoint's state dict.

    Args:
        state: of ddpm-cd's generator (names begin with `denoise_fn.`), or of the UNet alone.

    Raises:
        HyperSharpError: code `no_weights`; parameters are missing, unknown or of other shapes.
    """
    renamed: dict[str, Tensor] = {}
    for key, value in state.items():
        bare = key
        while bare.startswith(PREFIXES):
            bare = next(bare[len(p) :] for p in PREFIXES if bare.startswith(p))
        if not BUFFERS.match(bare):
            renamed[bare] = value
    model = SR3UNet(read_architecture(renamed))
    try:
        model.load_state_dict({k: v.float() for k, v in renamed.items()})
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise HyperSharpError(
            f"the checkpoint does not fit the network: {lines[min(1, len(lines) - 1)].strip()}",
            "convert ddpm-cd's I190000_E97_gen.pth",
            ErrorCode.NO_WEIGHTS,
        ) from error
    return model.eval()


def convert_checkpoint(path: str | Path, folder: str | Path, half: bool = True) -> SR3UNet:
    """Read a published `.pth` file and write a weights folder; return the network.

    Raises:
        HyperSharpError: code `no_weights`; the file cannot be read safely or is of another network.
    """
    content = read_checkpoint(path)
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise HyperSharpError(
            f"{path} holds no state dict", "give the file that ends in _gen.pth", ErrorCode.NO_WEIGHTS
        )
    model = convert_state(content)
    model.save_pretrained(folder, {"input": {"range": [-1, 1], "channels": model.config.channels}}, half=half)
    return model


def main() -> None:
    """Run the converter from the command line."""
    parser = argparse.ArgumentParser(description="Convert ddpm-cd's SR3 checkpoint into a weights folder.")
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    args = parser.parse_args()
    model = convert_checkpoint(args.checkpoint, args.folder)
    print(f"{Path(args.folder) / WEIGHTS_NAME}: {model.parameter_count()} parameters")


if __name__ == "__main__":
    main()
