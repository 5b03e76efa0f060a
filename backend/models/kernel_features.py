# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernel regression has learned: features of a pixel's surroundings, and how strong each kernel is when.

Our own design, after learned features under a closed-form solver (Bertinetto et al., ICLR 2019, arXiv 1805.08136) and
deep kernels (Wilson et al., AISTATS 2016, arXiv 1511.02222).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .pretrained import PretrainedModel, register_model

FIRST_STRENGTH, FIRST_NOISE = -3.0, -5.0
"""Logarithms that training starts from, for every component."""
ORIENTATIONS = 8
TABLE_UNIT = 30.0
"""Logarithms are kept in units of this, so that one learning rate suits them and the convolutions."""


@dataclass(frozen=True)
class KernelConfig:
    """Sizes.

    Attributes:
        inputs: planes of a pixel.
        terms: kernels that are added up.
        facts: numbers that are known of a component.
        width: channels of the hidden layers.
        features: channels that come out.
        dilations: of the layers of 3 x 3 convolutions.
    """

    inputs: int
    terms: int
    facts: int
    width: int = 32
    features: int = 32
    dilations: tuple[int, ...] = (1, 1, 2, 4)


@register_model("kernel-features", KernelConfig)
class KernelFeatures(PretrainedModel):
    """A small convolutional network for the features, and a log-linear model of the kernels' strengths.

    Args:
        config: its sizes.

    Raises:
        ValueError: a size below 1.
    """

    def __init__(self, config: KernelConfig) -> None:
        super().__init__(config)
        sizes = (config.inputs, config.terms, config.facts, config.width, config.features, *config.dilations)
        if min(sizes) < 1 or not config.dilations:
            raise ValueError("sizes of at least 1 are needed")
        layers: list[nn.Module] = []
        channels = config.inputs
        for dilation in config.dilations:
            layers += [nn.Conv2d(channels, config.width, 3, padding=dilation, dilation=dilation), nn.SiLU()]
            channels = config.width
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, config.features, 1))
        table = torch.zeros(config.facts, config.terms + 3)
        table[0, : config.terms + 1] = FIRST_STRENGTH
        table[0, config.terms : config.terms + 2] = torch.tensor([FIRST_NOISE, FIRST_STRENGTH])
        self.table = nn.Parameter(table / TABLE_UNIT)

    @property
    def reach(self) -> int:
        """Fine pixels that a feature looks at on each side."""
        return sum(self.config.dilations)

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of planes `[inputs, rows, cols]`.

        Returns:
            `[features, rows, cols]` in training; else those of all eight orientations of the image, so that kernels do
            not depend on where north is: `[8 features, rows, cols]`.
        """
        if self.training:
            return self.body(image[None])[0]
        found = image.new_empty(ORIENTATIONS, self.config.features, *image.shape[1:])
        for i in range(ORIENTATIONS):
            turned = torch.rot90(image, i % 4, (1, 2))
            turned = turned.flip(2) if i >= 4 else turned
            seen = self.body(turned[None].contiguous())[0]
            seen = seen.flip(2) if i >= 4 else seen
            found[i] = torch.rot90(seen, -(i % 4), (1, 2))
        return found.flatten(0, 1).div_(ORIENTATIONS**0.5)

    def strengths(self, facts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return what to expect of each component, from what is known of it, `[K, facts]`.

        Returns:
            The kernels' variances `[K, terms]`, the noise variance beside what is known of it `[K]`, the variance that
            the guide's equation may still change `[K]`, and by what that equation's own doubt is multiplied (scalar).
        """
        logs = facts @ self.table * TABLE_UNIT
        terms = self.config.terms
        return (
            logs[:, :terms].clamp(-9.0, 5.0).exp(),
            logs[:, terms].clamp(-9.0, 3.0).exp(),
            logs[:, terms + 1].clamp(-12.0, 5.0).exp(),
            logs[:, terms + 2].mean().clamp(-9.0, 9.0).exp(),
        )
