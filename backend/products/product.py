# SPDX-License-Identifier: GPL-2.0-or-later
"""What a product holds, whatever its sensor: images with bands and a place on the ground, read by windows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

from affine import Affine
from rasterio.crs import CRS
from torch import Tensor

from ..degradation import Range
from ..io.wavelengths import BandTable


class ProductImage(ABC):
    """One image of a product.

    Attributes:
        bands: wavelengths, widths and names, in ascending order of wavelength.
        floor: `[bands]`: the reflectance of a sample without any signal.
        rows, cols: its size.
        transform: pixel to CRS; identity where the product is not geocoded.
    """

    bands: BandTable
    floor: Tensor
    rows: int
    cols: int
    transform: Affine

    @abstractmethod
    def read(self, rows: Range, cols: Range) -> tuple[Tensor, Tensor]:
        """Return a window's reflectances (1 = all light) `[bands, rows, cols]`, float32, and the mask `[rows, cols]`.

        Raises:
            HyperSharpError: the file is damaged.
        """


@dataclass
class Product:
    """A product's images.

    Attributes:
        hs: the hyperspectral one.
        pan: the panchromatic one; None where the product has none.
        crs: of both; None where the product is not geocoded.
        tags: what of the product's metadata is worth keeping (time, angles, level).
        warnings: what was found odd.
        lacks_pan: there is no panchromatic image where the sensor has a camera for it.
    """

    hs: ProductImage
    pan: ProductImage | None
    crs: CRS | None
    tags: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    lacks_pan: bool = False
