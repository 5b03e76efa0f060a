# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the arithmetic runs, and why."""

from __future__ import annotations

import re

import torch

from .errors import ErrorCode, HyperSharpError


def choose_device(wanted: str = "auto") -> tuple[torch.device, str]:
    """Return the device and one line that says why it is this one.

    Args:
        wanted: "auto" (a working CUDA device, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises:
        HyperSharpError: unknown word (usage), or CUDA was asked for by name and does not work (no_cuda).
    """
    word = wanted.strip().lower()
    if word == "cpu":
        return torch.device("cpu"), "CPU, as asked"
    if word != "auto" and not re.fullmatch(r"cuda(:\d+)?", word):
        raise HyperSharpError(f"unknown device {wanted!r}", "use auto, cpu, cuda or cuda:N", ErrorCode.USAGE)
    device = torch.device("cuda" if word == "auto" else word)
    problem = cuda_problem(device)
    if problem is None:
        return device, f"CUDA: {torch.cuda.get_device_name(device)}"
    if word == "auto":
        return torch.device("cpu"), f"CPU: {problem}"
    raise HyperSharpError(
        f"{wanted} cannot be used: {problem}",
        "use --device cpu, or install an NVIDIA driver and a CUDA build of torch",
        ErrorCode.NO_CUDA,
    )


def cuda_problem(device: torch.device) -> str | None:
    """Return why a CUDA device cannot be used, or None when a kernel ran on it and gave the right number."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    if not torch.cuda.is_available():
        return "no CUDA device or driver was found"
    if device.index is not None and device.index >= torch.cuda.device_count():
        return f"there is no device {device.index}"
    try:
        total = torch.ones(64, 64, device=device).matmul(torch.ones(64, 64, device=device)).sum().item()
    except RuntimeError as error:
        return f"a test kernel failed ({str(error).splitlines()[0]})"
    return None if total == 64.0**3 else "a test kernel gave a wrong result"


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on CUDA or on the CPU."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    # torch's CPU allocator raises a plain RuntimeError.
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
