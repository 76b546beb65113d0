"""The chat page: what is said is text and nothing else; answers side by side, swaps, edits; reloads, stops and kills."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from playwright.sync_api import Page, expect
from safetensors.numpy import load_file, save_file

from finetune_local.chat import history
from finetune_local.chat.record import Record
from finetune_local.system.paths import Home
from made import made_adapter
from tiny import tiny_model
from ui.conftest import PATIENCE, App

expect.set_options(timeout=PATIENCE)

HOSTILE = (
    "<script>window.hacked=1</script><img src=x onerror='window.hacked=1'> ![x](http://example.invalid/x.png) "
    "{{value}} ${window.hacked=1} **bold** `code` &lt;b&gt;\n    indented\u2028中文"
)


@pytest.fixture
def stocked(home: Home) -> Home:
    """A tiny base, two adapters for it, one of them by a run with held-out questions, and one that fits another base."""
    base = tiny_model(home.models / "tiny 小")
    made_adapter(base, home.adapters / "诗人", seed=1)
    run = home.runs / "orders"
    made_adapter(base, run / "adapter", seed=2)
    (run / "run.json").write_text(json.dumps({"name": "orders", "model": {"id": "tiny 小"}}), "utf-8")
    (run / "data").mkdir()
    rows = [
        {"messages": [{"role": "user", "content": f"order {n} <b>please</b>"}, {"role": "assistant", "content": f"GO {n}"}],
         "source": {"file": "orders.jsonl", "line": n}, "text": None, "ends": True}
        for n in range(1, 6)
    ]  # fmt: skip
    (run / "data" / "validation.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    made_adapter(tiny_model(home.root / "elsewhere", "qwen3"), home.adapters / "stranger", seed=3)
    return home


def draft(home: Home, **values: Any) -> None:
    """What a new window begins with."""
    folder = home.window / "drafts"
    folder.mkdir(exist_ok=True)
    (folder / "last.json").write_text(json.dumps(values, ensure_ascii=False), "utf-8")


def spoken(home: Home, question: str, *answers: tuple[str | None, str]) -> history.History:
    record = Record(history.new(home, str(home.models / "tiny 小")))
    record.ask(question, "the wanted <i>answer</i>")
    for adapter, text in answers[:-1]:
        record.add({"aside": adapter, "content": text, "tokens": 3, "seconds": 1.0})
    record.add({"role": "assistant", "content": answers[-1][1], "adapter": answers[-1][0], "tokens": 3, "seconds": 1.5})
    assert record.history is not None
    return record.history


def ask(page: Page, text: str) -> None:
    page.fill("#chat-message textarea", text)
    page.press("#chat-message textarea", "Enter")
    expect(page.locator("#chat-message textarea")).to_have_value("")


def said(page: Page) -> Any:
    return page.locator("#chat-said .answer .text")


def test_what_was_said_is_text_and_conversations_are_kept(home: Home, start_app: Callable[..., App]) -> None:
    """Also without the base that was talked to."""
    spoken(home, "an older one about trains", (None, "choo"))
    one = spoken(home, HOSTILE, ("<b>x</b>", HOSTILE), (None, "plain"))
    draft(home, conversation=one.id)
    app = start_app()
    page = app.open("chat")
    expect(said(page).first).to_contain_text("<script>window.hacked=1</script>")
    assert said(page).first.evaluate("e => e.textContent") == HOSTILE
    assert page.locator("#chat-said .question .text").evaluate("e => e.textContent") == HOSTILE
    assert page.locator("#page-chat img, #page-chat script, #chat-said strong, #chat-said i").count() == 0
    assert page.evaluate("window.hacked") is None
    expect(page.locator("#chat-said .answer.beside h2")).to_have_text("<b>x</b>")
    expect(page.locator("#chat-top .hint")).to_contain_text("'tiny 小' is not on this machine")
    expect(page.locator("#chat-said .answer.wanted .text")).to_have_text("the wanted <i>answer</i>")

    page.click("#chat-said [data-do=choose]")
    expect(page.locator("#chat-said .answer.chosen h2")).to_have_text("<b>x</b>")
    assert Record(one).conversation.turns[-1].content == HOSTILE

    page.fill("#chat-search input, #chat-search textarea", "TRAINS")
    expect(page.locator("#chat-saved .entry")).to_have_count(1)
    page.click("#chat-saved .entry")
    expect(page.locator("#chat-top h1")).to_have_text("an older one about trains")
    page.click("#chat-saved [data-do=rename]")
    page.fill("#chat-saved input", "火车 <trains>")
    page.press("#chat-saved input", "Enter")
    expect(page.locator("#chat-top h1")).to_have_text("火车 <trains>")
    page.click("#chat-saved [data-do=remove]")
    expect(page.locator("#chat-top h1")).to_have_text("New conversation")
    assert len(history.every(home)) == 1
    expect(page.locator("#chat-said .empty")).to_contain_text("No model to talk to yet")
    expect(page.locator("#chat-send button")).to_be_disabled()
    page.click("#chat-saved [data-do=undo]")
    expect(page.locator("#chat-top h1")).to_have_text("火车 <trains>")
    app.expected.append("AbortError: signal is aborted")  # what Gradio says of a reload while it listens
    page.reload()
    expect(page.locator("#chat-top h1")).to_have_text("火车 <trains>")


def test_answers_side_by_side_and_what_can_be_done_with_them(stocked: Home, start_app: Callable[..., App]) -> None:
    draft(stocked, adapters=["orders"], chat_sampling={"max_tokens": "12", "seed": "1"})
    app = start_app()
    page = app.open("chat")
    expect(page.locator(".who summary b")).to_have_text("Base model, orders")
    page.click(".who summary")
    stranger = page.locator(".who-list li.misfit")
    expect(stranger.locator("input")).to_be_disabled()
    expect(stranger).to_contain_text("trained on 'elsewhere'")
    page.keyboard.press("Escape")

    page.click("#chat-said .try button >> nth=1")
    expect(said(page)).to_have_count(3, timeout=90_000)
    expect(page.locator("#chat-said .question .text")).to_have_text(re.compile(r"order \d <b>please</b>"))
    expect(page.locator("#chat-said .answer h2")).to_have_text(["Base model", "orders", "Expected answer"])
    expect(page.locator("#chat-said .answer.wanted .text")).to_have_text(re.compile(r"GO \d"))
    expect(page.locator("#chat-said .answer .measured").first).to_contain_text(
        re.compile(r"12 tokens · [\d.]+ tokens/s")
    )
    expect(page.locator("#chat-top .memory")).to_contain_text(re.compile(r"MB · fp32 · \w+"))
    (one,) = history.every(stocked)
    assert Record(one).conversation.answered_by == "orders"

    page.click("#chat-said .answer.beside [data-do=choose]")
    expect(page.locator("#chat-said .answer.chosen h2")).to_have_text("Base model")
    page.click(".who summary")
    page.click(".who-list li:has-text('诗人') [data-do=only]")
    expect(page.locator(".who [role=status]")).to_contain_text(
        re.compile(r"Now answering: 诗人 \(swapped in [\d.]+ ms\)")
    )
    page.keyboard.press("Escape")
    ask(page, "and now?\n第二行")
    expect(page.locator("#chat-said .exchange").nth(1).locator(".answer h2")).to_have_text("诗人")
    assert [e.question for e in Record(one).exchanges][1:] == ["and now?\n第二行"]
    before = said(page).last.inner_text()
    page.click("#chat-said [data-do=again]")
    expect(said(page).last).not_to_have_text(before)

    page.click("#chat-said [data-do=edit] >> nth=0")
    expect(page.locator("#chat-editing")).to_contain_text("removed when you send")
    page.fill("#chat-message textarea", "another order")
    page.press("#chat-message textarea", "Enter")
    expect(page.locator("#chat-said .question .text")).to_have_text(["another order"])
    expect(said(page)).to_have_count(1)
    assert [e.question for e in Record(one).exchanges] == ["another order"]

    page.click("#chat-top [data-do=settings]")
    page.fill("#set-sampling-temperature textarea", "warm")
    expect(page.locator("#chat-problem")).to_contain_text("'temperature' is 'warm'")
    page.fill("#chat-message textarea", "is it kept?")
    page.click("#chat-send button")
    expect(page.locator("#notice")).to_contain_text("temperature")
    expect(page.locator("#chat-message textarea")).to_have_value("is it kept?")
    page.fill("#set-sampling-temperature textarea", "0")
    expect(page.locator("#chat-problem .hint")).to_have_count(0)


def workers(app: App) -> list[psutil.Process]:
    """The processes that answer; one that ends just now is none."""
    found = []
    for child in psutil.Process(app.process.pid).children(recursive=True):
        with suppress(psutil.Error):
            if "finetune_local.chat.worker" in child.cmdline():
                found.append(child)
    return found


def endless(folder: Path) -> None:
    """A base whose answers have no end: its stop tokens are never among the likeliest, and its context is long."""
    tiny_model(folder, tied=False)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 100_000}), "utf-8")
    weights = load_file(folder / "model.safetensors")
    weights["lm_head.weight"][:3] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_an_answer_outlives_a_reload_and_a_question_a_killed_process(home: Home, start_app: Callable[..., App]) -> None:
    endless(home.models / "endless")
    draft(home, chat_sampling={"max_tokens": "50000", "seed": "3", "top_k": "5"})
    app = start_app()
    page = app.open("chat")
    ask(page, "tell me a long story")
    growing = page.locator("#chat-live .growing")
    expect(growing).not_to_have_text("", timeout=90_000)
    page.reload()
    expect(growing).not_to_have_text("")
    early = growing.inner_text()
    expect(growing).not_to_have_text(early)
    page.click("#chat-send button:has-text('Stop')")
    expect(page.locator("#chat-said .measured")).to_contain_text("Stopped")
    assert early[:20] in said(page).inner_text()

    ask(page, "and another")
    expect(growing).not_to_have_text("")
    workers(app)[0].kill()
    expect(page.locator("#chat-live .failed")).to_contain_text("ended unexpectedly")
    expect(page.locator("#chat-said .question .text").last).to_have_text("and another")
    (one,) = history.every(home)
    assert Record(one).conversation.open
    page.click("#chat-live [data-do=again]")
    expect(growing).not_to_have_text("", timeout=90_000)
    page.click("#chat-send button:has-text('Stop')")
    expect(said(page)).to_have_count(2)

    page.click("#chat-top [data-do=unload]")
    expect(page.locator("#chat-top .memory")).to_contain_text("Not in memory yet")
    until = time.monotonic() + 10
    while workers(app) and time.monotonic() < until:
        time.sleep(0.05)
    assert not workers(app), "its memory is given back"
