"""The whole way of a first user in a real browser, with the real small model, on each backend, with every connection refused.

Pick the model, bring the data, train thirty steps and watch the chart grow, reload in the middle, kill the server and open the app
again while the training goes on, chat, swap, evaluate, export a GGUF file. Then what goes wrong: a killed worker, a full disk.
"""

from __future__ import annotations

import os
import re
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from conftest import USABLE
from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from tiny import tiny_model
from ui.conftest import PATIENCE, App

OFFLINE = {"PYTHONPATH": str(Path(__file__).resolve().parents[1] / "offline")}
STEPS = 30
MINUTES = 60_000
expect.set_options(timeout=PATIENCE)


def field(page: Page, setting: str, value: str) -> None:
    """Type into a field of the form of all settings."""
    page.fill(f"#set-{setting} input, #set-{setting} textarea", value)


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.2)


@pytest.fixture
def home_with_model(home: Home, small_model: Path) -> Home:
    shutil.copytree(small_model, home.models / DEFAULT_MODEL)
    return home


@pytest.mark.slow
@pytest.mark.parametrize("backend", USABLE)
def test_from_the_model_to_the_export(backend: str, start_app: Callable[..., App], home_with_model: Home) -> None:
    app = start_app(home_with_model, **OFFLINE)
    page = app.open("model")
    expect(page.locator("#model-head")).to_contain_text(DEFAULT_MODEL)
    page.click("#model-head [data-do=continue]")

    page.click("[data-do='data.example']")
    expect(page.locator("#data-found")).to_contain_text("160", timeout=2 * MINUTES)
    ready = page.locator("[data-do='data.train']:not([disabled])")
    ready.wait_for(timeout=2 * MINUTES)
    ready.click()

    expect(page.locator("#train-subject")).to_contain_text("orders.jsonl")
    page.click("#train-settings > button")
    for setting, value in (
        ("training-max-steps", str(STEPS)), ("training-batch-size", "2"), ("training-checkpoint-every", "3"),
        ("training-validate-every", "15"), ("training-validation-rows", "4"), ("training-sample-tokens", "12"),
        ("backend", backend),
    ):  # fmt: skip
        field(page, setting, value)
    page.fill("#train-name input, #train-name textarea", f"orders {backend}")
    page.click("#train-start")

    name = f"orders {backend}"
    expect(page.locator("#train-head h1")).to_have_text(name)
    run = runs.find(home_with_model, name)
    points = page.locator("#train-curves .line").first
    expect(points).to_be_visible(timeout=4 * MINUTES)

    def drawn() -> int:
        return len((points.get_attribute("points") or "").split())

    before = drawn()
    wait_for(lambda: drawn() > before, 120)

    page.reload()  # in the middle
    expect(page.locator("#train-head h1")).to_have_text(name, timeout=2 * MINUTES)
    worker = run.worker_pid()
    app.expected += [
        "ERR_",
        "Failed to load",
        "Failed to fetch",
        "NetworkError",
        "network error",
    ]
    app.kill()  # the server, by SIGKILL
    expect(page.locator("#gone")).to_be_visible()
    assert run.worker_pid() == worker or run.status() == "finished"
    app.start()
    page = app.open()
    expect(page.locator("#train-head h1")).to_have_text(name)
    expect(page.locator("#train-state .hint.good")).to_be_visible(timeout=8 * MINUTES)
    assert run.status() == "finished" and run.last_event().summary["steps"] == STEPS  # type: ignore[union-attr]
    assert run.spec.backend == backend
    expect(page.locator("#train-answers .sample").first).to_contain_text("expected")

    page.click("#train-head [data-do=go][data-value=chat]")
    expect(page.locator("#chat-who summary")).to_contain_text(f"Base model, {name}")  # side by side from the start

    def ask(text: str) -> None:
        page.fill("#chat-message textarea", text)
        page.press("#chat-message textarea", "Enter")
        expect(page.locator("#chat-message textarea")).to_have_value("")

    ask("Two large teas to go, please.")
    said = page.locator("#chat-said")
    expect(said.locator("[data-do=again]").first).to_be_visible(timeout=3 * MINUTES)
    expect(said).to_contain_text("Two large teas to go, please.")
    page.reload()
    expect(page.locator("#chat-said")).to_contain_text("Two large teas to go, please.")
    page.click("#chat-who summary")
    page.locator("#chat-who [data-do=toggle]").first.click()  # the adapter alone, and no model is loaded again
    expect(page.locator("#chat-who summary")).not_to_contain_text("Base model")
    expect(page.locator("#chat-who [role=status]")).to_contain_text(
        re.compile(rf"Now answering: {name} \(swapped in [\d.]+ ms\)")
    )
    ask("One small soup for here.")
    expect(said.locator("article.answer .tools")).to_have_count(3, timeout=3 * MINUTES)

    app.go(page, "evaluate")
    page.fill("#evaluate-limit", "3")
    page.locator("#evaluate-limit").blur()
    expect(page.locator("#evaluate-setup")).to_contain_text("3 rows, 3 answers per row")
    page.click("#evaluate-setup [data-do=start]")
    expect(page.locator("#evaluate-main .verdict")).to_be_visible(timeout=6 * MINUTES)
    expect(page.locator("#evaluate-main .scores tbody tr")).to_have_count(3)

    app.go(page, "export")
    page.click("#export-form [data-do=quant][data-value=q8_0]")
    page.click("#export-form [data-do=start]")
    done = page.locator("#export-work .export-ended")
    expect(done).to_contain_text(re.compile("verified|passed", re.IGNORECASE), timeout=8 * MINUTES)
    (exported,) = (home_with_model.root / "exports").rglob("*.gguf")
    assert exported.read_bytes()[:4] == b"GGUF"
    assert {host.rpartition(":")[0] for host in app.hosts} == {"127.0.0.1"}


