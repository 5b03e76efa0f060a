# SPDX-License-Identifier: GPL-2.0-or-later
"""The learned methods' networks in the subspace form, at compact widths, and how each is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Union

from torch import nn

from ..methods.learned_planes import COARSE_PLANES, FINE_PLANES, OUTPUTS, PRIOR_PLANES, START_SHAPE
from ..models.hyfusion import HyFusion, HyFusionConfig
from ..models.mbfn import MBFN, MBFNConfig
from ..models.mpsrnet import MPSRNet, MPSRNetConfig
from ..models.pretrained import PretrainedModel

COMPONENTS = 6
"""Components that are corrected; the others stay as the closed form has them."""

_TEACHER = MBFNConfig(
    COARSE_PLANES,
    FINE_PLANES,
    None,
    OUTPUTS,
    width=32,
    growth=16,
    blocks=(2, 1, 1, 1),
    dense=1,
    attention=8,
    heads=2,
    window=15,
    start=START_SHAPE,
)
# The fused features that are distilled ask for the teacher's width.
_STUDENT = replace(_TEACHER, blocks=(0, 1, 1, 1), hs_groups=16)
_HYFUSION = HyFusionConfig(
    COARSE_PLANES, FINE_PLANES, None, OUTPUTS, width=16, depth=1, growth=8, heads=2, start=START_SHAPE
)
_MPSRNET = MPSRNetConfig(
    COARSE_PLANES,
    FINE_PLANES,
    None,
    OUTPUTS + 1,
    PRIOR_PLANES,
    width=16,
    blocks=1,
    d_state=4,
    patch=2,
    scan_span=32,
    start=START_SHAPE,
)

Config = Union[MBFNConfig, HyFusionConfig, MPSRNetConfig]


@dataclass(frozen=True)
class Preset:
    """How a learned method is made.

    Attributes:
        config: of its network.
        student: of the network that is trained beside it and then is the method's own; None for none.
        swt: weight of the wavelet term of the loss.
        prior: whether the network takes a prior (stage one of MPSRNet-Diff).
    """

    config: Config
    student: MBFNConfig | None = None
    swt: float = 0.0
    prior: bool = False


PRESETS: dict[str, Preset] = {
    "s3rnet": Preset(_TEACHER),
    "csakd": Preset(_TEACHER, _STUDENT),
    "hyfusion": Preset(_HYFUSION, swt=0.05),
    "mpsrnet-diff": Preset(_MPSRNET, prior=True),
}
"""By method. CSAKD's teacher owes its student nothing: it is S3RNet's network, trained as that is."""


def build(config: Config) -> PretrainedModel:
    """Return a network that begins as a correction of (almost) nothing."""
    networks = {MBFNConfig: MBFN, HyFusionConfig: HyFusion, MPSRNetConfig: MPSRNet}
    model: PretrainedModel = networks[type(config)](config)
    nn.init.normal_(model.last.weight, std=0.001)
    return model
