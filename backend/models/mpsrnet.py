# SPDX-License-Identifier: GPL-2.0-or-later
"""MPSRNet, stage two of MPSRNet-Diff: progressive super-resolution by mutually guided Mamba blocks.

Source: Wu et al., IEEE JSTARS 19 (2026), doi 10.1109/JSTARS.2026.3655787, of which the abstract is public and no code:
three inputs at every step (prior HS image, guide, HS image to be refined), intra-input scans and mutually guided
inter-input scans. Everything finer is our reconstruction. Where its relatives use half instance norm, whose statistics
would depend on a tile's extent, plain residual blocks stand here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from .blocks import SLOPE
from .mamba import Pieces, Scan2d, each_norm, scan_images
from .pretrained import PretrainedModel, register_model

BICUBIC_REACH = 2
"""Pixels to each side that bicubic enlarging reads."""
CONV_SIDE = 7
"""Side of the depthwise convolution that stands for a scan in the ablation."""
HEAD_START = 0.01
"""The last layers begin with weights of this standard deviation: a correction of (almost) nothing."""
SCAN, CONV = "scan", "conv"
Area = tuple[tuple[int, int], tuple[int, int]]
"""Rows and columns of coarse pixels."""


@dataclass(frozen=True)
class MPSRNetConfig:
    """Configuration of an MPSRNet; the defaults are the reconstruction's for 172 bands and a guide of four.

    Attributes:
        hs_bands, guide_bands: channels of the HS image and the guide.
        ratio: fine pixels per coarse pixel, with weights for each step; None for any, the steps sharing theirs.
        out_bands: channels of the result; None for `hs_bands`, and the network then refines the HS image itself
            (full-band form); with a number it returns what the caller makes something of (subspace form).
        prior_bands: channels of the prior.
        width: channels of a stream.
        encoder_blocks: residual blocks of each stream before the first scan.
        blocks: mutual-guided Mamba blocks of a step.
        d_state, d_conv, expand: of the scans; see `mamba.Scan2d`.
        patch: pixels along a token's side.
        scan_span: tokens after which a line is cut, at scene coordinates; None for scans over the whole image.
        prior: False leaves the prior out (ablation).
        progressive: False goes the whole ratio in one step (ablation).
        inter: False leaves the mutually guided scans out (ablation).
        mixer: "scan", or "conv" for a depthwise convolution in a scan's place (ablation).
        start: see `PretrainedModel`.
    """

    hs_bands: int = 172
    guide_bands: int = 4
    ratio: int | None = 4
    out_bands: int | None = None
    prior_bands: int = 172
    width: int = 32
    encoder_blocks: int = 1
    blocks: int = 2
    d_state: int = 8
    d_conv: int = 4
    expand: int = 1
    patch: int = 1
    scan_span: int | None = None
    prior: bool = True
    progressive: bool = True
    inter: bool = True
    mixer: str = SCAN
    start: tuple[int, ...] = ()


def step_factors(ratio: int) -> tuple[int, ...]:
    """Return by how much each step enlarges: the ratio's prime factors, the smallest first (8: 2, 2, 2; 6: 2, 3).

    Raises:
        ValueError: the ratio is below 1.
    """
    if ratio < 1:
        raise ValueError(f"the ratio is {ratio}")
    factors, rest, divisor = [], ratio, 2
    while rest > 1:
        while rest % divisor == 0:
            factors.append(divisor)
            rest //= divisor
        divisor += 1
    return tuple(factors) or (1,)


class ResidualBlock(nn.Module):
    """`x + conv(LeakyReLU(conv(x)))`, 3 x 3.

    Args:
        width: channels in and out.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[batch, width, rows, cols]`."""
        return x + self.second(functional.leaky_relu(self.first(x), SLOPE))


class Convolution2d(nn.Module):
    """What a `Scan2d` is with a depthwise convolution instead of the scans; a guide gates it.

    Args:
        width, expand, guided: see `Scan2d`.
    """

    def __init__(self, width: int, expand: int = 1, guided: bool = False) -> None:
        super().__init__()
        d = expand * width
        self.in_proj = nn.Linear(width, 2 * d, bias=False)
        if guided:
            self.in_proj_b = nn.Linear(width, d, bias=False)
        self.conv2d = nn.Conv2d(d, d, CONV_SIDE, padding=CONV_SIDE // 2, groups=d)
        self.norm = nn.LayerNorm(d)
        self.out_proj = nn.Linear(d, width, bias=False)

    def forward(self, x: Tensor, guide: Tensor | None = None) -> Tensor:
        """Return `[batch, rows, cols, width]` of images of that shape."""
        x, z = self.in_proj(x).chunk(2, dim=-1)
        x = functional.silu(self.conv2d(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1))
        if guide is not None:
            x = x * torch.sigmoid(self.in_proj_b(guide))
        out: Tensor = self.out_proj(self.norm(x * functional.silu(z)))
        return out


Mixers = Sequence[nn.Module]


def mix(blocks: Mixers, x: Tensor, guide: Tensor | None, pieces: Pieces) -> Tensor:
    """Run one mixer for each stream, `[streams, batch, rows, cols, width]`."""
    scans = [b for b in blocks if isinstance(b, Scan2d)]
    if len(scans) == len(blocks):
        return scan_images(scans, x, guide, pieces)
    return torch.stack([b(*own) for b, *own in zip(blocks, x, *([] if guide is None else [guide]))])


class MutualBlock(nn.Module):
    """Each stream scans itself, then is scanned as the others steer it, then looks at its neighbours.

    Args:
        streams: the HS image first; it exchanges with each of the others.
        config: see `MPSRNetConfig`.
    """

    def __init__(self, streams: int, config: MPSRNetConfig) -> None:
        super().__init__()
        c, width = config, config.width
        self.pairs = [p for other in range(1, streams) for p in ((0, other), (other, 0))] if c.inter else []
        self.intra_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(streams))
        self.intra = nn.ModuleList(_mixer(c, False) for _ in range(streams))
        norms = streams if self.pairs else 0
        self.inter_norm = nn.ModuleList(nn.LayerNorm(width) for _ in range(norms))
        self.inter = nn.ModuleList(_mixer(c, True) for _ in self.pairs)
        both = streams * width
        self.local = nn.Conv2d(both, both, 3, padding=1, groups=both)
        self.point = nn.Conv2d(both, both, 1, groups=streams)

    def forward(self, x: Tensor, pieces: Pieces) -> Tensor:
        """Return `[streams, batch, rows, cols, width]`.

        Args:
            x: of that shape.
            pieces: how the scans' lines are cut.
        """
        x = x + mix(list(self.intra), each_norm(list(self.intra_norm), x), None, pieces)
        if self.pairs:
            normed = each_norm(list(self.inter_norm), x).unbind(0)
            own = torch.stack([normed[target] for target, _ in self.pairs])
            steering = torch.stack([normed[source] for _, source in self.pairs])
            found = mix(list(self.inter), own, steering, pieces).unbind(0)
            sums = []
            for stream in range(len(x)):
                parts = [f for f, (target, _) in zip(found, self.pairs) if target == stream]
                sums.append(sum(parts[1:], parts[0]) / len(parts))
            x = x + torch.stack(sums)
        streams, batch, rows, cols, width = x.shape
        image = x.permute(1, 0, 4, 2, 3).reshape(batch, streams * width, rows, cols)
        near = self.point(functional.leaky_relu(self.local(image), SLOPE))
        return x + near.view(batch, streams, width, rows, cols).permute(1, 0, 3, 4, 2)


def _mixer(c: MPSRNetConfig, guided: bool) -> nn.Module:
    if c.mixer == CONV:
        return Convolution2d(c.width, c.expand, guided)
    return Scan2d(c.width, c.d_state, c.d_conv, c.expand, guided)


class RefinementStep(nn.Module):
    """One step of the progression: three images of the same size in, a correction out.

    Args:
        config: see `MPSRNetConfig`.
        hs_bands: channels of what is refined.
        out_bands: channels of the correction.
    """

    def __init__(self, config: MPSRNetConfig, hs_bands: int, out_bands: int) -> None:
        super().__init__()
        self.config = c = config
        inputs = [hs_bands, c.guide_bands, *([c.prior_bands] if c.prior else [])]
        self.streams = len(inputs)
        self.encoders = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(bands, c.width, 3, padding=1),
                *(ResidualBlock(c.width) for _ in range(c.encoder_blocks)),
            )
            for bands in inputs
        )
        both = self.streams * c.width
        self.tokens = nn.Conv2d(both, both, c.patch, stride=c.patch, groups=self.streams)
        self.blocks = nn.ModuleList(MutualBlock(self.streams, c) for _ in range(c.blocks))
        self.pixels = nn.Conv2d(both, c.width * c.patch**2, 1)
        self.join = nn.Conv2d(2 * c.width, c.width, 3, padding=1)
        self.last = nn.Conv2d(c.width, out_bands, 3, padding=1, bias=False)
        nn.init.normal_(self.last.weight, std=HEAD_START)

    def forward(self, images: Sequence[Tensor], origin: tuple[int, int]) -> Tensor:
        """Return the correction `[batch, out_bands, rows, cols]`.

        Args:
            images: one for each stream, `[batch, bands, rows, cols]`.
            origin: scene coordinates of the first pixel, at this step's resolution.
        """
        c = self.config
        features = [encode(image) for encode, image in zip(self.encoders, images)]
        rows, cols = features[0].shape[2:]
        top, left = (x % c.patch for x in origin)
        whole = functional.pad(
            torch.cat(features, dim=1), (left, -(left + cols) % c.patch, top, -(top + rows) % c.patch)
        )
        tokens = self.tokens(whole).unflatten(1, (self.streams, c.width)).permute(1, 0, 3, 4, 2)
        pieces = Pieces(c.scan_span, (origin[0] // c.patch, origin[1] // c.patch))
        for number, block in enumerate(self.blocks):
            # Every other block cuts its lines elsewhere, so that no seam is one for all of them.
            half = (c.scan_span or 0) // 2 if number % 2 else 0
            tokens = block(tokens, pieces.moved(half))
        mixed = self.pixels(tokens.permute(1, 0, 4, 2, 3).flatten(1, 2))
        mixed = functional.pixel_shuffle(mixed, c.patch)[:, :, top : top + rows, left : left + cols]
        joined = self.join(torch.cat([mixed, features[0] + features[1]], dim=1))
        out: Tensor = self.last(functional.leaky_relu(joined, SLOPE))
        return out


@register_model("mpsrnet", MPSRNetConfig)
class MPSRNet(PretrainedModel):
    """Progressive super-resolution from the HS image, the guide and a prior.

    Args:
        config: see `MPSRNetConfig`.

    Raises:
        ValueError: a mixer or a size that there is not.
    """

    def __init__(self, config: MPSRNetConfig) -> None:
        super().__init__(config)
        c = config
        if c.mixer not in (SCAN, CONV):
            raise ValueError(f"the mixer is {c.mixer!r}, not {SCAN!r} or {CONV!r}")
        if c.patch < 1 or (c.scan_span is not None and c.scan_span < 2) or (c.prior and c.prior_bands < 1):
            raise ValueError("patch must be at least 1, scan_span 2 and a prior's bands 1")
        self.full_band = c.out_bands is None
        out = c.out_bands or c.hs_bands
        # In the subspace form the HS planes and the result are different things: a step sees both.
        refined = c.hs_bands if self.full_band else c.hs_bands + out
        count = 1 if c.ratio is None else len(self.factors(c.ratio))
        self.steps = nn.ModuleList(RefinementStep(c, refined, out) for _ in range(count))

    @property
    def last(self) -> nn.Conv2d:
        """The last step's last layer, as the other networks name theirs."""
        layer: nn.Conv2d = self.steps[-1].last
        return layer

    def factors(self, ratio: int) -> tuple[int, ...]:
        """Return by how much each step enlarges."""
        return step_factors(ratio) if self.config.progressive else (ratio,)

    def reach(self, ratio: int) -> int:
        """Return how many coarse pixels to each side a fine pixel depends on (scans without a span: all)."""
        return self._reaches(ratio)[0]

    def last_reach(self, ratio: int) -> int:
        """Return on how many coarse pixels around the result the last step computes, which takes the memory."""
        return self._reaches(ratio)[-1]

    def _reaches(self, ratio: int) -> list[int]:
        """Return for each step how many coarse pixels to each side the rest of the way depends on."""
        c = self.config
        convs = 1 + 2 * c.encoder_blocks + 2
        if c.mixer == CONV:
            tokens = c.blocks * (1 + (CONV_SIDE // 2) * (2 if c.inter else 1))
        else:
            # The scans of a block share their cuts: together they reach over one piece.
            tokens = c.blocks * (1 + (c.scan_span or 1) - 1)
        pixels = convs + (tokens + 1) * c.patch - 1
        reaches, total = [], 0.0
        size = math.prod(self.factors(ratio))
        for factor in reversed(self.factors(ratio)):
            total += pixels / size + BICUBIC_REACH / (size // factor)
            size //= factor
            reaches.insert(0, math.ceil(total) + 1)
        return reaches

    def pixel_bytes(self, ratio: int) -> int:
        """Return the peak of working memory in inference, in float32, for each fine pixel of one sample."""
        c = self.config
        streams = 3 if c.prior else 2
        pairs = 2 * (streams - 1) if c.inter else 0
        fine = 2 * streams * c.width + 2 * (c.hs_bands + (c.out_bands or 0)) + c.guide_bands + c.prior_bands
        # All streams' tokens before and after, and one stream's lines, both ways, as they are selected and scanned.
        token = 3 * (streams + pairs) * c.width + 22 * c.expand * c.width + 6 * c.d_state
        return 4 * (fine + token // c.patch**2)

    def forward(
        self,
        hs: Tensor,
        guide: Tensor,
        prior: Tensor | None = None,
        origin: tuple[int, int] = (0, 0),
        keep: Area | None = None,
    ) -> tuple[Tensor, list[Tensor]]:
        """Fuse.

        Args:
            hs: `[batch, hs_bands, rows, cols]`.
            guide: `[batch, guide_bands, rows * ratio, cols * ratio]`.
            prior: `[batch, prior_bands, rows * ratio, cols * ratio]`; not looked at with `prior=False`.
            origin: scene coordinates of the guide's first pixel, a multiple of the ratio (tokens and pieces are
                aligned to the scene, so that tiles fit together).
            keep: rows and columns of `hs` whose result is wanted; None for all. Each step then works on what the
                rest of the way depends on: the first ones, on few pixels, look farthest.

        Returns:
            The result `[batch, out_bands, rows * ratio, cols * ratio]`, of the pixels to keep, and the results of
            every step, coarse to fine, of which it is the last.

        Raises:
            ValueError: sizes that do not fit each other or the configured ratio, or a prior that is missing.
        """
        c = self.config
        ratio = guide.shape[-1] // hs.shape[-1]
        fine = hs.shape[-2] * ratio, hs.shape[-1] * ratio
        if (
            guide.shape[-2:] != fine
            or c.ratio not in (None, ratio)
            or (c.prior and prior is not None and prior.shape[-2:] != fine)
        ):
            raise ValueError(
                f"inputs of {tuple(hs.shape[-2:])} and {tuple(guide.shape[-2:])} pixels do not fit the ratio"
            )
        if c.prior and prior is None:
            raise ValueError("this network needs a prior")
        finest = [guide, *([prior] if c.prior and prior is not None else [])]
        result = hs if self.full_band else hs.new_zeros(len(hs), c.out_bands or 0, *hs.shape[-2:])
        results: list[Tensor] = []
        size = 1
        area = (0, hs.shape[-2]), (0, hs.shape[-1])
        for number, factor in enumerate(self.factors(ratio)):
            if keep is not None:
                needed = _grown(keep, self._reaches(ratio)[number], area)
                hs, result = _cut(hs, area, needed, 1), _cut(result, area, needed, size)
                finest = [_cut(x, area, needed, ratio) for x in finest]
                origin = (
                    origin[0] + (needed[0][0] - area[0][0]) * ratio,
                    (origin[1] + (needed[1][0] - area[1][0]) * ratio),
                )
                area = needed
            size *= factor
            shape = hs.shape[-2] * size, hs.shape[-1] * size
            result = _enlarged(result, shape)
            refined = result if self.full_band else torch.cat([_enlarged(hs, shape), result], dim=1)
            others = [x if size == ratio else functional.avg_pool2d(x, ratio // size) for x in finest]
            place = origin[0] // ratio * size, origin[1] // ratio * size
            step = self.steps[min(number, len(self.steps) - 1)]
            result = result + step([refined, *others], place)
            results.append(result)
        if keep is not None:
            results[-1] = _cut(result, area, keep, ratio)
        return results[-1], results


def _grown(area: Area, margin: int, limits: Area) -> Area:
    """Return an area with so many pixels around it, within another."""
    rows, cols = (
        (max(part[0] - margin, most[0]), min(part[1] + margin, most[1])) for part, most in zip(area, limits)
    )
    return rows, cols


def _cut(image: Tensor, area: Area, part: Area, size: int) -> Tensor:
    """Return part of `[..., rows, cols]`, which covers an area of coarse pixels `size` of its own wide."""
    rows, cols = (slice((p[0] - a[0]) * size, (p[1] - a[0]) * size) for p, a in zip(part, area))
    return image[..., rows, cols]


def _enlarged(x: Tensor, shape: tuple[int, int]) -> Tensor:
    if x.shape[-2:] == shape:
        return x
    return functional.interpolate(x, size=shape, mode="bicubic")
