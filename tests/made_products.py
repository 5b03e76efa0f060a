"""Small products by their specifications' names: PRISMA (also a script: PATH [LEVEL [no-pan]]) and EMIT."""

import sys

import h5py
import numpy as np

LEFT, TOP, EPSG = 450000.0, 5400000.0, 32631
LIMITS = {"Vnir": (0.0, 1.2), "Swir": (0.02, 0.9), "Pan": (0.0, 1.1)}
VNIR = np.r_[np.linspace(978, 402, 24), [0.0, 0.0]]  # descending, as delivered; 0: no light
SWIR = np.r_[np.linspace(2497, 943, 40), [0.0]]
DARK = 6
"""Of SWIR's bands this one holds no signal."""


def reflectance(rows, cols, centres, seed=3):
    """Return `[rows, bands, cols]` of 0.05 to 0.6: blobs whose brightness and colour differ."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:rows, 0:cols] / rows
    image = np.zeros((rows, len(centres), cols))
    for cy, cx, size in zip(*rng.uniform(0, 1, (2, 30)), rng.uniform(0.02, 0.15, 30)):
        blob = np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / size**2)
        shape = 1 + np.sin(centres / rng.uniform(200, 900) + rng.uniform(0, 6))
        image += blob[:, None, :] * shape[None, :, None]
    return 0.05 + 0.55 * image / image.max()


def numbers(values, name):
    """Return reflectances as a product's 16-bit numbers."""
    low, high = LIMITS[name]
    return np.clip(np.rint((values - low) / (high - low) * 65535), 1, 65535).astype(np.uint16)


def coarsened(fine, ratio):
    """Return `[rows, bands, cols]` means over squares of pixels."""
    rows, bands, cols = fine.shape
    return fine.reshape(rows // ratio, ratio, bands, cols // ratio, ratio).mean(axis=(1, 4))


EMIT_CENTRES = np.linspace(381, 2493, 40)
EMIT_BAD = (18, 19)
EMIT_TRANSFORM = (-115.9, 0.0005, 0.0, 33.4, 0.0, -0.0005)


def write_emit(path, lines=70, samples=60, turned=30.0):
    """Write EMIT's reflectance, seen at an angle; return what its geographic grid shows, `[bands, rows, cols]`.

    NaN where it shows nothing.
    """
    cube = reflectance(lines, samples, EMIT_CENTRES).transpose(0, 2, 1).astype(np.float32)
    cube[:, :, list(EMIT_BAD)] = -0.01  # as EMIT's are in water vapour
    cube[5, 6] = -9999.0
    rows, cols = lines + 20, samples + 30
    y, x = np.mgrid[0:rows, 0:cols]
    c, s = np.cos(np.deg2rad(turned)), np.sin(np.deg2rad(turned))
    line = np.rint(c * (y - rows / 2) - s * (x - cols / 2) + lines / 2).astype(int)
    sample = np.rint(s * (y - rows / 2) + c * (x - cols / 2) + samples / 2).astype(int)
    inside = (line >= 0) & (line < lines) & (sample >= 0) & (sample < samples)
    with h5py.File(path, "w") as file:
        file["reflectance"] = cube
        file["reflectance"].attrs["_FillValue"] = np.array([-9999.0], np.float32)
        file["sensor_band_parameters/wavelengths"] = EMIT_CENTRES.astype(np.float32)
        file["sensor_band_parameters/fwhm"] = np.full(40, 8.5, np.float32)
        good = np.ones(40, np.uint8)
        good[list(EMIT_BAD)] = 0
        file["sensor_band_parameters/good_wavelengths"] = good
        file["location/glt_x"] = np.where(inside, sample + 1, 0).astype(np.int32)
        file["location/glt_y"] = np.where(inside, line + 1, 0).astype(np.int32)
        file.attrs["geotransform"] = np.array(EMIT_TRANSFORM)
        file.attrs["spatial_ref"] = "EPSG:4326"
        file.attrs["time_coverage_start"] = "2023-06-01T06:28:32+0000"
    seen = np.full((40, rows, cols), np.nan)
    seen[:, inside] = cube[line[inside], sample[inside]].T
    seen[:, seen[0] == -9999.0] = np.nan
    return seen


def write_product(path, level="2D", rows=30, cols=24, corners=True, pan=True, empty=2):
    """Write a product whose first `empty` rows hold nothing; return reflectances `[rows, bands, cols]` by name."""
    fine = {
        "Vnir": reflectance(rows * 6, cols * 6, VNIR),
        "Swir": reflectance(rows * 6, cols * 6, SWIR),
    }
    truth = {name: coarsened(values, 6) for name, values in fine.items()}
    truth["Pan"] = fine["Vnir"][:, 10:24].mean(axis=1)
    with h5py.File(path, "w") as file:
        swath = f"HDFEOS/SWATHS/PRS_L{level}_HCO/Data Fields"
        for name in ("Vnir", "Swir"):
            cube = numbers(truth[name], name)
            if name == "Swir":
                cube[:, DARK] = 0
            cube[:empty] = 0
            file[f"{swath}/{name.upper()}_Cube"] = cube
        if pan:
            image = numbers(truth["Pan"], "Pan")
            image[: 6 * empty] = 0
            file[f"HDFEOS/SWATHS/PRS_L{level}_PCO/Data Fields/Cube"] = image
        for name, centres in (("Vnir", VNIR), ("Swir", SWIR)):
            file.attrs[f"List_Cw_{name}"] = centres.astype(np.float32)
            file.attrs[f"List_Fwhm_{name}"] = np.where(centres > 0, 11.5, 0).astype(np.float32)
        for name, (low, high) in LIMITS.items():
            file.attrs[f"L2Scale{name}Min"], file.attrs[f"L2Scale{name}Max"] = (
                np.float32(low),
                np.float32(high),
            )
        file.attrs["Product_StartTime"] = np.bytes_("2024-06-01T10:12:13.000")
        if level == "2D":
            file.attrs["Epsg_Code"] = np.uint32(EPSG)
        if level == "2D" and corners:
            right, bottom = LEFT + 30 * (cols - 1), TOP - 30 * (rows - 1)
            for corner, place in (("UL", (LEFT, TOP)), ("LR", (right, bottom))):
                for axis, value in zip(("easting", "northing"), place):
                    file.attrs[f"Product_{corner}corner_{axis}"] = np.float32(value)
    return truth


if __name__ == "__main__":
    write_product(sys.argv[1], *sys.argv[2:3], pan="no-pan" not in sys.argv)
