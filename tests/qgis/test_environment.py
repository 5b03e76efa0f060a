"""Finding the interpreter: setting, variable, checkout; and errors that say what to do."""

import os
import stat
import sys
from pathlib import Path

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend.errors import ErrorCode, HyperSharpError
from hypersharp.plugin import environment, settings, worker_process


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """No setting, no variable, no checkout unless the test says so."""
    before = settings.python()
    settings.set_python("")
    monkeypatch.delenv(environment.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setattr(environment, "_checked", {})
    yield
    settings.set_python(before)


def script(path: Path, text: str) -> str:
    """Write an executable that is no Python."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def refused(call, *words):
    with pytest.raises(HyperSharpError) as caught:
        call()
    assert caught.value.code is ErrorCode.NO_ENVIRONMENT
    assert caught.value.hint
    for word in words:
        assert word in f"{caught.value.message} {caught.value.hint}"


def test_setting_comes_before_variable_before_checkout(monkeypatch, tmp_path):
    monkeypatch.setattr(environment, "checkout_pythons", lambda: [tmp_path / "none", Path(sys.executable)])
    assert environment.locate().python == sys.executable
    monkeypatch.setenv(environment.ENVIRONMENT_VARIABLE, script(tmp_path / "from-variable", "true"))
    assert environment.locate().python.endswith("from-variable")
    settings.set_python(script(tmp_path / "from-setting", "true"))
    assert environment.locate().python.endswith("from-setting")


def test_layouts_of_three_systems(tmp_path):
    found = [str(p.relative_to(tmp_path)) for p in environment.checkout_pythons(tmp_path)]
    assert found == [os.path.join(".venv", "bin", "python"), os.path.join(".venv", "Scripts", "python.exe")]


def test_nothing_named(monkeypatch):
    monkeypatch.setattr(environment, "checkout_pythons", lambda: [])
    refused(environment.locate, "hypersharp/python", environment.ENVIRONMENT_VARIABLE, "make env")


def test_wrong_setting_is_not_passed_over(monkeypatch):
    monkeypatch.setenv(environment.ENVIRONMENT_VARIABLE, sys.executable)
    settings.set_python("/no/such/python")
    refused(environment.locate, "/no/such/python", "setting")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("echo broken >&2; exit 3", "broken"),
        ("echo hello", "does not answer as Python"),
        ('echo \'{"version": [3, 8, 1], "missing": []}\'', "3.8.1"),
        ('echo \'{"version": [3, 12, 1], "missing": ["torch"]}\'', "pip install torch"),
    ],
)
def test_unfit_interpreters(tmp_path, text, words):
    interpreter = environment.Interpreter(script(tmp_path / "python", text), "the test")
    refused(lambda: environment.check(interpreter), words)


def test_hanging_interpreter(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "CHECK_TIMEOUT_S", 0.2)
    interpreter = environment.Interpreter(script(tmp_path / "python", "exec sleep 5"), "the test")
    refused(lambda: environment.check(interpreter), "no answer within")


def test_check_runs_once(tmp_path):
    count = tmp_path / "count"
    text = f'echo x >> {count}; echo \'{{"version": [3, 12, 1], "missing": []}}\''
    interpreter = environment.Interpreter(script(tmp_path / "python", text), "the test")
    environment.check(interpreter)
    environment.check(interpreter)
    assert count.read_text() == "x\n"


def test_run_job_tells_the_missing_environment(monkeypatch, fuse_job):
    monkeypatch.setattr(environment, "checkout_pythons", lambda: [])
    refused(lambda: worker_process.run_job(fuse_job), "no fusion environment")


def test_child_environment_is_clean():
    parent = {
        "PATH": "/bin",
        "HOME": "/home/me",
        "CUDA_VISIBLE_DEVICES": "1",
        "PYTHONHOME": "x",
        "PYTHONPATH": "x",
        "PYTHONEXECUTABLE": "x",
        "PIP_INDEX_URL": "x",
        "QGIS_PREFIX_PATH": "x",
        "PROJ_LIB": "x",
        "PROJ_DATA": "x",
        "GDAL_DATA": "x",
        "LD_LIBRARY_PATH": "x",
        "LD_PRELOAD": "x",
        "DYLD_LIBRARY_PATH": "x",
        "VIRTUAL_ENV": "x",
        "CONDA_PREFIX": "x",
    }
    assert environment.child_environment(parent) == {
        "PATH": "/bin",
        "HOME": "/home/me",
        "CUDA_VISIBLE_DEVICES": "1",
    }
