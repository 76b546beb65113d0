"""What ends is told once in each window, whatever page it shows."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from playwright.sync_api import expect

from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training import events
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run
from ui.conftest import PATIENCE, App
from working import mark_running, release

Begin = Callable[[str], Run]
TOLD = "#ended .notice strong"


@pytest.fixture
def begin(home: Home) -> Iterator[Begin]:
    """A run with a process at work in it (which does nothing)."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(name: str) -> Run:
        run = runs.create(home, parse_spec({"name": name, "data": {"files": ["x.jsonl"]}}, "test"))
        workers.append(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(300)"]))
        mark_running(run, workers[-1].pid)
        return run

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()


def finish(run: Run, event: events.Event) -> None:
    run.append(event)
    release(run)


def test_each_window_tells_once_and_leads_there(app: App, begin: Begin) -> None:
    done, failed = begin("夜间 &amp; {{run}}"), begin("other")
    one = app.open("settings")
    expect(one.locator("#foot .running-work")).to_have_count(2, timeout=PATIENCE)
    finish(done, events.Finished(reason="all epochs", summary={}))
    expect(one.locator(TOLD)).to_have_text(f"“{done.name}” has finished training", timeout=PATIENCE)
    two = app.open()
    expect(two.locator("#foot .running-work")).to_have_count(1, timeout=PATIENCE)  # drawn by the tick that tells, too
    expect(two.locator("#ended .notice")).to_have_count(0)  # that was told in the window of its time
    finish(failed, events.Failed(error="DiskFull", message="no space is left.", exit_code=1))
    for page in (one, two):
        expect(page.locator(TOLD)).to_have_text("Training “other” failed", timeout=PATIENCE)
        expect(page.locator("#ended .notice p")).to_have_text("no space is left.")
    two.reload()
    expect(two.locator(TOLD)).to_have_text("Training “other” failed", timeout=PATIENCE)  # until it is closed
    one.click("#ended .close")
    expect(one.locator(TOLD)).to_have_text(f"“{done.name}” has finished training")
    one.click("#ended [data-do=see]")
    one.wait_for_selector("#page-train .page-header:visible")
    expect(one.locator("#ended .notice")).to_have_count(0)
