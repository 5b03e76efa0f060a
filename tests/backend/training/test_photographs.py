# SPDX-License-Identifier: GPL-2.0-or-later
import io
import tarfile

import numpy as np
import pytest
import torch
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.training import examples
from hypersharp.backend.training.examples import ExampleStream
from hypersharp.backend.training.pairs import Dice, PairSettings
from hypersharp.backend.training.photographs import SIDE, decode, read_photographs, scene_of
from PIL import Image


def encoded(seed=0, side=160, kind="PNG"):
    """A picture of 8 x 8 fields of random colours."""
    small = np.random.default_rng(seed).integers(20, 235, (8, 8, 3), dtype=np.uint8)
    data = io.BytesIO()
    Image.fromarray(small.repeat(side // 8, 0).repeat(side // 8, 1)).save(data, kind)
    return data.getvalue()


def dice(seed=0):
    return Dice(torch.Generator().manual_seed(seed))


def test_images_are_found_in_folders_and_archives(tmp_path):
    (tmp_path / "b.png").write_bytes(encoded(1))
    (tmp_path / "notes.txt").write_text("no image")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, data in (("x/one.webp", encoded(2, kind="WEBP")), ("x/readme.md", b"text")):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    found = [decode(data) for data in read_photographs(tmp_path)]
    assert [tuple(image.shape) for image in found] == [(3, 160, 160)] * 2
    assert torch.equal(found[1], decode(encoded(1)))
    assert float(found[0].min()) >= 0 and float(found[0].max()) <= 1


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("broken.tar", b"no archive", "cannot read the photographs"),
        ("broken.png", b"no image", "not an image"),
        ("small.png", encoded(side=64), "64 x 64 pixels"),
        ("notes.txt", b"text", "no photograph"),
    ],
)
def test_folders_that_are_no_use(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(HyperSharpError, match=words):
        read_photographs(tmp_path)
    with pytest.raises(HyperSharpError, match="no folder"):
        read_photographs(tmp_path / "none")


def test_a_scene_has_the_structure_of_the_one_and_the_spectra_of_the_other(cubes):
    photograph = decode(encoded(3))
    made = scene_of(photograph, cubes[0], dice())
    rows, cols = made.image.shape[1:]
    assert len(made.image) == len(cubes[0].image) and max(rows, cols) <= SIDE
    assert made.mask.all() and torch.equal(made.wavelength_nm, cubes[0].wavelength_nm)
    # Spectra: each pixel is, but for its brightness, nearly a mixture of a few of the cube's.
    unit = torch.nn.functional.normalize
    found = unit(made.image.flatten(1)[:, ::97], dim=0)
    angle = (unit(cubes[0].image.flatten(1), dim=0).T @ found).amax(dim=0).clamp(max=1).arccos()
    assert float(angle.median()) < 0.1
    # Structure: edges are where the photograph's fields meet, and fields are flat.
    slope = (made.image[:, 1:] - made.image[:, :-1]).abs().mean(dim=(0, 2))
    assert float(slope.median()) < 0.02 * float(slope.max())
    assert float(made.image.std(dim=(1, 2)).min()) > 0


def test_a_scene_is_a_function_of_the_dice(cubes):
    photograph = decode(encoded(3))
    first, again, other = (scene_of(photograph, cubes[1], dice(seed)).image for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert first.shape != other.shape or not torch.equal(first, other)


def test_a_cube_of_few_pixels_is_refused(cubes):
    cubes[0].mask[:] = False
    with pytest.raises(ValueError, match="valid pixels"):
        scene_of(decode(encoded()), cubes[0], dice())


def test_half_of_the_examples_come_from_photographs_where_there_are_any(cubes, monkeypatch):
    names = []
    real = examples.draw_pair
    monkeypatch.setattr(
        examples, "draw_pair", lambda cube, *rest: names.append(cube.name) or real(cube, *rest)
    )
    settings = PairSettings(ratios=(2,), side=48)
    stream = ExampleStream(cubes, settings, 2, 5, photographs=[encoded(i) for i in range(3)])
    made = [stream.example(i) for i in range(10)]
    share = sum("photograph" in name for name in names) / len(names)
    assert 0.2 <= share <= 0.8
    names.clear()
    alone = ExampleStream(cubes, settings, 2, 5, photographs=[encoded()], photographed=1.0)
    alone.example(0), alone.example(1)
    assert all("photograph" in name for name in names)
    again = ExampleStream(cubes, settings, 2, 5, photographs=[encoded(i) for i in range(3)]).example(7)
    assert torch.equal(again.fine, made[7].fine)
