# SPDX-License-Identifier: GPL-2.0-or-later
"""What the sampler needs of a network: the noise in a noisy three-band image, at a stated noise level.

A noisy image is sqrt(a) x + sqrt(1 - a) noise with x in [-1, 1]; a is called `alpha_bar` as in the literature
(Ho et al., NeurIPS 2020). The shipped network is a diffusers `UNet2DModel`; its time input is the log
signal-to-noise ratio on a scale of 0 to 1000 (Kingma et al., NeurIPS 2021, name it as the natural parameter), so
that one network serves any schedule.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from ..errors import ErrorCode, HyperSharpError
from ..models.pretrained import read_config, read_tensors, write_folder

CHANNELS = 3
DIFFUSERS_WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The file name that diffusers' own `from_pretrained` looks for."""
LOG_SNR = (-7.0, 13.0)
"""Log signal-to-noise ratios at times 1000 and 0."""
ARCHITECTURE: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "block_out_channels": (32, 64, 128, 128),
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D",) * 4,
    "up_block_types": ("UpBlock2D",) * 4,
    "norm_num_groups": 8,
    "add_attention": False,
}
"""Of the shipped network: without attention, so that an image of any size is treated alike everywhere."""


@runtime_checkable
class Denoiser(Protocol):
    """A network that finds the noise.

    Attributes:
        multiple: rows and columns of what it takes are multiples of this.
    """

    multiple: int

    def epsilon(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """Return the noise in `x`.

        Args:
            x: `[n, 3, rows, cols]`, noisy.
            alpha_bar: `[n]`, share of the signal's variance, 0 to 1.
        """
        ...


def log_snr_time(alpha_bar: Tensor) -> Tensor:
    """Return the network's time, 0 (clean) to 1000 (noise), of `[n]` signal shares."""
    a = alpha_bar.to(torch.float64)
    log_snr = torch.log(a.clamp_min(1e-12)) - torch.log((1 - a).clamp_min(1e-12))
    low, high = LOG_SNR
    return (1000.0 * (high - log_snr) / (high - low)).clamp(0.0, 1000.0).to(torch.float32)


class UNetDenoiser(nn.Module):
    """A diffusers `UNet2DModel` of three channels, told the noise level as above.

    Args:
        unet: the network; None makes one of `ARCHITECTURE` with random weights.
    """

    def __init__(self, unet: UNet2DModel | None = None) -> None:
        super().__init__()
        self.unet = unet if unet is not None else UNet2DModel(**ARCHITECTURE)
        self.unet.to(memory_format=torch.channels_last)
        self.multiple = 2 ** (len(self.unet.config.block_out_channels) - 1)

    def epsilon(self, x: Tensor, alpha_bar: Tensor) -> Tensor:
        """See `Denoiser.epsilon`."""
        x = x.contiguous(memory_format=torch.channels_last)
        return self.unet(x, log_snr_time(alpha_bar).to(x.device)).sample

    forward = epsilon

    def save_pretrained(
        self,
        folder: str | Path,
        extra: dict[str, Any] | None = None,
        half: bool = False,
        card: str | None = None,
    ) -> None:
        """Write the folder that both `load_denoiser` and diffusers' `UNet2DModel.from_pretrained` read.

        Args:
            folder: made when missing.
            extra: what else belongs into config.json, JSON-ready.
            half: store half precision.
            card: text of `card.md`.
        """
        config = json.loads(self.unet.to_json_string())
        config.pop("_name_or_path", None)
        content = {"class": "UNet2DModel", **config, **(extra or {})}
        write_folder(folder, self.unet, content, half, card, DIFFUSERS_WEIGHTS)


def load_denoiser(folder: str | Path, device: torch.device | str = "cpu") -> Denoiser:
    """Load a denoiser from its folder: the shipped one, one of your own, or a converted SR3 checkpoint.

    Raises:
        HyperSharpError: code `no_weights`: missing, damaged or of another kind.
    """
    content = read_config(folder)
    name = content.get("class")
    if name == "SR3UNet":
        from .sr3 import load_sr3  # the one that needs it pays for it

        return load_sr3(folder).to(device)
    known = set(inspect.signature(UNet2DModel.__init__).parameters)
    if name != "UNet2DModel" or content.get("in_channels") != CHANNELS:
        raise HyperSharpError(
            f"the weights in {folder} are of class {name!r}",
            f"a denoiser of {CHANNELS} channels is needed: class UNet2DModel or SR3UNet",
            ErrorCode.NO_WEIGHTS,
        )
    arguments = {k: v for k, v in content.items() if k in known}
    try:
        # Without memory first: a wrong number in the configuration must not ask for all there is.
        with torch.device("meta"):
            shapes = {k: tuple(v.shape) for k, v in UNet2DModel(**arguments).state_dict().items()}
    except (TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError, IndexError) as error:
        raise HyperSharpError(
            f"the configuration in {folder} is not valid: {str(error).splitlines()[0]}",
            "download or train the weights again",
            ErrorCode.NO_WEIGHTS,
        ) from error
    tensors = read_tensors(Path(folder) / DIFFUSERS_WEIGHTS, shapes)
    unet = UNet2DModel(**arguments)
    unet.load_state_dict({k: v.float() for k, v in tensors.items()})
    return UNetDenoiser(unet).eval().requires_grad_(False).to(device)
