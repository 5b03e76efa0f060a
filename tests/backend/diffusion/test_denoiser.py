# SPDX-License-Identifier: GPL-2.0-or-later
import json

import pytest
import torch
from diffusers import UNet2DModel
from hypersharp.backend.diffusion.denoiser import (
    DIFFUSERS_WEIGHTS,
    Denoiser,
    load_denoiser,
    log_snr_time,
)
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.weights import find_weights

from .conftest import tiny_unet


@pytest.fixture
def x():
    return torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


def test_time_falls_with_the_signal():
    times = log_snr_time(torch.tensor([1e-3, 0.1, 0.5, 0.9, 0.999, 1 - 1e-6]))
    assert bool((times.diff() < 0).all()) and float(times[0]) <= 1000 and float(times[-1]) >= 0
    assert float(log_snr_time(torch.tensor([0.5]))) == pytest.approx(1000 * 13 / 20)


@pytest.mark.parametrize("half", [False, True])
def test_saved_and_loaded_it_says_the_same(tmp_path, x, half):
    net = tiny_unet()
    net.save_pretrained(tmp_path / "w", {"training": {"data": {}}}, half=half, card="# card\n")
    again = load_denoiser(tmp_path / "w")
    assert isinstance(again, Denoiser) and again.multiple == 2
    share = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        torch.testing.assert_close(
            again.epsilon(x, share), net.epsilon(x, share), rtol=0, atol=5e-3 if half else 1e-6
        )
    assert (tmp_path / "w" / "card.md").is_file()


def test_diffusers_itself_reads_the_folder(tmp_path, x):
    net = tiny_unet()
    net.save_pretrained(tmp_path / "w")
    theirs = UNet2DModel.from_pretrained(tmp_path / "w").eval()
    share = torch.tensor([0.3, 0.9])
    with torch.no_grad():
        torch.testing.assert_close(theirs(x, log_snr_time(share)).sample, net.epsilon(x, share))


@pytest.mark.parametrize("damage", ["missing", "truncated", "class", "config", "nan"])
def test_damaged_weights_are_refused(tmp_path, damage):
    net, folder = tiny_unet(), tmp_path / "w"
    if damage == "nan":
        with torch.no_grad():
            net.unet.conv_in.bias[0] = float("nan")
    net.save_pretrained(folder)
    file, config = folder / DIFFUSERS_WEIGHTS, folder / "config.json"
    if damage == "missing":
        file.unlink()
    if damage == "truncated":
        file.write_bytes(file.read_bytes()[:1000])
    content = json.loads(config.read_text())
    if damage == "class":
        config.write_text(json.dumps({**content, "class": "MBFN"}))
    if damage == "config":
        config.write_text(json.dumps({**content, "block_out_channels": [8, 24]}))
    with pytest.raises(HyperSharpError) as caught:
        load_denoiser(folder)
    assert caught.value.code == ErrorCode.NO_WEIGHTS and caught.value.hint


def test_the_shipped_one_is_small_and_named():
    folder = find_weights("prior")
    assert sum(f.stat().st_size for f in folder.iterdir()) <= 10 * 2**20
    card = (folder / "card.md").read_text(encoding="utf-8")
    for word in ("NAIP", "OpenAerialMap", "aviris_abu_urban-4", "enmap_potsdam", "Licence"):
        assert word in card
    used = json.loads((folder / "config.json").read_text())["training"]["data"]["cubes"]
    left_out = {"aviris_abu_urban-4", "aviris_jasper_ridge", "aviris_moffett"}
    left_out |= {"rosis_pavia_bridge", "enmap_potsdam", "neon_sjer_1m"}
    assert used and not left_out & set(used)


@pytest.mark.parametrize("share, least", [(0.5, 3.0), (0.9, 5.0), (0.99, 2.0)])
def test_the_shipped_one_removes_noise(shipped, share, least):
    """It lowers the noise of an image it has not seen by several times (in energy), at every level."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    field = ((x // 13 + y // 11) % 2) * 0.8 - 0.4 + 0.1 * torch.sin(x / 9)
    image = torch.stack([field, 0.7 * field + 0.1, -0.3 * field])[None]
    noise = torch.randn(image.shape, generator=torch.Generator().manual_seed(1))
    noisy = share**0.5 * image + (1 - share) ** 0.5 * noise
    found = shipped.epsilon(noisy, torch.tensor([share]))
    clean = (noisy - (1 - share) ** 0.5 * found) / share**0.5
    before = (noisy / share**0.5 - image).square().mean()
    assert float(before / (clean - image).square().mean()) > least
