# SPDX-License-Identifier: GPL-2.0-or-later
"""Where priors are kept between runs, and how much of the disk they may take (no torch: `doctor` asks too)."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import dataclass
from pathlib import Path

FOLDER_VARIABLE = "HYPERSHARP_CACHE"
"""Environment variable that names HyperSharp's cache folder; empty for no cache."""
MOST_BYTES = 2 * 1024**3
"""The oldest priors go when all together take more than this."""
SUFFIX = ".safetensors"
PART_SUFFIX = ".part"
STALE_SECONDS = 86400.0
"""A file that has been in the writing for longer was left by a run that died."""


@dataclass(frozen=True)
class CacheUse:
    """What the cache holds.

    Attributes:
        folder: where; None where nothing is kept.
        count: priors in it.
        size: bytes that they take.
        limit: bytes that they may take.
        writable: whether this user may add to it.
    """

    folder: Path | None
    count: int
    size: int
    limit: int
    writable: bool


def cache_folder() -> Path | None:
    """Return where priors are kept; None where nothing may be kept."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named).expanduser() / "priors" if named else None
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(base) if base else Path.home() / ".cache") / "hypersharp" / "priors"
    except RuntimeError:  # a user without a home
        return None


def cache_use() -> CacheUse:
    """Return what the cache holds now; reads names and sizes only."""
    folder = cache_folder()
    if folder is None:
        return CacheUse(None, 0, 0, MOST_BYTES, False)
    sizes = [size for _, size, _ in _kept(folder)]
    there = next((p for p in (folder, *folder.parents) if p.is_dir()), None)
    writable = there is not None and os.access(there, os.W_OK)
    return CacheUse(folder, len(sizes), sum(sizes), MOST_BYTES, writable)


def trim(folder: Path, limit: int | None = None) -> None:
    """Let the priors go that were used longest ago, until the rest takes at most `limit` bytes.

    A file that cannot be removed (open in another program, on Windows) stays; nothing is raised.
    """
    limit = MOST_BYTES if limit is None else limit
    total = 0
    for path, size, _ in sorted(_kept(folder), key=lambda entry: entry[2], reverse=True):
        total += size
        if total > limit:
            _remove(path)
    now = time.time()
    for path in folder.glob(f"*{PART_SUFFIX}"):
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > STALE_SECONDS:
                _remove(path)


def _kept(folder: Path) -> list[tuple[Path, int, float]]:
    """Return path, bytes and time of last use of every prior."""
    found = []
    with contextlib.suppress(OSError):
        for path in folder.glob(f"*{SUFFIX}"):
            with contextlib.suppress(OSError):  # another run has just removed it
                facts = path.stat()
                found.append((path, facts.st_size, facts.st_mtime))
    return found


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        path.unlink()
