# SPDX-License-Identifier: GPL-2.0-or-later
"""Where the arithmetic runs, and why."""

from __future__ import annotations

import ctypes
import re
import sys
from collections.abc import Callable
from functools import lru_cache

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


# torch.OutOfMemoryError is torch 2.5's name for it.
_OUT_OF_MEMORY = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))
# torch's CPU allocator (Linux, Windows), cuBLAS and cuDNN raise plain RuntimeErrors.
_OUT_OF_MEMORY_WORDS = ("can't allocate memory", "not enough memory", "out of memory", "status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that memory ran out, on CUDA or on the CPU."""
    if isinstance(error, _OUT_OF_MEMORY):
        return True
    return isinstance(error, RuntimeError) and any(w in str(error).lower() for w in _OUT_OF_MEMORY_WORDS)


PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the precisions in which a network can run, and the type that autocast then computes in."""


def inference_precision(device: torch.device, convolutional: bool = True) -> str:
    """Return the precision, one of `PRECISIONS`, in which a network is fast on a device at no visible loss.

    On CUDA half the width always pays. On a CPU only convolutions do, and only where it has instructions for
    bfloat16 (AVX512-BF16 or AMX): elsewhere that is emulated. docs/benchmarks.md has the figures.

    Args:
        device: where the network runs.
        convolutional: whether its time goes into convolutions.
    """
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float16"
    # torch names these with an underscore; a version without them is taken as without the instructions.
    found = (getattr(torch.cpu, f"_is_{name}_supported", bool) for name in ("avx512_bf16", "amx_tile"))
    return "bfloat16" if convolutional and device.type == "cpu" and any(f() for f in found) else "float32"


def give_back_memory() -> None:
    """Hand freed memory back to the system, where the C library (glibc) keeps it for later.

    Tiles need arrays of many sizes, and what lies free between them would count as used: docs/benchmarks.md. It takes
    milliseconds; with other C libraries nothing happens.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@lru_cache(maxsize=1)
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    trim: Callable[[int], int] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return trim
