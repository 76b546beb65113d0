"""A process is known again whatever the clock says, and not taken for a later one of its id."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

import psutil
import pytest

from finetune_local.system.process import Process, started_at


def test_it_is_known_again_by_what_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    me = Process.read(Process.here().as_json())
    assert me.pid == os.getpid() and me.mark and me.alive()
    assert not Process(me.pid, me.started, "another boot/12").alive()
    if sys.platform == "linux":
        import psutil._pslinux as system

        real = system.boot_time
        for step in (1.0, -3600.0, 10.0**8):
            monkeypatch.setattr(system, "boot_time", lambda step=step: real() + step)
            assert abs((started_at(me.pid) or 0) - me.started) > 0.5, (
                "psutil does not read the boot time there any more"
            )
            assert me.alive()


def test_what_earlier_versions_wrote_is_understood() -> None:
    code = "import time; time.sleep(60)  # finetune_local"
    with subprocess.Popen([sys.executable, "-c", code]) as ours, subprocess.Popen(["sleep", "60"]) as other:
        for process, lives in ((ours, True), (other, False)):
            known = Process.read({"pid": process.pid, "started": psutil.Process(process.pid).create_time() - 3600})
            until = time.monotonic() + 10
            while known.alive() is not lives and time.monotonic() < until:
                time.sleep(0.01)  # its command line is not there from the first instant
            assert known.mark is None and known.alive() is lives
            process.kill()
            process.wait()
            assert not known.alive()


@pytest.mark.parametrize("pid", ["1", 1.0, None, True, 0, -1, 10**400, float("inf"), [1]])
def test_what_is_no_process_is_refused(pid: Any) -> None:
    with pytest.raises(ValueError, match="pid"):
        Process.read({"pid": pid, "started": 1.0})
