# SPDX-License-Identifier: GPL-2.0-or-later
"""Images that lie on disk and not in memory."""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import ErrorCode, HyperSharpError
from .cache_folder import FOLDER_VARIABLE, cache_folder

CHUNK = 1 << 20


def on_disk(shape: tuple[int, ...]) -> Tensor:
    """Return zeros of this shape, float32, mapped from a file that goes with the tensor, or with the process.

    The file has no name (where the system cannot do that: it is removed when it is closed), so nothing is left behind
    by a run that dies. It lies in the cache's folder, else where temporary files do.

    Raises:
        HyperSharpError: code `disk_full`: there is no room for it.
    """
    size = 4 * math.prod(shape)
    reason: OSError | None = None
    for folder in (cache_folder(), Path(tempfile.gettempdir())):
        if folder is None:
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder) as file:
                # Written and not only made long: a full disk is an error here, and would be a crash in the mapping.
                zeros = bytes(CHUNK)
                for start in range(0, size, CHUNK):
                    file.write(zeros[: min(CHUNK, size - start)])
                file.flush()
                return torch.from_numpy(np.memmap(file, np.float32, "r+", shape=shape))
        except OSError as error:
            reason = error
    raise HyperSharpError(
        f"the prior of this scene takes {size / 1e9:.1f} GB on disk: {reason.strerror if reason else 'no folder'}",
        f"free some space, or name a folder with more in the environment variable {FOLDER_VARIABLE}",
        ErrorCode.DISK_FULL,
        retry=True,
    )
