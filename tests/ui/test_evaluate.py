"""The Evaluate page: from the form to a verdict, row by row, blind votes, and what is kept."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from finetune_local.evaluation.store import Saved
from finetune_local.evaluation.votes import Ballot
from finetune_local.system.paths import Home
from ui.conftest import App
from ui.evaluating import EVIL, KILLED, RUN, evaluated, stock

LONG = 90_000
"""Milliseconds in which a real evaluation of a tiny model ends, or a page is loaded again, on a busy machine."""


@pytest.fixture
def stocked(home: Home) -> Home:
    stock(home)
    return home


def test_from_the_form_to_the_verdict(stocked: Home, start_app: Callable[..., App]) -> None:
    app = start_app(stocked)
    page = app.open("evaluate")
    expect(page.locator("#evaluate-adapter option:checked")).to_have_text(RUN)
    expect(page.locator("#evaluate-setup")).to_contain_text("12 rows, 3 answers per row")
    page.fill("#evaluate-limit", "3")
    page.locator("#evaluate-limit").blur()
    expect(page.locator("#evaluate-setup")).to_contain_text("3 rows, 3 answers per row")
    page.fill("#evaluate-few-shot", "0")
    page.locator("#evaluate-few-shot").blur()
    expect(page.locator("#evaluate-setup")).to_contain_text("3 rows, 2 answers per row")
    page.click("#evaluate-setup [data-do=start]")
    job = page.locator("#evaluate-work .card.job")
    expect(job).to_contain_text(RUN)
    app.kill()  # the evaluation goes on, and is found again by whichever window looks
    app.expected += KILLED
    page.close()
    app.start()
    page = app.open("evaluate")
    verdict = page.locator("#evaluate-main .verdict")
    expect(verdict).to_contain_text("fine-tune", timeout=LONG)
    expect(page.locator("#evaluate-main .scores tbody tr")).to_have_count(2)
    expect(page.locator("#evaluate-main .eval-row")).to_have_count(3)
    (saved,) = stocked.evaluations.iterdir()
    assert Saved(saved).result["choices"]["limit"] == 3


def test_a_file_that_is_not_there_is_a_sentence(stocked: Home, start_app: Callable[..., App]) -> None:
    page = start_app(stocked).open("evaluate")
    page.select_option("#evaluate-rows", "file")
    page.fill("#evaluate-file-field", "/no such/文件.jsonl")
    page.locator("#evaluate-file-field").blur()
    page.click("#evaluate-setup [data-do=start]")
    expect(page.locator("#notice")).to_contain_text("file not found")
    assert not list(stocked.jobs.iterdir())
    page.set_input_files(
        "#evaluate-upload-row input[type=file]",
        {"name": "my rows.jsonl", "mimeType": "application/json", "buffer": b'{"prompt": "a", "completion": "b"}\n'},
    )
    expect(page.locator("#evaluate-file-field")).to_have_value(str(stocked.data / "my rows.jsonl"))
    expect(page.locator("#evaluate-setup")).to_contain_text("1 row, 3 answers")


def test_rows_one_by_one(stocked: Home, start_app: Callable[..., App]) -> None:
    evaluated(stocked)
    page = start_app(stocked).open("evaluate")
    expect(page.locator("#evaluate-main .verdict")).to_contain_text("The fine-tune helped")
    expect(page.locator("#evaluate-main .scores th[scope=col]")).to_have_count(5)
    rows = page.locator("#evaluate-main .eval-row")
    expect(rows).to_have_count(8)
    expect(rows.first).to_contain_text(f"say 0 {EVIL}")  # shown, not run
    page.click("[data-do='rows.page'][data-value='1']")
    page.click("[data-do='rows.page'][data-value='2']")
    expect(rows).to_have_count(4)
    page.click("[data-do='rows.which'][data-value=worse]")
    expect(rows).to_have_count(1)
    expect(rows.first).to_contain_text("say 0")
    page.click("[data-do='rows.which'][data-value=better]")
    expect(page.locator("[data-do='rows.which'][data-value=better]")).to_have_text("Better (15)")
    page.click("[data-do='rows.metric'][data-value=loss]")
    expect(page.locator("[data-do='rows.which'][data-value=better]")).to_have_text("Better (20)")
    page.click("[data-do='earlier.remove']")
    expect(page.locator("#evaluate-main .verdict")).to_have_count(0)
    page.click("#notice button:has-text('Undo')")
    expect(page.locator("#evaluate-main .verdict")).to_be_visible()


def _answers(page: Page) -> list[str]:
    return page.locator(".pair .card > p").all_inner_texts()


def test_a_blind_vote_in_chinese(stocked: Home, start_app: Callable[..., App]) -> None:
    saved = evaluated(stocked)
    app = start_app(stocked, LANG="zh_CN.UTF-8", LC_ALL="zh_CN.UTF-8")
    page = app.open("evaluate", locale="zh-CN")
    expect(page.locator("#page-evaluate h1")).to_have_text("微调有效吗？")
    expect(page.locator("#evaluate-main .verdict")).to_contain_text("微调有帮助")
    page.click("[data-do='vote.open']")
    expect(page.locator(".pair .card")).to_have_count(2)
    pairs = Ballot(saved, "base").pairs
    for number, key in enumerate(("1", "2", "0", "s")):
        expect(page.locator(".vote .asked")).to_have_text(f"say {pairs[number].row} {EVIL}")
        assert _answers(page) == [pairs[number].a, pairs[number].b]
        markup = page.locator("#evaluate-main").inner_html()
        assert "tuned_is_a" not in markup and "eval-answer" not in markup  # no word on whose they are
        page.keyboard.press(key)
    expect(page.locator(".vote .asked")).to_have_text(f"say {pairs[4].row} {EVIL}")
    page.keyboard.press("u")
    expect(page.locator(".vote .asked")).to_have_text(f"say {pairs[3].row} {EVIL}")
    expect(page.locator(".vote .figure")).to_have_count(0)
    app.expected += ["AbortError", "errored out"]  # what Gradio says of a reload while it listens
    page.reload()
    expect(page.locator(".vote .asked")).to_have_text(f"say {pairs[3].row} {EVIL}", timeout=LONG)
    page.click("[data-do='vote.reveal']")
    expect(page.locator(".vote .figure")).to_have_count(4)
    votes = [json.loads(line) for line in saved.votes_file.read_text("utf-8").splitlines()]
    wanted = ["tuned" if pairs[0].tuned_is_a else "other", "other" if pairs[1].tuned_is_a else "tuned", "tie"]
    assert [vote["vote"] for vote in votes[:3]] == wanted and votes[-1]["undo"]
    page.click("[data-do='vote.against'][data-value=few_shot]")
    assert _answers(page) != []
    page.click("[data-do='vote.close']")
    expect(page.locator("#evaluate-setup")).to_be_visible()
