# SPDX-License-Identifier: GPL-2.0-or-later
"""Converts checkpoints of the official CSAKD/S3RNet code into this package's weights folders.

    python -m hypersharp.backend.models.convert CHECKPOINT.pth FOLDER [--ratio R] [--hs-scale V] [--guide-scale V]

The folder is in the full-band form (docs/full-band.md): `fuse --method s3rnet --weights FOLDER` takes it, for the
bands, guide and ratio that it was trained for. Only tensors are read (`weights_only=True`): a checkpoint with anything
else in it is refused.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ErrorCode, HyperSharpError
from ..job import FULL_BAND
from .mbfn import MBFN, MBFNConfig

RANGE = (-1, 1)
"""To where the official code moves its data from [0, 1]."""
_PREFIXES = ("_orig_mod.", "module.", "decoder.")
_PARTS = {
    "hmconv1": "joint_fine_in",
    "mhconv1": "joint_coarse_in",
    "hconv1": "hs_in",
    "mconv1": "guide_in",
    "hmfeat": "joint_fine",
    "mhfeat": "joint_coarse",
    "hfeat": "hs",
    "mfeat": "guide",
    "fuse": "expand",
    "last": "last",
}
_FUSER = {
    "query_conv": "query",
    "key_conv": "key",
    "value_conv": "value",
    "output_conv": "project",
    "attention_weights": "gate",
}
_BLOCK = re.compile(r"^(\w+feat)\.(\d+)\.MFB([123])\.conv([1-5])\.(weight|bias)$")


def strip_prefixes(key: str) -> str:
    """Return a key without what torch.compile, DataParallel and the official wrapper put before it."""
    while True:
        for prefix in _PREFIXES:
            if key.startswith(prefix):
                key = key[len(prefix) :]
                break
        else:
            return key


def convert_key(key: str) -> str | None:
    """Return our name of an official parameter, or None where the network has no such part."""
    key = strip_prefixes(key)
    block = _BLOCK.match(key)
    if block:
        part, index, dense, conv, kind = block.groups()
        return f"{_PARTS[part]}.{index}.blocks.{int(dense) - 1}.convs.{int(conv) - 1}.{kind}"
    head, _, rest = key.partition(".")
    if head == "fuse_att":
        name, _, kind = rest.partition(".")
        return f"fuser.{_FUSER[name]}.{kind}" if name in _FUSER else None
    return f"{_PARTS[head]}.{rest}" if head in _PARTS and rest in ("weight", "bias") else None


def convert_state(state: dict[str, Tensor], student: bool | None = None, ratio: int = 4) -> MBFN:
    """Return the network of an official state dict.

    The student's branch Z has a block that its forward pass never runs; it is left out.

    Args:
        state: parameters by official name (`FNN_Teacher` or `FNN_Student`), with or without prefixes.
        student: whether it is a student; None to see it from the grouped convolutions of its HS branch.
        ratio: the ratio that it was trained for.

    Raises:
        HyperSharpError: code `no_weights`; parameters are missing, unknown or of other shapes.
    """
    renamed: dict[str, Tensor] = {}
    unknown: list[str] = []
    for key, value in state.items():
        name = convert_key(key)
        if name is None:
            unknown.append(key)
        else:
            renamed[name] = value
    hint = "convert checkpoints of FNN_Teacher or FNN_Student with adaptive_fuse=3"
    needed = ("hs_in.weight", "guide_in.weight", "last.weight", "hs.0.blocks.0.convs.0.weight")
    if unknown or any(name not in renamed for name in needed):
        what = f"it has {unknown[0]}" if unknown else "parts of the network are missing"
        raise HyperSharpError(f"this is no checkpoint of CSAKD or S3RNet: {what}", hint, ErrorCode.NO_WEIGHTS)
    width, hs_bands = renamed["hs_in.weight"].shape[:2]
    first = renamed["hs.0.blocks.0.convs.0.weight"]
    groups = width // first.shape[1]
    if student is None:
        student = groups > 1
    if student:
        renamed = {k: v for k, v in renamed.items() if not re.match(r"joint_fine\.\d", k)}
    blocks = tuple(
        1 + max((int(k.split(".")[1]) for k in renamed if re.match(rf"{part}\.\d", k)), default=-1)
        for part in ("joint_fine", "joint_coarse", "hs", "guide")
    )
    try:
        model = MBFN(
            MBFNConfig(
                hs_bands,
                renamed["guide_in.weight"].shape[1],
                ratio,
                width=width,
                growth=first.shape[0],
                blocks=blocks,
                hs_groups=groups,
                attention=renamed["fuser.query.weight"].shape[0],
            )
        )
        model.load_state_dict({k: v.float() for k, v in renamed.items()})
    except (RuntimeError, KeyError, ValueError, ZeroDivisionError) as error:
        raise HyperSharpError(
            f"the checkpoint does not fit the network: {str(error).splitlines()[0]}",
            hint,
            ErrorCode.NO_WEIGHTS,
        ) from error
    return model.eval()


def read_checkpoint(path: str | Path) -> Any:
    """Return what a `.pth` file holds, read without unpickling anything but tensors and plain containers.

    Raises:
        HyperSharpError: code `no_weights`; the file cannot be read so.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for what is no plain checkpoint
        raise HyperSharpError(
            f"cannot read {path} as plain tensors: {str(error).splitlines()[0]}",
            "a checkpoint must hold a state dict and nothing else",
            ErrorCode.NO_WEIGHTS,
        ) from error


