"""The worker's end of the pipe: one protocol line each, whatever the engine, the parent or the system does."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import rasterio
from hypersharp.backend import protocol
from hypersharp.backend.job import FuseJob, save_job
from rasterio.transform import from_origin

ENGINE = "import os, sys, time\nfrom hypersharp.backend import run, worker\nfrom hypersharp.backend.errors import *\n"
ENGINE += (
    "from hypersharp.backend.protocol import Result\n{body}\nrun.run_job = engine\nsys.exit(worker.main())\n"
)


class Parent:
    """Plays QGIS's part."""

    def __init__(self, *arguments):
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.lines = []

    def send(self, message):
        self.process.stdin.write(protocol.encode(message) + "\n")
        self.process.stdin.flush()

    def read(self, *kinds):
        """Return the next message of these types."""
        for line in self.process.stdout:
            self.lines.append(line)
            message = protocol.decode(line)
            assert message is not None, f"not a protocol line: {line!r}"
            if isinstance(message, kinds):
                return message
        raise AssertionError(f"the worker ended: {self.process.stderr.read()}")

    def end(self, timeout=15):
        self.process.stdin.close()
        code = self.process.wait(timeout)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@pytest.fixture
def parent():
    """Start workers; end those that a test leaves running."""
    started = []

    def start(*arguments):
        started.append(Parent(*arguments))
        return started[-1]

    yield start
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()


@pytest.fixture
def real(root):
    """The command of the real worker, as QGIS gives it."""
    return ["-I", "-X", "faulthandler", str(root), "worker"]


@pytest.fixture
def job_file(tmp_path):
    path = tmp_path / "job.json"
    save_job(FuseJob("hs.tif", "guide.tif", str(tmp_path / "out.tif")), path)
    return str(path)


@pytest.fixture
def long_job(tmp_path):
    """A real job of many tiles."""
    values = np.random.default_rng(0)
    for name, bands, size, pixel in (("hs", 60, 100, 40.0), ("guide", 1, 800, 5.0)):
        with rasterio.open(
            tmp_path / f"{name}.tif",
            "w",
            driver="GTiff",
            count=bands,
            height=size,
            width=size,
            dtype="float32",
            crs="EPSG:32631",
            transform=from_origin(500000, 5400000, pixel, pixel),
        ) as target:
            target.write(values.random((bands, size, size), dtype="float32"))
    path = tmp_path / "job.json"
    inputs = str(tmp_path / "hs.tif"), str(tmp_path / "guide.tif")
    save_job(FuseJob(*inputs, str(tmp_path / "out.tif"), tile=64, assess=False), path)
    return str(path)


def leftovers(tmp_path):
    return sorted(p.name for p in tmp_path.iterdir() if p.name.startswith("out"))


def engine(body):
    return "-c", ENGINE.format(body=body)


def test_hello_without_torch(parent):
    worker = parent(
        "-c", "import sys; sys.modules['torch'] = None\nfrom hypersharp.backend.worker import main; main()"
    )
    hello = worker.read(protocol.Hello)
    assert hello.protocol == protocol.PROTOCOL_VERSION
    assert set(hello.versions) >= {"python", "torch", "numpy", "rasterio"}
    assert hello.device in ("cpu", "cuda")
    worker.send(protocol.Quit())
    assert worker.process.wait(10) == 0


def test_stray_output_cannot_break_the_lines(parent, job_file):
    body = (
        "def engine(job, control):\n"
        "    print('a stray print')\n"
        "    os.write(1, b'a stray write of a C library\\n')\n"
        "    control.info('said')\n"
        "    return Result({'OUTPUT': job.output}, {'ok': True})\n"
    )
    worker = parent(*engine(body))
    worker.send(protocol.Run(job_file))
    assert worker.read(protocol.Result).metrics == {"ok": True}
    worker.send(protocol.Quit())
    assert worker.process.wait(10) == 0
    assert "a stray print" in worker.process.stderr.read()


@pytest.mark.parametrize(
    ("raised", "code", "words"),
    [
        ("HyperSharpError('wrong', 'do this')", "bad_input", "wrong"),
        ("MemoryError()", "oom", "memory ran out"),
        ('RuntimeError("DefaultCPUAllocator: can\'t allocate memory")', "oom", "memory ran out"),
        ("ModuleNotFoundError('no torch', name='torch')", "no_environment", "lacks torch"),
        ("ZeroDivisionError('x')", "internal", "ZeroDivisionError"),
    ],
)
def test_errors_by_code(parent, job_file, raised, code, words):
    worker = parent(*engine(f"def engine(job, control):\n    raise {raised}\n"))
    worker.send(protocol.Run(job_file))
    error = worker.read(protocol.ErrorMessage, protocol.Result)
    assert (error.code, words in error.message) == (code, True)
    assert "Traceback" not in error.message
    assert ("Traceback" in error.details) == (code != "bad_input")
    assert error.hint


def test_a_result_that_is_no_json_is_a_bug(parent, job_file):
    body = "def engine(job, control):\n    return Result({}, {'PSNR': float('nan')})\n"
    worker = parent(*engine(body))
    worker.send(protocol.Run(job_file))
    assert worker.read(protocol.ErrorMessage, protocol.Result).code == "internal"


def test_a_job_file_that_is_none(parent, real, tmp_path):
    (tmp_path / "job.json").write_text(json.dumps({"kind": "bake"}))
    worker = parent(*real)
    worker.send(protocol.Run(str(tmp_path / "job.json")))
    assert worker.read(protocol.ErrorMessage).code == "usage"
    worker.send(protocol.Run(str(tmp_path / "none.json")))  # it lives on
    assert worker.read(protocol.ErrorMessage).code == "usage"
    assert worker.end() == 3


def until_fusing(worker, job):
    """Run a job up to its first tiles."""
    worker.send(protocol.Run(job))
    while True:
        message = worker.read(protocol.Progress, protocol.Result, protocol.ErrorMessage)
        assert isinstance(message, protocol.Progress), message
        if message.stage == "fusing" and message.done > 0:
            return


def test_cancel_is_answered_within_a_second(parent, real, long_job, tmp_path):
    worker = parent(*real)
    until_fusing(worker, long_job)
    started = time.monotonic()
    worker.send(protocol.Cancel())
    assert worker.read(protocol.CancelledMessage, protocol.Result) == protocol.CancelledMessage()
    assert time.monotonic() - started < 1
    assert leftovers(tmp_path) == []
    worker.send(protocol.Run(long_job))  # a cancel ends its own job only
    assert worker.read(protocol.Result, protocol.CancelledMessage, protocol.ErrorMessage).outputs


def test_the_parents_death_ends_the_worker(parent, real, long_job, tmp_path):
    worker = parent(*real)
    until_fusing(worker, long_job)
    assert worker.end() == 3
    assert leftovers(tmp_path) == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such signals")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_worker_without_leftovers(parent, real, long_job, tmp_path, number):
    worker = parent(*real)
    until_fusing(worker, long_job)
    worker.process.send_signal(number)
    worker.read(protocol.CancelledMessage)
    assert worker.end() == 3
    assert leftovers(tmp_path) == []
