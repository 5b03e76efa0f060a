# SPDX-License-Identifier: GPL-2.0-or-later
import json

import pytest
import torch
from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.backend.models.hyfusion import HyFusion, HyFusionConfig
from hypersharp.backend.models.mbfn import MBFN, MBFNConfig
from hypersharp.backend.models.pretrained import WEIGHTS_NAME, from_pretrained, read_config
from safetensors.torch import load_file, save_file


def small():
    return MBFN(
        MBFNConfig(3, 1, None, width=8, growth=4, blocks=(1, 1, 1, 1), attention=4, heads=2, window=5)
    )


def refused(folder, *words, expected=None):
    with pytest.raises(HyperSharpError) as caught:
        from_pretrained(folder, expected)
    assert caught.value.code is ErrorCode.NO_WEIGHTS
    assert caught.value.hint
    for word in words:
        assert word in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("half", [False, True])
def test_round_trip(tmp_path, half):
    model = small().eval()
    model.save_pretrained(tmp_path / "w", {"input": {"k": 8}}, half=half, card="# card")
    again = from_pretrained(tmp_path / "w")
    assert again.config == model.config
    assert not again.training
    assert read_config(tmp_path / "w")["input"] == {"k": 8}
    assert (tmp_path / "w" / "card.md").read_text() == "# card"
    inputs = torch.rand(1, 3, 6, 6), torch.rand(1, 1, 24, 24)
    expected, found = model(*inputs)[0], again(*inputs)[0]
    assert torch.allclose(expected, found, atol=2e-3 if half else 0)
    assert sorted(p.name for p in (tmp_path / "w").iterdir()) == [
        "card.md",
        "config.json",
        "model.safetensors",
    ]


def test_missing_folder_and_other_class(tmp_path):
    refused(tmp_path / "nothing", "no weights")
    small().save_pretrained(tmp_path / "w")
    refused(tmp_path / "w", "class 'mbfn'", expected=HyFusion)
    path = tmp_path / "w" / "config.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "class": "unet"}))
    refused(tmp_path / "w", "class 'unet'")
    path.write_text("{")
    refused(tmp_path / "w", "not JSON")
    path.write_text(json.dumps({**content, "architecture": {"depth": 3}}))
    refused(tmp_path / "w", "unknown entries depth")


def test_truncated_file(tmp_path):
    small().save_pretrained(tmp_path)
    path = tmp_path / WEIGHTS_NAME
    data = path.read_bytes()
    for length in (len(data) - 100, len(data) // 2, 5, 0):
        path.write_bytes(data[:length])
        refused(tmp_path, "damaged or incomplete")
    path.unlink()
    refused(tmp_path, "there is no")


def test_weights_of_another_shape_and_not_finite(tmp_path):
    small().save_pretrained(tmp_path / "a")
    HyFusion(HyFusionConfig(3, 1, width=8, depth=1, growth=8, heads=2)).save_pretrained(tmp_path / "b")
    path = tmp_path / "a" / WEIGHTS_NAME
    own = load_file(path)
    path.write_bytes((tmp_path / "b" / WEIGHTS_NAME).read_bytes())
    refused(tmp_path / "a", "another network")
    own["last.weight"][0, 0, 0, 0] = float("nan")
    save_file(own, path)
    refused(tmp_path / "a", "not finite")
