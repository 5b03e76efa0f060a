# SPDX-License-Identifier: GPL-2.0-or-later
"""The official checkpoints are not public files of ours: their exact keys and shapes are written out here."""

import pytest
import torch
import torch.nn.functional as F
from hypersharp.backend.errors import HyperSharpError
from hypersharp.backend.models.convert import convert_checkpoint, convert_state
from hypersharp.backend.models.mbfn import MBFN
from hypersharp.backend.models.pretrained import from_pretrained

TEACHER = {"hmfeat": (6, 1), "mhfeat": (6, 1), "hfeat": (4, 1), "mfeat": (4, 1)}
STUDENT = {"hmfeat": (1, 1), "mhfeat": (4, 1), "hfeat": (4, 43), "mfeat": (1, 1)}


def official_shapes(layers, hs=172, msi=4, nf=86, gc=43):
    shapes = {}

    def conv(name, cin, cout, k, groups=1, bias=True):
        shapes[f"{name}.weight"] = (cout, cin // groups, k, k)
        if bias:
            shapes[f"{name}.bias"] = (cout,)

    for name, cin in (("hmconv1", hs + msi), ("mhconv1", hs + msi), ("hconv1", hs), ("mconv1", msi)):
        conv(name, cin, nf, 3)
    for part, (count, groups) in layers.items():
        for i in range(count):
            for b in (1, 2, 3):
                for c in range(5):
                    conv(f"{part}.{i}.MFB{b}.conv{c + 1}", nf + c * gc, gc if c < 4 else nf, 3, groups)
    for name in ("query_conv", "key_conv", "value_conv"):
        conv(f"fuse_att.{name}", nf, 64, 1)
    conv("fuse_att.output_conv", 64, nf, 1)
    conv("fuse_att.attention_weights", 4 * nf, 4, 1)
    conv("fuse", nf, hs, 3)
    conv("last", hs, hs, 3, bias=False)
    return shapes


def official_state(layers, prefix, **sizes):
    generator = torch.Generator().manual_seed(5)
    return {
        prefix + name: torch.randn(shape, generator=generator)
        * (0.5 / max(1, torch.tensor(shape[1:]).prod())) ** 0.5
        for name, shape in official_shapes(layers, **sizes).items()
    }


def reference_forward(s, layers, y, m, run_hm):
    """The network written straight from its description, on the official names."""

    def conv(name, x, pad=1, groups=1):
        return F.conv2d(x, s[f"{name}.weight"], s.get(f"{name}.bias"), padding=pad, groups=groups)

    def act(x):
        return F.leaky_relu(x, 0.2)

    def feat(part, x):
        count, groups = layers[part]
        for i in range(count):
            start = x
            for b in (1, 2, 3):
                name = f"{part}.{i}.MFB{b}.conv"
                x1 = act(conv(name + "1", x, groups=groups))
                x2 = act(conv(name + "2", torch.cat((x, x1), 1), groups=groups))
                x3 = act(conv(name + "3", torch.cat((x, x1, x2), 1), groups=groups))
                x4 = act(conv(name + "4", torch.cat((x, x1, x2, x3), 1), groups=groups))
                x = x + 0.2 * conv(name + "5", torch.cat((x, x1, x2, x3, x4), 1), groups=groups)
            x = start + 0.2 * x
        return x

    up = F.interpolate(y, scale_factor=4, mode="bilinear")
    down = F.interpolate(m, scale_factor=0.25, mode="bicubic")
    z = act(conv("hmconv1", torch.cat((up, m), 1)))
    if run_hm:
        z = feat("hmfeat", z)
    v = F.interpolate(feat("mhfeat", act(conv("mhconv1", torch.cat((y, down), 1)))), scale_factor=4)
    k = feat("mfeat", act(conv("mconv1", m)))
    q = F.interpolate(feat("hfeat", act(conv("hconv1", y))), scale_factor=4)

    def heads(name, x):
        return conv(f"fuse_att.{name}", x, pad=0).flatten(2).unflatten(1, (4, 16))

    logits = torch.einsum("bhqn,bhkn->bhqk", heads("query_conv", q), heads("key_conv", k)) / 16**0.5
    mixed = torch.einsum("bhqk,bhkn->bhqn", logits.softmax(-1), heads("value_conv", v))
    z2 = conv("fuse_att.output_conv", mixed.flatten(1, 2).view(*z.shape[:1], 64, *z.shape[2:]), pad=0) + z
    g = torch.sigmoid(conv("fuse_att.attention_weights", torch.cat((q, k, v, z2), 1), pad=0))
    fused = g[:, 0:1] * q + g[:, 1:2] * k + g[:, 2:3] * v + g[:, 3:4] * z2
    return conv("last", act(conv("fuse", fused))), fused


@pytest.mark.parametrize("prefix", ["", "decoder.", "_orig_mod.decoder."])
@pytest.mark.parametrize("student", [False, True])
def test_same_output_as_the_official_forward(tmp_path, prefix, student):
    # Full widths, so that keys and shapes are those of the real files; a small image keeps it quick.
    layers = STUDENT if student else TEACHER
    state = official_state(layers, prefix)
    path = tmp_path / "official.pth"
    torch.save(state, path)
    convert_checkpoint(path, tmp_path / "weights")
    model = from_pretrained(tmp_path / "weights", MBFN)
    assert model.parameter_count() == (7_449_946 if student else 26_807_686)
    generator = torch.Generator().manual_seed(6)
    y, m = torch.rand(1, 172, 3, 2, generator=generator), torch.rand(1, 4, 12, 8, generator=generator)
    plain = {k.removeprefix(prefix): v for k, v in state.items()}
    with torch.no_grad():
        expected, expected_features = reference_forward(plain, layers, y, m, run_hm=not student)
        found, features = model(y, m)
    assert torch.allclose(features, expected_features, rtol=1e-4, atol=1e-4)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
    assert expected.std() > 1e-3


def test_other_checkpoints_are_refused(tmp_path):
    small = {"hs": 6, "msi": 2, "nf": 8, "gc": 4}
    state = official_state(
        {"hmfeat": (1, 1), "mhfeat": (1, 1), "hfeat": (1, 1), "mfeat": (1, 1)}, "", **small
    )
    assert convert_state(state).config.blocks == (1, 1, 1, 1)
    with pytest.raises(HyperSharpError, match="it has encoder"):
        convert_state({**state, "encoder.weight": torch.zeros(1)})
    with pytest.raises(HyperSharpError, match="parts of the network are missing"):
        convert_state({k: v for k, v in state.items() if "mconv1" not in k})
    with pytest.raises(HyperSharpError, match="does not fit"):
        convert_state({**state, "fuse.bias": torch.zeros(5)})
    path = tmp_path / "bad.pth"
    torch.save({"model": object()}, path)
    with pytest.raises(HyperSharpError, match="plain tensors"):
        convert_checkpoint(path, tmp_path / "out")
    torch.save([1, 2], path)
    with pytest.raises(HyperSharpError, match="no state dict"):
        convert_checkpoint(path, tmp_path / "out")
    path.write_bytes(b"nonsense")
    with pytest.raises(HyperSharpError, match="plain tensors"):
        convert_checkpoint(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