@pytest.fixture
def tiny_home(home: Home) -> Home:
    """A home whose default model is a tiny one, which trains in moments."""
    tiny_model(home.models / DEFAULT_MODEL)
    return home


def begin(page: Page, app: App, *, steps: int = 5000) -> None:
    """Start a run on the example with the tiny model."""
    app.go(page, "data")
    page.click("[data-do='data.example']")
    page.locator("[data-do='data.train']:not([disabled])").click(timeout=2 * MINUTES)
    page.click("#train-settings > button")
    for setting, value in (("training-max-steps", str(steps)), ("training-batch-size", "2"), ("training-checkpoint-every", "2"),
                           ("training-sample-rows", "0")):  # fmt: skip
        field(page, setting, value)
    page.click("#train-start")
    expect(page.locator("#train-run")).to_be_visible()


def test_a_killed_worker_is_told_and_gone_on_with(start_app: Callable[..., App], tiny_home: Home) -> None:
    app = start_app(tiny_home)
    page = app.open()
    begin(page, app)
    (run,) = runs.every(tiny_home)
    wait_for(lambda: any(run.checkpoints.glob("step-*")), 120)
    pid = run.worker_pid()
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    expect(page.locator("#train-state .hint.warn")).to_contain_text("ended unexpectedly")
    page.click("#train-head [data-do=resume]")
    expect(page.locator("#train-head .badge.live")).to_be_visible(timeout=MINUTES)
    page.click("#train-head [data-do=finish]")
    expect(page.locator("#train-state .hint.good")).to_be_visible(timeout=MINUTES)
    assert run.status() == "finished" and run.adapter.is_dir()


def test_pause_and_go_on(start_app: Callable[..., App], tiny_home: Home) -> None:
    app = start_app(tiny_home)
    page = app.open()
    begin(page, app)
    page.click("#train-head [data-do=pause]")
    expect(page.locator("#train-state .hint.warn")).to_contain_text("Paused", timeout=MINUTES)
    (run,) = runs.every(tiny_home)
    assert run.status() == "paused"
    page.click("#train-head [data-do=resume]")
    expect(page.locator("#train-head .badge.live")).to_be_visible(timeout=MINUTES)
    app.stop()  # closing the app does not end it
    app.expected += ["ERR_", "Failed to load", "Failed to fetch"]
    assert run.status() == "running"
    runs.ask_to_stop(run, patience=60)


def test_a_full_disk_is_a_sentence_and_nothing_is_lost(start_app: Callable[..., App], tiny_home: Home) -> None:
    """A file may have so many bytes and no more: what a quota or a full disk says, too."""
    app = start_app(tiny_home)
    page = app.open()
    resource.prlimit(app.process.pid, resource.RLIMIT_FSIZE, (80_000, resource.RLIM_INFINITY))  # its workers inherit it
    begin(page, app)
    expect(page.locator("#train-state .hint.bad")).to_contain_text("no space is left", timeout=2 * MINUTES)
    expect(page.locator("#train-state .hint.bad strong")).to_have_text("The disk is full")
    (run,) = runs.every(tiny_home)
    assert run.last_event().kind == "failed" and not any(run.checkpoints.glob("step-*"))  # type: ignore[union-attr]
    resource.prlimit(app.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    page.click("#train-head [data-do=resume]")
    expect(page.locator("#train-head .badge.live")).to_be_visible(timeout=MINUTES)
    wait_for(lambda: any(run.checkpoints.glob("step-*")), 60)
    page.click("#train-head [data-do=finish]")
    expect(page.locator("#train-state .hint.good")).to_be_visible(timeout=MINUTES)


def test_a_mistake_in_a_setting_is_told_while_it_is_typed(start_app: Callable[..., App], tiny_home: Home) -> None:
    app = start_app(tiny_home)
    page = app.open("train")
    page.click("#train-settings > button")
    field(page, "training-learning-rate", "much")
    problem = page.locator("#train-summary .hint.bad")
    expect(problem).to_contain_text("learning_rate")
    page.click("#train-start")
    expect(page.locator("#notice .notice.bad")).to_be_visible()
    assert runs.every(tiny_home) == []
    page.reload()
    page.click("#train-settings > button")
    expect(page.locator("#set-training-learning-rate input, #set-training-learning-rate textarea")).to_have_value(
        "much"
    )


def test_two_windows_do_not_fight(start_app: Callable[..., App], tiny_home: Home) -> None:
    app = start_app(tiny_home)
    one = app.open()
    begin(one, app, steps=500_000)  # at work for as long as the test takes
    (run,) = runs.every(tiny_home)
    two = app.open("train")  # sees the run of the first
    expect(two.locator("#train-head h1")).to_have_text(run.name)
    two.click("#train-head [data-do=new]")
    expect(two.locator("#train-start")).to_be_visible()
    app.go(two, "data")
    two.click("[data-do='data.example']")
    two.locator("[data-do='data.train']:not([disabled])").click(timeout=2 * MINUTES)
    two.click("#train-start")
    expect(two.locator("#notice .notice")).to_contain_text(run.name)  # one is at work already
    expect(one.locator("#train-head h1")).to_have_text(run.name)  # and the first still shows it
    assert len(runs.every(tiny_home)) == 1
    runs.ask_to_stop(run, patience=60)
