"""The Export page: what is offered, an export from the button to the file, stopping, killing, refusing, opening the folder."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import expect

from finetune_local.adapter_format import write_adapter
from finetune_local.adapters.identity import write_identity
from finetune_local.export.engines import llama
from finetune_local.export.job_export import KIND as EXPORT
from finetune_local.models.folder import ModelFolder
from finetune_local.runtime import jobs
from finetune_local.spec.tuners import tuners
from finetune_local.system.paths import Home
from ui.conftest import App
from ui.evaluating import KILLED, RUN, ended_export, stock

LONG = 90_000
"""Milliseconds in which a real export of a tiny model ends on a busy machine."""


@pytest.fixture
def stocked(home: Home) -> Home:
    stock(home)
    return home


def test_an_adapter_alone_and_its_folder_opened(stocked: Home, start_app: Callable[..., App], tmp_path: Path) -> None:
    opener, told = tmp_path / "bin" / "xdg-open", tmp_path / "opened"
    opener.parent.mkdir()
    opener.write_text(f'#!/bin/sh\nprintf "%s" "$1" > "{told}"\n', "utf-8")
    opener.chmod(opener.stat().st_mode | stat.S_IXUSR)
    app = start_app(stocked, PATH=f"{opener.parent}{os.pathsep}{os.environ['PATH']}")
    page = app.open("export")
    page.click("#export-form [data-do=target][data-value=adapter]")
    page.click("#export-form [data-do=quant][data-value=zip]")
    expect(page.locator("#export-form")).to_contain_text(f"tiny-{RUN}-adapter.zip")
    page.click("#export-form [data-do=start]")
    done = page.locator("#export-work .export-ended")
    expect(done).to_contain_text("tensors are identical after reading", timeout=LONG)
    expect(done).to_contain_text("verified")
    out = stocked.root / "exports" / f"tiny-{RUN}-adapter.zip"
    assert out.is_file() and f'finetune-local adapters import "{out}"' in done.inner_text()
    done.locator("[data-do=open]").click()
    for _ in range(100):
        if told.exists() and told.read_text("utf-8"):
            break
        time.sleep(0.1)
    assert told.read_text("utf-8") == str(out.parent)
    page.click("#export-form [data-do=start]")  # once more: under a name of its own
    expect(page.locator("#export-work .export-ended .name")).to_have_text(f"tiny-{RUN}-adapter-2.zip", timeout=LONG)
    expect(page.locator("#export-history summary")).to_have_count(1)


@pytest.mark.skipif(not llama.available(), reason="xllamacpp is not installed")
def test_a_gguf_is_checked_and_survives_the_server(stocked: Home, start_app: Callable[..., App]) -> None:
    app = start_app(stocked)
    page = app.open("export")
    expect(page.locator("#export-form .formats .choice.chosen")).to_contain_text("F16")
    page.click("#export-form [data-do=quant][data-value=q8_0]")
    page.click("#export-form [data-do=start]")
    expect(page.locator("#export-work .card.job")).to_contain_text(f"tiny-{RUN}-Q8_0.gguf")
    second = app.open("export")
    expect(second.locator("#export-work .card.job")).to_have_count(1)  # another window sees the same one
    second.click("#export-form [data-do=start]")
    app.expected += KILLED
    app.kill()
    page.close()
    second.close()
    app.start()
    page = app.open("export")
    done = page.locator("#export-work .export-ended, #export-history details").first
    expect(done).to_be_visible(timeout=LONG)
    if "export-ended" not in (done.get_attribute("class") or ""):
        done.locator("summary").click()
    expect(done).to_contain_text("prompts tokenize to the same ids")
    expect(done).to_contain_text("Answers may be worded differently")
    expect(done).to_contain_text("llama-cli -m")
    assert len(jobs.every(stocked, EXPORT)) == 1  # the second window's press found the first one's job
    assert (stocked.root / "exports" / f"tiny-{RUN}-Q8_0.gguf").is_file()


def test_stopped_it_leaves_nothing_in_chinese(stocked: Home, start_app: Callable[..., App]) -> None:
    page = start_app(stocked, LANG="zh_CN.UTF-8", LC_ALL="zh_CN.UTF-8").open("export")
    expect(page.locator("#page-export h1")).to_have_text("导出")
    expect(page.locator("#export-form .formats").first).to_contain_text("训练成果没有任何损失", timeout=LONG)
    page.click("#export-form [data-do=target][data-value=merged]")
    page.click("#export-form [data-do=start]")
    page.click("#export-work [data-do='job.stop']")
    expect(page.locator("#export-work .export-ended")).to_contain_text("已停止", timeout=LONG)
    assert not list((stocked.root / "exports").iterdir())


def test_what_cannot_be_merged_says_why_and_what_is_possible(stocked: Home, start_app: Callable[..., App]) -> None:
    model, family = ModelFolder.open(stocked.models / "tiny"), tuners()["prefix"]
    plan = family.plan("prefix", family.settings(prefix_length=4), model.info())
    tensors = {n: np.ones(shape, np.float32) for n, shape in family.shapes(plan).items()}
    folded_plan, folded = family.fold(plan, tensors)
    write_adapter(stocked.adapters / "前缀", folded_plan, folded, model.name)
    write_identity(stocked.adapters / "前缀", model.identity(), None, {"method": "prefix"})
    page = start_app(stocked).open("export")
    page.select_option("#export-adapter", "前缀")
    form = page.locator("#export-form")
    expect(form).to_contain_text("cannot be merged into the base's weights")
    expect(form).to_contain_text("Possible targets: Adapter alone.")
    expect(form.locator("[data-do=start]")).to_have_count(0)
    page.click("#export-form [data-do=target][data-value=adapter]")
    expect(form.locator("[data-do=start]")).to_be_enabled()


def test_one_that_was_refused_and_one_that_was_killed(stocked: Home, start_app: Callable[..., App]) -> None:
    exports = stocked.root / "exports"
    exports.mkdir()
    refused, killed = exports / "refused.gguf", exports / "killed.gguf"
    refused.with_name("refused.gguf.failed").write_bytes(b"GGUF")
    killed.with_name("killed.gguf.unchecked").write_bytes(b"half")
    message = (
        "the export's answers differ from those of base + adapter. chat template: the export's is another than the base's. "
        f"It is kept in {refused}.failed."
    )
    failed = {"event": "failed", "error": "GateFailed", "message": message, "traceback": ""}
    ended_export(stocked, "20261126-000001-export", refused, [failed])
    ended_export(stocked, "20261126-000002-export", killed, [{"event": "progress", "text": "writing", "done": 0.5}])
    old = time.time() - 60
    file = stocked.jobs / "20261126-000002-export" / "events.jsonl"
    file.write_text(file.read_text("utf-8").replace('"time": 1', f'"time": {old}, "was": 1'), "utf-8")
    page = start_app(stocked).open("export")
    first = page.locator("[data-job='20261126-000001-export']")
    expect(first).to_contain_text("verification failed")
    first.locator("summary").click()
    expect(first).to_contain_text("chat template")
    expect(first).to_contain_text("refused.gguf.failed for inspection. Do not use them.")
    second = page.locator("[data-job='20261126-000002-export']")
    second.locator("summary").click()
    expect(second).to_contain_text("ended unexpectedly")
    second.locator("[data-do='job.forget']").click()
    expect(second).to_have_count(0)
    assert sorted(path.name for path in exports.iterdir()) == ["refused.gguf.failed"]
