# SPDX-License-Identifier: GPL-2.0-or-later
"""What this interpreter can do: versions, GPU and driver, kernels in use."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess  # nosec B404 - nvidia-smi only
import sys
from importlib import metadata as package_metadata
from typing import Any

import psutil
import rasterio
import torch

from ._version import __version__
from .device import choose_device, cuda_problem
from .diffusion.cache_folder import cache_use
from .errors import EXIT_DONE
from .ops.selective_scan import scan_name

REQUIRED_PACKAGES = (
    "torch", "numpy", "scipy", "rasterio", "matplotlib", "jinja2", "psutil", "tqdm", "safetensors", "diffusers",
    "PyWavelets", "h5py",
)  # fmt: skip
PACKAGES = (*REQUIRED_PACKAGES, "mamba-ssm", "triton")


def diagnose() -> dict[str, Any]:
    """Return interpreter, machine, package versions, GPU with driver, and what "auto" would use."""
    found: dict[str, str | None] = {}
    for name in PACKAGES:
        try:
            found[name] = package_metadata.version(name)
        except package_metadata.PackageNotFoundError:
            found[name] = None
    device, note = choose_device("auto")
    use = cache_use()
    return {
        "hypersharp": __version__,
        "python": platform.python_version(),
        "interpreter": sys.executable,
        "platform": platform.platform(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "gdal": rasterio.__gdal_version__,
        "packages": found,
        "device": device.type,
        "device_note": note,
        "selective_scan": scan_name(device),
        "cuda": {
            "torch_cuda": torch.version.cuda,
            "problem": cuda_problem(torch.device("cuda")),
            "driver": _driver(),
        },
        "torch_threads": torch.get_num_threads(),
        "prior_cache": {
            "folder": None if use.folder is None else str(use.folder),
            "priors": use.count,
            "size_mb": round(use.size / 2**20, 1),
            "limit_mb": round(use.limit / 2**20),
            "writable": use.writable,
        },
    }


def _driver() -> str | None:
    """Return GPU, driver and memory as nvidia-smi says, or None where there is none."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, timeout=10, check=False)  # nosec B603
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def show(as_json: bool) -> int:
    """Print the diagnosis; return the exit code."""
    report = diagnose()
    if as_json:
        print(json.dumps(report, indent=1))
        return EXIT_DONE
    for key, value in report.items():
        if isinstance(value, dict):
            for name, inner in value.items():
                print(f"{key + ' ' + name:<24}{inner if inner is not None else '-'}")
        else:
            print(f"{key:<24}{value}")
    return EXIT_DONE
