"""The command line: exit codes, error lines, JSON, progress, cancel."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from hypersharp.backend import cli
from hypersharp.backend.job import DEFAULT_METHOD
from hypersharp.backend.protocol import decode
from hypersharp.backend.registry import METHODS


def run(capsys, *args):
    """Run the command line in this process; return (exit code, stdout, stderr)."""
    code = cli.main([str(a) for a in args])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_fuse_prints_the_table_and_the_paths(pair_files, tmp_path, capsys):
    hs, guide, _ = pair_files(rows=64, cols=64)
    out = tmp_path / "o.tif"
    code, text, _ = run(
        capsys, "fuse", hs, guide, "-o", out, "--metrics", tmp_path / "m.json", "--progress", "none"
    )
    assert code == 0 and out.exists()
    assert "PSNR" in text and "SAM" in text and str(out) in text
    assert json.loads((tmp_path / "m.json").read_text())["method"] == DEFAULT_METHOD


def test_bad_input_is_two_lines_and_exit_code_2(pair_files, tmp_path, capsys):
    hs, guide, _ = pair_files()
    code, text, err = run(capsys, "fuse", tmp_path / "none.tif", guide, "-o", tmp_path / "o.tif")
    assert code == 2 and text == ""
    lines = err.strip().splitlines()
    assert len(lines) == 2 and lines[0].startswith("error: ") and lines[1].startswith("hint: ")


@pytest.mark.parametrize(
    "args",
    [
        ["fuse"],
        ["nonsense"],
        ["fuse", "a", "b", "-o", "c.tif", "--dtype", "int3"],
        ["fuse", "a", "b", "-o", "c.tif", "--option", "x"],
        ["fuse", "a", "b", "-o", "c.tif", "--memory", "much"],
    ],
)
def test_wrong_usage(capsys, args):
    code, _, err = run(capsys, *args)
    assert code == 2 and err.startswith("error: ") and "\nhint: " in err and "Traceback" not in err


@pytest.mark.parametrize(
    ("module", "name", "args"),
    [
        ("safetensors", "safetensors", ["--method", "csakd"]),
        ("pywt", "PyWavelets", ["--method", "csakd", "--adapt", "3"]),
        ("scipy", "scipy", ["--method", "hysure"]),
    ],
)
def test_a_missing_package_is_named(pair_files, tmp_path, root, module, name, args):
    hs, guide, _ = pair_files(rows=64, cols=64)
    # In a process of its own: here the package may be loaded already.
    code = f"import runpy, sys; sys.modules[{module!r}] = None; runpy.run_path(sys.argv.pop(1), run_name='__main__')"
    command = [sys.executable, "-c", code, str(root), "fuse", hs, guide, "-o", str(tmp_path / "o.tif"), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    lines = [line for line in done.stderr.splitlines() if not line.startswith("warning: ")]
    assert done.returncode == 2, done.stderr
    assert len(lines) == 2 and lines[0] == f"error: the environment lacks {name}"
    assert lines[1].startswith("hint: ") and f"pip install {name}" in lines[1]
    assert not (tmp_path / "o.tif").exists()


def test_json_progress_is_the_protocol(pair_files, tmp_path, capsys):
    hs, guide, _ = pair_files()
    code, text, _ = run(
        capsys, "fuse", hs, guide, "-o", tmp_path / "o.tif", "--progress", "json", "--no-assess"
    )
    messages = [decode(line) for line in text.strip().splitlines()]
    assert code == 0 and None not in messages
    assert messages[-1].type == "result" and messages[-1].outputs["OUTPUT"] == str(tmp_path / "o.tif")
    fractions = [m.fraction for m in messages if m.type == "progress"]
    assert fractions == sorted(fractions) and fractions[-1] == pytest.approx(1.0)


def test_methods_and_doctor(capsys):
    code, text, _ = run(capsys, "methods", "--json")
    assert code == 0 and [m["id"] for m in json.loads(text)] == list(METHODS)
    code, text, _ = run(capsys, "methods")
    assert all(name in text for name in METHODS)
    code, text, _ = run(capsys, "doctor", "--json")
    report = json.loads(text)
    assert (
        code == 0
        and report["packages"]["torch"]
        and report["device"] in ("cpu", "cuda")
        and report["device_note"]
    )
    code, text, _ = run(capsys, "doctor")
    assert code == 0 and "torch" in text


def test_a_bug_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr(cli, "list_methods", lambda _: 1 / 0)
    code, _, err = run(capsys, "methods")
    assert code == 1 and "bug" in err


def test_ctrl_c_cancels_with_exit_code_3(pair_files, tmp_path, root):
    """SIGINT in the middle: exit code 3, nothing left, and the folder runs without being installed."""
    hs, guide, _ = pair_files(bands=30, rows=150, cols=150, ratio=6)
    before = sorted(os.listdir(tmp_path))
    command = [
        sys.executable,
        "-I",
        str(root),
        "fuse",
        hs,
        guide,
        "-o",
        str(tmp_path / "o.tif"),
        "--progress",
        "json",
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/")
    for line in process.stdout:
        if getattr(decode(line), "stage", "") == "fusing":
            process.send_signal(signal.SIGINT)
            break
    started = time.monotonic()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 3 and "cancelled" in err and "Traceback" not in err
    assert time.monotonic() - started < 30
    assert sorted(os.listdir(tmp_path)) == before


def test_threads_wait_politely_before_torch_is_there():
    """Without it a busy machine takes eight times as long; what the user has set stays."""
    code = "import os, sys; {}; assert 'torch' in sys.modules; print(os.environ['OMP_WAIT_POLICY'])"
    ways = (
        "from hypersharp.backend import fuse",
        "from hypersharp.backend import cli; cli.main(['doctor', '--json'])",
    )
    plain = {k: v for k, v in os.environ.items() if k != "OMP_WAIT_POLICY"}
    for way in ways:
        for given, expected in ((None, "passive"), ("active", "active")):
            env = plain | ({"OMP_WAIT_POLICY": given} if given else {})
            done = subprocess.run(
                [sys.executable, "-c", code.format(way)], env=env, capture_output=True, text=True
            )
            assert done.stdout.strip().splitlines()[-1] == expected, done.stderr
