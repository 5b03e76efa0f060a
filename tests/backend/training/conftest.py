# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
import rasterio
import torch
from hypersharp.backend.training.cubes import Cube


def synthetic_image(seed, bands=14, rows=48, cols=48, materials=4):
    """Patches of a few materials with smooth spectra, shading and texture: detail that a guide can predict."""
    generator = torch.Generator().manual_seed(seed)
    position = torch.linspace(0, 1, bands)
    spectra = torch.stack(
        [
            0.3
            + 0.5 * torch.sin(3 * position * (1 + float(torch.rand((), generator=generator))) + k).square()
            for k in range(materials)
        ]
    )
    noise = torch.rand(materials, 1, rows // 4, cols // 4, generator=generator)
    fields = torch.nn.functional.interpolate(noise, size=(rows, cols), mode="bicubic")[:, 0]
    share = (8 * fields).softmax(dim=0)
    light = 1 + 0.15 * torch.randn(rows, cols, generator=generator)
    image = torch.einsum("mb,myx->byx", spectra, share * light).clamp_min(0.01) * 1000
    # Materials vary in ways of their own too, which no guide shows in full.
    own = torch.randn(bands, rows, cols, generator=generator)
    return image * (1 + 0.03 * own)


@pytest.fixture
def cubes():
    wavelengths = torch.linspace(420, 980, 14, dtype=torch.float64)
    mask = torch.ones(48, 48, dtype=torch.bool)
    return [Cube(f"scene{i}", synthetic_image(i), mask, wavelengths) for i in range(4)]


@pytest.fixture
def cube_folder(tmp_path, cubes):
    folder = tmp_path / "cubes"
    folder.mkdir()
    for cube in cubes:
        image = cube.image.numpy()
        with rasterio.open(
            folder / f"{cube.name}.tif",
            "w",
            driver="GTiff",
            width=image.shape[2],
            height=image.shape[1],
            count=len(image),
            dtype="float32",
        ) as file:
            file.write(image)
    return folder
