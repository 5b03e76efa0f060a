# SPDX-License-Identifier: GPL-2.0-or-later
"""Training scenes made of aerial photographs: a photograph lends its structure, a cube its spectra.

Hyperspectral cubes that may be trained on are few and small; photographs of the ground are many. What a network has
to learn, how detail of different colours falls together, is in them.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.nn import functional

from ..errors import ErrorCode, HyperSharpError
from .cubes import Cube
from .pairs import Dice

IMAGES = (".webp", ".png", ".jpg", ".jpeg", ".tif", ".tiff")
MIN_SIDE = 128
"""Pixels along a side that a photograph needs."""
SHRINKING = (1.5, 2.0, 2.6)
"""Compression and demosaicing blur a photograph, so that it is shrunk by one of these factors."""
GAMMA = (1.0, 2.2)
"""Exponents that undo an unknown tone curve."""
SIDE = 136
"""Largest side of a scene, in pixels."""
LIBRARY = (300, 1500)
"""Spectra of a cube that a scene is made of, at least and at most."""
NATURAL_SHARE = 0.6
"""Share of scenes whose red, green and blue are the cube's own; the others' are any three of its bands."""
COLOURS_NM = (650.0, 550.0, 470.0)
NEIGHBOURS = 4
"""Spectra that a pixel's own is mixed of."""
SOFTNESS = 0.15
"""Distance in colour, in standard deviations, over which a spectrum's share falls by a factor of e."""
BRIGHTNESS = 0.4
"""Largest logarithm of the brightness by which a pixel differs from its mixture."""
DARKEST = 1e-3


def _files(folder: Path) -> Iterator[bytes]:
    """Yield the images in a folder and in its tar archives, in the order of their names."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in IMAGES:
            yield path.read_bytes()
        elif path.suffix.lower() == ".tar":
            with tarfile.open(path) as archive:
                for member in archive:
                    file = archive.extractfile(member) if member.name.lower().endswith(IMAGES) else None
                    if file is not None:
                        yield file.read()


def read_photographs(folder: str | Path) -> list[bytes]:
    """Return the encoded colour images in a folder and in its tar archives; decoded, they would fill the memory.

    Raises:
        HyperSharpError: no such folder, an archive that cannot be read, no image, or a first one that is no use.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise HyperSharpError(
            f"{folder} is no folder", "give a folder with aerial photographs", ErrorCode.USAGE
        )
    hint = f"put colour images ({', '.join(IMAGES)}) or tar archives of them there"
    try:
        found = list(_files(folder))
    except (OSError, tarfile.TarError) as error:
        raise HyperSharpError(f"cannot read the photographs in {folder}: {error}", hint) from error
    if not found:
        raise HyperSharpError(f"there is no photograph in {folder}", hint)
    try:
        decode(found[0])
    except ValueError as error:
        raise HyperSharpError(f"the photographs in {folder} are no use: {error}", hint) from error
    return found


def decode(data: bytes) -> Tensor:
    """Return an image as `[3, rows, cols]` float32 in 0 to 1.

    Raises:
        ValueError: it cannot be read, or is too small.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            values = np.asarray(image.convert("RGB"), dtype=np.float32)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError("not an image that can be read") from error
    if min(values.shape[:2]) < MIN_SIDE:
        raise ValueError(f"{values.shape[1]} x {values.shape[0]} pixels, of which {MIN_SIDE} are needed")
    return torch.from_numpy(values).permute(2, 0, 1) / 255.0


def _moments(colours: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean `[3, 1]`, a whitening matrix and its inverse, of colours `[3, n]`."""
    covariance = torch.cov(colours)
    covariance = covariance + 1e-4 * covariance.trace().clamp_min(1e-12) * torch.eye(3)
    values, vectors = torch.linalg.eigh(covariance)
    root = values.sqrt()
    return colours.mean(dim=1, keepdim=True), (vectors / root) @ vectors.T, (vectors * root) @ vectors.T


def scene_of(photograph: Tensor, cube: Cube, dice: Dice) -> Cube:
    """Return a cube with a photograph's structure and another cube's spectra.

    The photograph's logarithmic colours are brought to mean and covariance of the same colours of the cube (as in
    Reinhard et al., IEEE CG&A 21(5), 2001, here with the full covariance). Each pixel then is a mixture of the
    spectra nearest in colour, scaled by what is left of its brightness.

    Args:
        photograph: `[3, rows, cols]`, 0 to 1.
        cube: lends spectra and wavelengths.
        dice: random numbers.

    Raises:
        ValueError: the cube has too few valid pixels.
    """
    shrink = SHRINKING[dice.integer(0, len(SHRINKING) - 1)]
    rows, cols = (int(n / shrink) for n in photograph.shape[1:])
    small = functional.interpolate(photograph[None], size=(rows, cols), mode="bilinear", antialias=True)[0]
    height, width = min(SIDE, rows), min(SIDE, cols)
    top, left = dice.integer(0, rows - height), dice.integer(0, cols - width)
    small = small[:, top : top + height, left : left + width].clamp_min(0.01) ** dice.uniform(*GAMMA)
    colours = small.clamp_min(DARKEST).log().flatten(1)

    pixels = cube.image[:, cube.mask]
    if pixels.shape[1] < LIBRARY[0]:
        raise ValueError(f"{cube.name} has {pixels.shape[1]} valid pixels")
    count = dice.integer(*LIBRARY)
    library = pixels[:, torch.randint(pixels.shape[1], (count,), generator=dice.generator)]
    natural = dice.happens(NATURAL_SHARE)
    centres = [
        int((cube.wavelength_nm - c).abs().argmin()) if natural else dice.integer(0, len(library) - 1)
        for c in COLOURS_NM
    ]
    own = torch.stack([library[max(0, c - 3) : c + 4].mean(dim=0) for c in centres])
    own = own.clamp_min(DARKEST * float(library.abs().mean())).log()

    mean, whiten, _ = _moments(colours)
    own_mean, own_whiten, own_colour = _moments(own)
    moved = own_colour @ (whiten @ (colours - mean)) + own_mean
    distance, nearest = torch.cdist((own_whiten @ moved).T, (own_whiten @ own).T).topk(
        NEIGHBOURS, largest=False
    )
    shares = torch.softmax(-distance / SOFTNESS, dim=1)
    spectra = sum(library[:, nearest[:, i]] * shares[:, i] for i in range(NEIGHBOURS))
    brightness = moved.mean(dim=0) - (own.mean(dim=0)[nearest] * shares).sum(dim=1)
    image = spectra * brightness.clamp(-BRIGHTNESS, BRIGHTNESS).exp()
    whole = torch.ones(height, width, dtype=torch.bool)
    return Cube(f"photograph with {cube.name}", image.view(-1, height, width), whole, cube.wavelength_nm)
