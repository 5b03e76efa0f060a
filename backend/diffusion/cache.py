# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps priors on disk: drawing one takes longer than all that follows, and stage two is often run again."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import _version
from ..control import Control
from ..io.source import Source
from ..scene import Scene
from ..weights import find_weights
from . import cache_folder as kept
from .cache_folder import FOLDER_VARIABLE, SUFFIX, cache_folder, cache_use
from .prior import Prior, PriorSettings, sample_prior

__all__ = [
    "FOLDER_VARIABLE",
    "cache_folder",
    "cache_use",
    "cached_prior",
    "load_prior",
    "pair_key",
    "save_prior",
]

FORMAT = 2
"""Of the files; one of another format is of another name, and so is drawn again."""
STRIP = 256
"""Most rows that are read at once."""
STRIP_VALUES = 1 << 24
"""The same for values, of images of many bands or columns."""
READ_BYTES = 1 << 20


def _strips(rows: int, values_per_row: int) -> list[tuple[int, int]]:
    """Return ranges of rows that are read at once."""
    most = max(1, min(STRIP, STRIP_VALUES // max(1, values_per_row)))
    return [(top, min(rows, top + most)) for top in range(0, rows, most)]


def _digest_source(word: hashlib._Hash, source: Source, control: Control) -> None:
    for rows in _strips(source.rows, source.bands * source.cols):
        control.check()
        values, mask = source.read(rows, (0, source.cols))
        word.update(values.contiguous().numpy())
        word.update(mask.contiguous().numpy())


def weights_digest(folder: Path) -> str:
    """Return a name for the content of a weights folder: of every file that a network is read from.

    Raises:
        OSError: a file cannot be read.
    """
    word = hashlib.sha256()
    for path in sorted(p for p in folder.iterdir() if p.is_file() and p.suffix != ".md"):
        word.update(path.name.encode())
        with path.open("rb") as file:
            while block := file.read(READ_BYTES):
                word.update(block)
    return word.hexdigest()


def pair_key(scene: Scene, settings: PriorSettings, control: Control) -> str:
    """Return a name for a prior: of every pixel of the pair, the settings, the weights and the version.

    Raises:
        HyperSharpError: there are no such weights.
        OSError: they cannot be read.
    """
    word = hashlib.sha256()
    # The number of steps says what a preset means; weights are known by their content, wherever they lie.
    asked = {k: v for k, v in asdict(settings).items() if k not in ("preset", "steps", "weights")}
    facts = {
        "format": FORMAT,
        "settings": {**asked, "steps": settings.step_count},
        "weights": weights_digest(find_weights(settings.weights)),
        "version": _version.__version__,
        "scene": [scene.ratio, scene.mtf_hs, scene.mtf_guide, *scene.shape, scene.device.type],
    }
    word.update(json.dumps(facts, sort_keys=True, default=str).encode())
    _digest_source(word, scene.hs, control)
    _digest_source(word, scene.guide, control)
    return word.hexdigest()[:32]


def cached_prior(scene: Scene, settings: PriorSettings, control: Control) -> tuple[Prior, bool]:
    """Return a scene's prior, and whether it was known already.

    A cache that cannot be read or written costs a warning, never the run.

    Args:
        scene, settings, control: as for `sample_prior`.

    Raises:
        HyperSharpError, Cancelled: as `sample_prior` does.
    """
    folder = cache_folder()
    if folder is None:
        return sample_prior(scene, settings, control), False
    try:
        path = folder / f"{pair_key(scene, settings, control)}{SUFFIX}"
    except OSError as error:  # unreadable weights: the network's loader knows better what to say of them
        control.info(f"no prior is looked up: {error.strerror or error}")
        return sample_prior(scene, settings, control), False
    prior = load_prior(path, scene)
    if prior is not None:
        control.info("the prior of this pair is known from an earlier run")
        return prior, True
    prior = sample_prior(scene, settings, control)
    try:
        save_prior(prior, path)
    except OSError as error:
        control.warn(
            f"the prior could not be kept for another run: {error.strerror or error} ({folder}; the environment "
            f"variable {FOLDER_VARIABLE} names another folder)"
        )
    return prior, False


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior, whole or not at all, and let the oldest ones go. One beyond the cache's limit is not kept.

    Raises:
        OSError: the folder cannot be written, or the disk is full.
    """
    tensors = {
        "base": prior.base,
        "loadings": prior.loadings,
        "offset": prior.offset,
        "low": prior.low,
        "span": prior.span,
    }
    if sum(v.numel() * v.element_size() for v in tensors.values()) > kept.MOST_BYTES:
        return
    facts = {"bands": prior.bands, "curves": prior.curves, "facts": prior.facts}
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=kept.PART_SUFFIX)
    os.close(handle)
    try:
        # No copy of a base that lies on disk already.
        contiguous = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
        save_file(contiguous, part, {"facts": json.dumps(facts, default=asdict)})
        os.replace(part, path)
    except SafetensorError as error:  # what it makes of a full disk
        raise OSError(str(error)) from error
    finally:
        Path(part).unlink(missing_ok=True)
    kept.trim(path.parent)


def load_prior(path: Path, scene: Scene) -> Prior | None:
    """Return a kept prior of a scene; None where there is none that can be read and fits.

    It can `refine`; its `image` has no residual.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118 (no mapping)
        drawn_whole = facts["facts"]["blocks"] == 1
        prior = Prior(
            # Mapped from the file, like one that has just been drawn in blocks.
            tensors["base"].to(scene.device) if drawn_whole else tensors["base"],
            tensors["loadings"],
            tensors["offset"],
            facts["bands"],
            tensors["low"],
            tensors["span"],
            facts["curves"],
            facts["facts"],
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    rank = len(prior.bands)
    if prior.base.shape != (rank, *scene.shape) or prior.loadings.shape != (scene.hs.bands, rank):
        return None
    strips = _strips(scene.shape[0], rank * scene.shape[1])
    if not all(bool(torch.isfinite(prior.base[:, slice(*rows)]).all()) for rows in strips):
        return None
    # Its time of last use, by which the cache is trimmed; a read-only cache serves all the same.
    with contextlib.suppress(OSError):
        os.utime(path)
    return prior
