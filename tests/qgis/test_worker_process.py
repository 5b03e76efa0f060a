"""The worker process seen from QGIS: messages, cancel, crash, kill, and what is left behind."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest

pytest.importorskip("qgis.core")

from hypersharp.backend import protocol
from hypersharp.backend.errors import Cancelled, ErrorCode, HyperSharpError
from hypersharp.plugin import worker_process

pytestmark = pytest.mark.usefixtures("no_children")


def leftovers(job):
    return sorted(p.name for p in Path(job.output).parent.iterdir())


def test_result_and_messages_arrive(fuse_job, fake):
    seen = []
    result = worker_process.run_job(fuse_job, seen.append, command=fake("ok"))
    assert result.outputs == {"OUTPUT": fuse_job.output}
    assert result.metrics["method"] == fuse_job.method
    assert isinstance(seen[0], protocol.Hello)
    assert [m.done for m in seen if isinstance(m, protocol.Progress)] == [1, 2, 3, 4]
    assert [m.text for m in seen if isinstance(m, protocol.Log)] == ["a warning"]
    assert leftovers(fuse_job) == ["out.tif"]
    assert worker_process.running() == 0


def test_stray_output_is_no_message(fuse_job, fake):
    assert worker_process.run_job(fuse_job, command=fake("noise")).outputs


def test_cancel_is_answered_at_once(fuse_job, fake):
    begun = threading.Event()
    started = time.monotonic()

    def on_message(message):
        if isinstance(message, protocol.Progress):
            begun.set()

    with pytest.raises(Cancelled):
        worker_process.run_job(fuse_job, on_message, begun.is_set, command=fake("slow"))
    assert time.monotonic() - started < 3
    assert leftovers(fuse_job) == []


def test_cancel_before_the_start_starts_nothing(fuse_job):
    with pytest.raises(Cancelled):
        worker_process.run_job(fuse_job, None, lambda: True, command=["/no/such/program"])


def test_deaf_worker_is_killed(fuse_job, fake):
    begun = threading.Event()
    with pytest.raises(Cancelled):
        worker_process.run_job(
            fuse_job,
            lambda m: begun.set() if isinstance(m, protocol.Progress) else None,
            begun.is_set,
            command=fake("deaf"),
            cancel_grace_s=0.3,
            terminate_grace_s=0.3,
        )
    assert leftovers(fuse_job) == []


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("segfault", "SIGSEGV"),
        ("killed", "memory ran out"),
        ("dies", "exit code 7 (one | two | the reason)"),
        ("no-python", "no such thing"),
    ],
)
def test_crash_is_readable_and_leaves_nothing(fuse_job, fake, how, words):
    with pytest.raises(HyperSharpError) as caught:
        worker_process.run_job(fuse_job, command=fake(how))
    assert caught.value.code is ErrorCode.CRASHED
    assert words in caught.value.message
    assert "\n" not in caught.value.message
    assert leftovers(fuse_job) == []


def test_killed_from_outside_in_the_middle(fuse_job, fake):
    def on_message(message):
        if isinstance(message, protocol.Progress) and message.done == 2:
            (worker,) = worker_process._running
            os.kill(worker.pid, signal.SIGKILL)

    with pytest.raises(HyperSharpError) as caught:
        worker_process.run_job(fuse_job, on_message, command=fake("slow"))
    assert caught.value.code is ErrorCode.CRASHED
    assert leftovers(fuse_job) == []


def test_only_the_partial_file_of_the_job_is_removed(fuse_job, fake, tmp_path):
    for name in ("other.part.tif", "out.txt"):
        (tmp_path / name).write_text("mine")
    with pytest.raises(HyperSharpError):
        worker_process.run_job(fuse_job, command=fake("dies"))
    assert leftovers(fuse_job) == ["other.part.tif", "out.txt"]


def test_error_keeps_code_hint_and_details(fuse_job, fake):
    seen = []
    with pytest.raises(HyperSharpError) as caught:
        worker_process.run_job(fuse_job, seen.append, command=fake("error"))
    assert (caught.value.code, caught.value.hint, caught.value.retry) == (
        ErrorCode.OUT_OF_MEMORY,
        "use less",
        True,
    )
    assert "Traceback" not in str(caught.value)
    assert seen[-1] == protocol.Log("debug", "Traceback")


def test_silent_worker_times_out(fuse_job, fake):
    with pytest.raises(HyperSharpError, match="did not start within") as caught:
        worker_process.run_job(fuse_job, command=fake("mute"), hello_timeout_s=0.5)
    assert caught.value.code is ErrorCode.NO_ENVIRONMENT


def test_other_protocol_is_refused(fuse_job, fake):
    with pytest.raises(HyperSharpError, match="protocol 99"):
        worker_process.run_job(fuse_job, command=fake("future"))


def test_missing_program(fuse_job):
    with pytest.raises(HyperSharpError, match="cannot start") as caught:
        worker_process.run_job(fuse_job, command=["/no/such/python"])
    assert caught.value.code is ErrorCode.NO_ENVIRONMENT


def test_an_error_in_the_listener_ends_the_worker(fuse_job, fake):
    def on_message(message):
        raise RuntimeError("the dialog is gone")

    with pytest.raises(RuntimeError):
        worker_process.run_job(fuse_job, on_message, command=fake("slow"))
    assert worker_process.running() == 0


def test_variables_of_qgis_do_not_reach_the_worker(fuse_job, fake, monkeypatch):
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    monkeypatch.setenv("QGIS_PREFIX_PATH", "/usr")
    assert worker_process.run_job(fuse_job, command=fake("ok"))


def test_two_runs_at_once(tmp_path, fake):
    from hypersharp.backend.job import FuseJob

    results, most = {}, []

    def run(name):
        job = FuseJob(hs="a", guide="b", output=str(tmp_path / name), method=name)
        results[name] = worker_process.run_job(
            job, lambda _m: most.append(worker_process.running()), command=fake("ok")
        )

    threads = [threading.Thread(target=run, args=(f"run{i}",)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {name: r.metrics["method"] for name, r in results.items()} == {"run0": "run0", "run1": "run1"}
    assert max(most) == 2


def test_stop_all_ends_every_worker(fuse_job, fake):
    caught = []

    def run():
        try:
            worker_process.run_job(fuse_job, command=fake("slow"))
        except HyperSharpError as error:
            caught.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    while worker_process.running() == 0:
        time.sleep(0.02)
    time.sleep(0.3)
    worker_process.stop_all()
    thread.join(5)
    assert not thread.is_alive()
    assert isinstance(caught[0], Cancelled)
    assert leftovers(fuse_job) == []
