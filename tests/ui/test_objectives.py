"""An objective from the window: suggested by the data, chosen with a press, trained to its end, its metrics shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, TimeoutError, expect  # noqa: A004

from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from finetune_local.training.run_folder.runs import Run
from tiny import tiny_model
from ui.conftest import PATIENCE, App

MINUTES = 60_000
expect.set_options(timeout=PATIENCE)


@pytest.fixture
def tiny_home(home: Home) -> Home:
    """A home whose default model is a tiny one, which trains in moments."""
    tiny_model(home.models / DEFAULT_MODEL)
    return home


def add(page: Page, path: Path) -> None:
    page.fill("#data-path-field", str(path))
    page.press("#data-path-field", "Enter")
    expect(page.locator("#data-files li", has_text=path.name)).to_be_visible()


def train(page: Page, home: Home) -> Run:
    """Six steps with the settings that the page has, to the end."""
    page.locator("[data-do='data.train']:not([disabled])").click(timeout=2 * MINUTES)
    page.click("#train-settings > button")
    for setting, value in (("max-steps", "6"), ("batch-size", "2"), ("validate-every", "3"), ("sample-rows", "0")):
        page.fill(f"#set-training-{setting} input, #set-training-{setting} textarea", value)
    page.click("#train-start")
    expect(page.locator("#train-state .hint.good")).to_be_visible(timeout=4 * MINUTES)
    (run,) = runs.every(home)
    assert run.status() == "finished" and run.adapter.is_dir()
    return run


def choose_suggested(page: Page) -> None:
    """Press the button that chooses the suggested objective, again where the page was only just shown: see App.go()."""
    button = page.locator("[data-do='data.objective']")
    button.click()
    try:
        button.wait_for(state="detached", timeout=20_000)
    except TimeoutError:
        button.click()
        button.wait_for(state="detached")


def test_pairs_are_trained_with_dpo(start_app: Callable[..., App], tiny_home: Home, tmp_path: Path) -> None:
    data = tmp_path / "pairs.json"
    data.write_text(
        json.dumps([{"prompt": f"say {n}", "chosen": f"yes {n}", "rejected": "no, never"} for n in range(20)]), "utf-8"
    )
    app = start_app(tiny_home)
    page = app.open("data")
    add(page, data)
    expect(page.locator("#data-found .hint.warn")).to_contain_text("DPO")
    app.go(page, "train")
    expect(page.locator("#train-summary .hint.bad")).to_contain_text("does not learn from this data")
    page.click("#train-settings > button")
    expect(page.locator("#set-training-seed")).to_be_visible()
    expect(page.locator("#set-objective-beta")).to_be_hidden()  # supervised fine-tuning has no β
    app.go(page, "data")
    choose_suggested(page)
    expect(page.locator("#data-found .figures")).to_contain_text("20of 20")
    app.go(page, "train")
    expect(page.locator("#train-subject")).to_contain_text("Objective: DPO")
    expect(page.locator("#set-objective-beta")).to_be_visible()
    page.click("#train-settings > button")
    app.go(page, "data")
    run = train(page, tiny_home)
    assert run.spec.objective.key == "dpo"
    figures = page.locator("#train-state .figures")
    for name in ("Pair accuracy", "Margin", "Chosen reward", "Rejected reward"):
        expect(figures).to_contain_text(name)
    charts = page.locator("#train-curves .card", has_text="On held-out rows")
    expect(charts.locator("figure")).to_have_count(2)
    expect(charts.locator("polyline")).to_have_count(4)
    app.go(page, "runs")
    page.locator(".row-name", has_text=run.name).click()
    expect(page.locator("#runs-main .figures")).to_contain_text("Pair accuracy")
    expect(page.locator("#runs-main .card", has_text="On held-out rows").locator("polyline")).to_have_count(4)


def test_plain_text_is_trained_with_continued_pretraining(
    start_app: Callable[..., App], tiny_home: Home, tmp_path: Path
) -> None:
    data = tmp_path / "book.txt"
    data.write_text("\n\n".join(" ".join(f"word {n * j % 11}," for j in range(60)) for n in range(12)), "utf-8")
    app = start_app(tiny_home)
    page = app.open("data")
    add(page, data)
    expect(page.locator("#data-found .hint", has_text="Continued pretraining")).to_be_visible()
    choose_suggested(page)
    expect(page.locator("[data-do='data.objective']")).to_have_count(0)
    run = train(page, tiny_home)
    assert run.spec.objective.key == "cpt"
    expect(page.locator("#train-state .figures")).to_contain_text("Bits per token")
    page.click("#train-head [data-do=go][data-value=chat]")
    expect(page.locator("#chat-who summary")).to_contain_text(run.name)
