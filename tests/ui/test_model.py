"""The model page, with a hub on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect

from finetune_local.models import job_download
from finetune_local.runtime import jobs
from finetune_local.system import paths, preferences
from finetune_local.system.paths import Home
from hubserver import Hub, serving
from tiny import tiny_model
from ui.conftest import PATIENCE, App

expect.set_options(timeout=PATIENCE)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "served") as made:
        found = {"config": {"model_type": "llama"}, "tags": ["license:apache-2.0"], "lastModified": "2025-07-21"}
        made.models = [
            {"id": "some/tiny", "downloads": 7, "safetensors": {"total": 98_000_000}, **found},
            {"id": "big/giant", "downloads": 9, "safetensors": {"total": 405_000_000_000}, "gated": "manual", **found},
        ]
        yield made


@pytest.fixture
def open_model(start_app: Callable[..., App], tmp_path: Path, home: Home, hub: Hub) -> Iterator[Callable[..., App]]:
    """Start the app with that hub; what is still being downloaded at the end is ended."""

    def start() -> App:
        nobody = {name: str(tmp_path / name) for name in ("HOME", "USERPROFILE", "HF_HOME", "OLLAMA_MODELS")}
        return start_app(HF_ENDPOINT=hub.address, NO_PROXY="127.0.0.1", HF_TOKEN="", **nobody)

    yield start
    for found in jobs.running(home):
        found.kill()
        found.wait_for_exit()


def chosen(page: Page) -> Any:
    return page.locator(".chosen-model h2")


def row(page: Page, name: str) -> Any:
    return page.locator(f'#model-here li[data-model="{name}"]')


def test_search_download_pause_and_go_on_in_another_window(
    open_model: Callable[..., App], hub: Hub, home: Home
) -> None:
    app = open_model()
    page = app.open("model")
    expect(chosen(page)).to_have_text("smollm2-135m")
    expect(page.locator(".chosen-model")).to_contain_text("not downloaded yet")
    giant = page.locator('#model-catalogue [data-model="qwen3-8b"]')
    expect(giant.locator(".fit summary .badge")).to_have_count(4)
    giant.locator("summary").first.click()
    expect(giant.locator(".reasons li")).to_have_count(6)
    expect(giant.locator(".reasons li").first).to_contain_text(re.compile(r"needs \d+ GB.*weights 33 GB.*activations"))

    page.fill("#model-words input, #model-words textarea", "tiny")
    page.click("#model-search-start")
    hits = page.locator("#model-results .offer")
    expect(hits).to_have_count(2)
    expect(hits.nth(0).locator("summary .badge.bad")).to_have_count(4)
    hits.nth(0).locator(".gated summary").click()
    expect(hits.nth(0).locator("code").first).to_have_text(f"{hub.address}/big/giant")

    hub.pause = 0.5
    hits.nth(1).get_by_role("button", name="Download").click()
    bar = page.locator("#model-downloads [role=progressbar]")
    expect(bar).to_have_attribute("aria-valuenow", re.compile(r"[1-9]\d?"))
    expect(page.locator("#model-downloads")).to_contain_text(re.compile(r"\d+ kB of 405 kB · .*/s"))
    expect(hits.nth(1)).to_contain_text("downloading")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#model-downloads .badge")).to_have_text("paused")

    other = app.open("model")
    page.reload()
    page.wait_for_selector("#model-downloads .badge")
    hub.pause = 0.0
    hub.log.clear()
    other.get_by_role("button", name="Resume").click()
    expect(chosen(page)).to_have_text("tiny")  # the window that began it uses it; it was made anew meanwhile
    expect(row(page, "tiny")).to_contain_text("in use")
    expect(row(other, "tiny")).to_be_visible()
    expect(page.locator("#model-downloads .card")).to_have_count(0)
    assert any("range" in headers for headers in hub.asked("/blob/", "cdn"))
    assert [found.arguments["what"] for found in jobs.every(home)] == ["some/tiny"]


def test_failures_are_sentences_models_are_added_and_removed(
    open_model: Callable[..., App], home: Home, tmp_path: Path
) -> None:
    drive = tmp_path / "外置 drive"
    odd = "{{x}} & ${y} `模型`"
    tiny_model(drive / odd)
    (tiny_model(drive / "cut") / "model.safetensors").write_bytes(b"cut")
    place = tiny_model(home.models / "mine")
    adapter = home.adapters / "an adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"peft_type": "LORA", "base_model_name_or_path": "mine"}', "utf-8")
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    page = open_model().open("model")

    page.locator('#model-catalogue [data-model="qwen3-0.6b"]').get_by_role("button", name="Download").click()
    failed = page.locator("#model-downloads .hint.bad")
    expect(failed).to_contain_text("there is no model Qwen/Qwen3-0.6B")
    expect(page.get_by_role("button", name="Try again")).to_be_visible()
    page.once("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Cancel and delete").click()
    expect(page.locator("#model-downloads .card")).to_have_count(0)

    page.fill("#model-path input, #model-path textarea", str(tmp_path / "gone"))
    page.click("#model-add")
    expect(page.locator("#notice")).to_contain_text("folder not found")
    page.fill("#model-path input, #model-path textarea", str(drive))
    page.click("#model-add")
    added = page.locator("#model-here li", has=page.locator("h3", has_text=odd))
    expect(added.locator("h3")).to_have_text(odd)
    expect(page.locator("#model-here li", has_text="cut").locator(".hint.bad")).to_contain_text("model.safetensors")
    expect(chosen(page)).to_have_text(odd)  # the only one that can be used

    row(page, "mine").get_by_role("button", name="Use this").click()
    expect(chosen(page)).to_have_text("mine")
    row(page, "mine").get_by_role("button", name="Details").click()
    expect(row(page, "mine").locator(".model-details")).to_contain_text(str(place))
    row(page, "mine").get_by_role("button", name="Remove").click()
    expect(row(page, "mine").locator(".sure")).to_contain_text(
        "One adapter was trained on it and needs it: an adapter."
    )
    row(page, "mine").get_by_role("button", name="Delete the model").click()
    expect(row(page, "mine")).to_have_count(0)
    assert not place.exists()
    expect(chosen(page)).to_have_text("smollm2-135m")


def test_offline_says_so_and_a_paused_download_is_found_again_in_chinese(
    open_model: Callable[..., App], hub: Hub, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "config"))
    monkeypatch.setenv("HF_ENDPOINT", hub.address)
    hub.pause = 0.3
    begun = job_download.start("some/tiny", home)
    job_download.pause(begun.name, home)
    preferences.save(offline=True, language="zh")
    page = open_model().open("model", locale="zh-CN")
    expect(page.locator("#model-downloads .badge")).to_have_text("已暂停")
    expect(page.locator("#model-catalogue .hint")).to_contain_text("离线")
    expect(page.locator("#model-words")).to_be_hidden()
    expect(page.locator('#model-catalogue [data-model="qwen3-0.6b"] button[data-do=download]')).to_be_disabled()
    page.get_by_role("button", name="继续").click()
    expect(page.locator("#notice")).to_contain_text(re.compile("offline|离线"))
    assert begun.status() == "paused"