def convert_checkpoint(
    path: str | Path,
    folder: str | Path,
    ratio: int = 4,
    hs_scale: float | None = None,
    guide_scale: float | None = None,
) -> MBFN:
    """Read an official `.pth` file and write a weights folder; return the network.

    Args:
        path: of the file.
        folder: to write.
        ratio: that it was trained for.
        hs_scale, guide_scale: values of the HS image and of the guide that become 1, in the units of the images to
            be fused; None, as nobody published them, for the 99.9 % quantile of each scene.

    Raises:
        HyperSharpError: the file cannot be read safely or is of another network (code `no_weights`), or a scale or
            the ratio is not positive (code `usage`).
    """
    if ratio < 1 or any(s is not None and not 0 < s < float("inf") for s in (hs_scale, guide_scale)):
        raise HyperSharpError(
            f"the ratio is {ratio}, the scales are {hs_scale} and {guide_scale}",
            "give positive numbers",
            ErrorCode.USAGE,
        )
    content = read_checkpoint(path)
    if isinstance(content, dict) and isinstance(content.get("state_dict"), dict):
        content = content["state_dict"]
    if not isinstance(content, dict) or not all(isinstance(v, Tensor) for v in content.values()):
        raise HyperSharpError(
            f"{path} holds no state dict", "save the model's state_dict()", ErrorCode.NO_WEIGHTS
        )
    model = convert_state(content, ratio=ratio)
    entry = {
        "form": FULL_BAND,
        "hs_bands": model.config.hs_bands,
        "guide_bands": model.config.guide_bands,
        "ratio": ratio,
        "hs_scale": hs_scale,
        "guide_scale": guide_scale,
        "range": list(RANGE),
    }
    model.save_pretrained(folder, {"input": entry})
    return model


def main() -> None:
    """Run the converter from the command line."""
    parser = argparse.ArgumentParser(description="Convert an official CSAKD/S3RNet checkpoint.")
    parser.add_argument("checkpoint")
    parser.add_argument("folder")
    parser.add_argument("--ratio", type=int, default=4, help="that it was trained for (default 4)")
    for name in ("hs", "guide"):
        parser.add_argument(
            f"--{name}-scale", type=float, help=f"{name} value that becomes 1 (default: from each scene)"
        )
    args = parser.parse_args()
    try:
        model = convert_checkpoint(args.checkpoint, args.folder, args.ratio, args.hs_scale, args.guide_scale)
    except HyperSharpError as error:
        parser.exit(error.exit_code, f"error: {error.message}\nhint: {error.hint}\n")
    print(f"{args.folder}: {model.parameter_count()} parameters")


if __name__ == "__main__":
    main()
