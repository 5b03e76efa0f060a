# SPDX-License-Identifier: GPL-2.0-or-later
"""What kernel regression has learned: features of a pixel's surroundings, and how strong each kernel is when.

Our own design, after learned features under a closed-form solver (Bertinetto et al., ICLR 2019, arXiv 1805.08136) and
deep kernels (Wilson et al., AISTATS 2016, arXiv 1511.02222).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional

from .pretrained import PretrainedModel, register_model

FIRST_STRENGTH, FIRST_NOISE, FIRST_SHARE = -3.0, -5.0, 2.0
"""Logarithms, and the share's logit, that training starts from, for every component."""
ORIENTATIONS = 8
TRAINED_ORIENTATIONS = (0, 5)
"""Training sees features averaged too, but over two orientations only: pairs are turned at random as it is."""
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
        members: networks side by side, of `width` and `features` channels each, whose features are put together.
    """

    inputs: int
    terms: int
    facts: int
    width: int = 32
    features: int = 32
    dilations: tuple[int, ...] = (1, 1, 2, 4)
    members: int = 1


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
        sizes = (config.inputs, config.terms, config.facts, config.width, config.features, config.members)
        if min(*sizes, *config.dilations) < 1 or not config.dilations:
            raise ValueError("sizes of at least 1 are needed")
        layers: list[nn.Module] = []
        channels, width, members = config.inputs, config.width * config.members, config.members
        for dilation in config.dilations:
            groups = members if layers else 1
            layers += [
                nn.Conv2d(channels, width, 3, padding=dilation, dilation=dilation, groups=groups),
                nn.SiLU(),
            ]
            channels = width
        self.body = nn.Sequential(*layers, nn.Conv2d(channels, config.features * members, 1, groups=members))
        table = torch.zeros(config.facts, config.terms + 4)
        table[0, : config.terms] = FIRST_STRENGTH
        table[0, config.terms :] = torch.tensor([FIRST_NOISE, FIRST_STRENGTH, 0.0, FIRST_SHARE])
        self.table = nn.Parameter(table / TABLE_UNIT)

    @property
    def reach(self) -> int:
        """Fine pixels that a feature looks at on each side."""
        return sum(self.config.dilations)

    @property
    def pixel_bytes(self) -> int:
        """Memory for each fine pixel: all features in half precision, and some layers of one orientation."""
        config = self.config
        layers = 4 * (config.inputs + 3 * config.width * config.members)
        return 2 * ORIENTATIONS * config.features * config.members + layers

    def forward(self, image: Tensor) -> Tensor:
        """Return the features of planes `[inputs, rows, cols]`, those of all `views` after one another."""
        return torch.cat(list(self.views(image)))

    def views(self, image: Tensor) -> Iterator[Tensor]:
        """Iterate over the features `[members * features, rows, cols]` of several orientations of the image.

        Kernels thus hardly depend on where north is, and features that are seen several times are less noisy. There
        are eight, in training two; scaled so that a kernel of all of them is their kernels' mean.
        """
        orientations = TRAINED_ORIENTATIONS if self.training else tuple(range(ORIENTATIONS))
        scale = (len(orientations) * self.config.members) ** -0.5
        for i in orientations:
            turned = torch.rot90(image, i % 4, (1, 2))
            turned = turned.flip(2) if i >= 4 else turned
            seen = self._by_member(turned[None].contiguous())[0] * scale
            seen = seen.flip(2) if i >= 4 else seen
            yield torch.rot90(seen, -(i % 4), (1, 2))

    def _by_member(self, image: Tensor) -> Tensor:
        """Return what the body makes of `[1, inputs, rows, cols]`, member by member.

        A CPU takes half as long again for convolutions in groups.
        """
        found = []
        for member in range(self.config.members):
            hidden = image
            for layer in self.body:
                if isinstance(layer, nn.Conv2d):
                    count = layer.out_channels // self.config.members
                    own = slice(member * count, (member + 1) * count)
                    hidden = functional.conv2d(
                        hidden,
                        layer.weight[own],
                        None if layer.bias is None else layer.bias[own],
                        padding=layer.padding,
                        dilation=layer.dilation,
                    )
                else:
                    hidden = layer(hidden)
            found.append(hidden)
        return torch.cat(found, dim=1)

    def strengths(self, facts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Return what to expect of each component, from what is known of it, `[K, facts]`.

        Returns:
            The kernels' variances `[K, terms]`, the noise variance beside what is known of it `[K]`, the variance that
            the guide's equation may still change `[K]`, by what that equation's own doubt is multiplied (scalar), and
            how far to go from the closed form's coefficients to the regressed ones, 0 to 1 `[K]`.
        """
        logs = facts @ self.table * TABLE_UNIT
        terms = self.config.terms
        return (
            logs[:, :terms].clamp(-9.0, 5.0).exp(),
            logs[:, terms].clamp(-9.0, 3.0).exp(),
            logs[:, terms + 1].clamp(-12.0, 5.0).exp(),
            logs[:, terms + 2].mean().clamp(-9.0, 9.0).exp(),
            logs[:, terms + 3].sigmoid(),
        )


def joined(members: Sequence[KernelFeatures]) -> KernelFeatures:
    """Return networks of one configuration side by side as one: all their features, the mean of their tables.

    Raises:
        ValueError: there are none, their configurations differ, or they are joined ones themselves.
    """
    if not members or any(m.config != members[0].config or m.config.members != 1 for m in members):
        raise ValueError("members of one configuration are needed, each a single network")
    whole = KernelFeatures(replace(members[0].config, members=len(members)))
    parts = [member.state_dict() for member in members]
    state = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    state["table"] = torch.stack([part["table"] for part in parts]).mean(dim=0)
    whole.load_state_dict(state)
    return whole
