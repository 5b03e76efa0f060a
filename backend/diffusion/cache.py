# SPDX-License-Identifier: GPL-2.0-or-later
"""Keeps priors on disk: drawing one takes longer than all that follows, and stage two is often run again."""

from __future__ import annotations

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
from .prior import Prior, PriorSettings, sample_prior

FOLDER_VARIABLE = "HYPERSHARP_CACHE"
"""Environment variable that names HyperSharp's cache folder; empty for no cache."""
MOST_BYTES = 2 * 1024**3
"""The oldest priors go when all together take more than this."""
STRIP = 256


def cache_folder() -> Path | None:
    """Return where priors are kept; None where nothing may be kept."""
    named = os.environ.get(FOLDER_VARIABLE)
    if named is not None:
        return Path(named) / "priors" if named else None
    base = os.environ.get("LOCALAPPDATA") or os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "hypersharp" / "priors"


def _digest_source(word: hashlib._Hash, source: Source, control: Control) -> None:
    for top in range(0, source.rows, STRIP):
        control.check()
        values, mask = source.read((top, min(source.rows, top + STRIP)), (0, source.cols))
        word.update(values.contiguous().numpy().tobytes())
        word.update(mask.contiguous().numpy().tobytes())


def pair_key(scene: Scene, settings: PriorSettings, control: Control) -> str:
    """Return a name for a prior: of every pixel of the pair, the settings, the weights and the version."""
    word = hashlib.sha256()
    weights = find_weights(settings.weights) / "model.safetensors"
    weights_word = hashlib.sha256(weights.read_bytes()).hexdigest() if weights.is_file() else ""
    facts = {
        "settings": asdict(settings),
        "weights": weights_word,
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
    path = folder / f"{pair_key(scene, settings, control)}.safetensors"
    prior = load_prior(path, scene.device)
    if prior is not None:
        control.info("the prior of this pair is known from an earlier run")
        return prior, True
    prior = sample_prior(scene, settings, control)
    try:
        save_prior(prior, path)
    except OSError as error:
        control.warn(f"the prior could not be kept for another run: {error.strerror or error}")
    return prior, False


def save_prior(prior: Prior, path: Path) -> None:
    """Write a prior, whole or not at all, and let the oldest ones go.

    Raises:
        OSError: the folder cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {
        "base": prior.base,
        "loadings": prior.loadings,
        "offset": prior.offset,
        "low": prior.low,
        "span": prior.span,
        "residual": prior.residual,
        "up_rows": prior.up[0],
        "up_cols": prior.up[1],
    }
    facts = {"bands": prior.bands, "curves": prior.curves, "facts": prior.facts}
    handle, part = tempfile.mkstemp(dir=path.parent, suffix=".part")
    os.close(handle)
    try:
        contiguous = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(contiguous, part, {"facts": json.dumps(facts)})
        os.replace(part, path)
    finally:
        Path(part).unlink(missing_ok=True)
    _trim(path.parent)


def _trim(folder: Path) -> None:
    files = sorted(folder.glob("*.safetensors"), key=lambda p: p.stat().st_mtime, reverse=True)
    total = 0
    for number, path in enumerate(files):
        total += path.stat().st_size
        if number and total > MOST_BYTES:
            path.unlink(missing_ok=True)


def load_prior(path: Path, device: torch.device) -> Prior | None:
    """Return a kept prior; None where there is none that can be read.

    It can `refine`; its `image` has the residual of the HS image, not the closed form's.
    """
    try:
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["facts"])
            tensors = {k: file.get_tensor(k).to(device) for k in file.keys()}  # noqa: SIM118 (no mapping)
        os.utime(path)
        return Prior(
            tensors["base"],
            tensors["loadings"],
            tensors["offset"],
            facts["bands"],
            tensors["low"],
            tensors["span"],
            tensors["residual"],
            facts["curves"],
            facts["facts"],
            (tensors["up_rows"], tensors["up_cols"]),
        )
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
