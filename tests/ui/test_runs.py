"""The Runs page: a long history stays quick; look, compare, rename, remove and take back, train again, resume."""

from __future__ import annotations

import json
import re
from pathlib import Path

from playwright.sync_api import Page, expect

from finetune_local.spec.run import parse_spec
from finetune_local.system.paths import Home
from finetune_local.training.events import Failed, Finished, Note, Started, Step, StoppedByUser, Validation
from finetune_local.training.run_folder import runs
from ui.conftest import PATIENCE, App

expect.set_options(timeout=PATIENCE)
HOSTILE = '<img src=x onerror="alert(1)"> {{7*7}} ${1+1}'


def run_of(home: Home, name: str, files: str = "/data/orders.jsonl", **tables: object) -> runs.Run:
    spec = parse_spec({"name": name, "data": {"files": [files]}, **tables}, "test")
    return runs.create(home, spec)


def trained(
    home: Home, name: str, steps: int = 8, loss: float = 2.0, end: str = "finished", **tables: object
) -> runs.Run:
    run = run_of(home, name, **tables)
    events = [
        Note(text="backend = torch: it can use the CPU"),
        Started(
            step=0, steps=steps, backend="torch", device="cpu", precision="fp32", trainable_parameters=1000,
            total_parameters=9000, rows=9, validation_rows=2,
        ),
        Validation(step=0, loss=loss + 1, best=True),
        *(
            Step(
                step=n, steps=steps, loss=loss - n / 10, learning_rate=0.1, gradient_norm=1.0, tokens=100,
                supervised_tokens=10, tokens_per_second=50.0, seconds_left=1.0, peak_memory_bytes=1,
            )
            for n in range(1, steps + 1)
        ),
        Validation(step=steps, loss=loss, best=True),
    ]  # fmt: skip
    summary = {
        "run": name, "first_loss": loss, "last_loss": loss - steps / 10, "validation_loss": loss, "steps": steps,
        "best_validation_loss": loss, "seconds": 12.5, "trained_tokens": 800,
    }  # fmt: skip
    if end == "finished":
        events.append(Finished(reason="all steps are done", summary=summary))
    elif end == "stopped":
        events.append(StoppedByUser(step=steps, summary=summary))
    elif end == "failed":
        events.append(Failed(error="OutOfMemory", message=f"no space for {HOSTILE}.", exit_code=1))
    text = "".join(json.dumps(event.as_json(), ensure_ascii=False) + "\n" for event in events)
    run.events_file.write_text(text, "utf-8")
    return run


def names(page: Page) -> list[str]:
    return page.locator("#runs-main .row-name").all_inner_texts()


def again(app: App, page: Page) -> None:
    """Load the page anew; what Gradio was asking for then is broken off, which it tells the console."""
    page.reload()


def pick(page: Page, name: str) -> None:
    page.get_by_label(f"Select {name}", exact=True).check()
    expect(page.locator("#runs-main tr.picked", has_text=name)).to_be_visible()


def test_a_thousand_runs_are_searched_sorted_and_paged(app: App, home: Home) -> None:
    first = trained(home, "run 0000")
    settings, events = (first.folder / "run.json").read_text("utf-8"), first.events_file.read_text("utf-8")
    for number in range(1, 1000):
        folder = home.runs / f"run {number:04d}"
        folder.mkdir()
        (folder / "run.json").write_text(settings, "utf-8")
        (folder / "events.jsonl").write_text(events.replace('"last_loss": 1.2', f'"last_loss": {number}'), "utf-8")
    page = app.open("runs")
    expect(page.locator("#runs-main .row-name")).to_have_count(50)
    expect(page.locator("#runs-main .pager")).to_contain_text("1–50 of 1,000")
    page.get_by_role("button", name="Loss", exact=True).click()
    expect(page.locator("#runs-main .row-name").first).to_have_text("run 0999")
    expect(page.locator("#runs-main th[aria-sort=descending]")).to_contain_text("Loss")
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#runs-main .row-name").first).to_have_text("run 0949")
    page.fill("#runs-search input", "RUN 0077")
    expect(page.locator("#runs-main .row-name")).to_have_count(1)
    again(app, page)
    expect(page.locator("#runs-main .row-name")).to_have_count(1)
    expect(page.locator("#runs-search input")).to_have_value("RUN 0077")
    page.fill("#runs-search input", "nothing like it")
    expect(page.locator("#runs-main")).to_contain_text("No results.")


def test_runs_are_compared_by_curves_and_settings(app: App, home: Home) -> None:
    trained(home, "one", training={"learning_rate": 1e-3})
    trained(home, "two", loss=3.0, training={"learning_rate": 5e-4}, method={"key": "lora", "rank": 4})
    trained(home, "three", end="failed")
    page = app.open("runs")
    pick(page, "one")
    compare = page.locator("[data-do='runs.compare']")
    expect(compare).to_be_disabled()
    pick(page, "two")
    compare.click()
    lines = page.locator("#runs-main .chart polyline")
    expect(lines).to_have_count(2)
    expect(page.locator("#runs-main .chart .dot")).to_have_count(4)
    differences = page.locator("#runs-main .card", has_text="Settings that differ").locator("tbody tr")
    expect(differences).to_have_count(2)
    expect(differences.filter(has_text="Learning rate")).to_contain_text("0.001")
    expect(differences.filter(has_text="Rank")).to_contain_text("4")
    page.get_by_role("button", name="Tokens", exact=True).click()
    expect(page.locator("#runs-main .chart .x")).to_contain_text("800")
    page.get_by_role("button", name="Validation loss", exact=True).click()
    expect(page.get_by_role("button", name="Validation loss", exact=True)).to_have_attribute("aria-pressed", "true")
    again(app, page)
    expect(page.locator("#runs-main h1")).to_have_text("Comparison")
    page.locator("#runs-main .back").click()
    expect(page.locator("#runs-main tr.picked")).to_have_count(2)


def test_rename_remove_undo_and_the_trash(app: App, home: Home) -> None:
    trained(home, "旧 name")
    trained(home, "other")
    page = app.open("runs")
    page.locator(".row-name", has_text="旧 name").click()
    page.get_by_role("button", name="Rename").click()
    page.fill("#runs-main input[name=name]", "other")
    page.keyboard.press("Enter")
    expect(page.locator("#notice .notice.bad")).to_contain_text("a run 'other' already exists")
    expect(page.locator("#runs-main h1")).to_have_text("旧 name")
    page.fill("#runs-main input[name=name]", "新 name")
    page.keyboard.press("Enter")
    expect(page.locator("#runs-main h1")).to_have_text("新 name")
    assert runs.find(home, "新 name").spec.name == "新 name"

    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#notice")).to_contain_text("“新 name” was moved to the trash")
    assert not (home.runs / "新 name").exists()
    page.locator("#notice").get_by_role("button", name="Undo").click()
    expect(page.locator("#runs-main .row-name")).to_have_count(2)
    assert (home.runs / "新 name" / "run.json").exists()

    page.get_by_label("Select all on this page").check()
    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#runs-main .empty")).to_be_visible()
    page.locator("#runs-trash summary").click()
    page.locator("#runs-trash li", has_text="other").get_by_role("button", name="Restore").click()
    expect(page.locator("#runs-main .row-name")).to_have_text(["other"])
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Empty the trash").click()
    expect(page.locator("#runs-trash .trash-box")).to_have_count(0)
    assert list(home.trash.iterdir()) == []


def test_damaged_foreign_and_hostile_runs_are_only_shown(app: App, home: Home) -> None:
    trained(home, "failed one", end="failed", files=f"/data/{HOSTILE}.jsonl", model={"id": HOSTILE})
    (home.runs / "<b>cut {{x}}").mkdir()
    (home.runs / "<b>cut {{x}}" / "run.json").write_text("{", "utf-8")
    (home.runs / "stranger").mkdir()
    (home.runs / "stranger" / "run.json").write_text('{"method": [1], "model": 2}', "utf-8")
    (home.runs / "stranger" / "events.jsonl").write_bytes(b'\xff\xfe\n{"event": 3}\n[]\n')
    (home.runs / "a file").write_text("x", "utf-8")
    page = app.open("runs")
    expect(page.locator("#runs-main .row-name")).to_have_count(3)
    cut = page.locator("#runs-main tr", has_text="<b>cut {{x}}")
    expect(cut.locator(".badge")).to_have_text(["queued", "damaged"])
    page.locator(".row-name", has_text="<b>cut {{x}}").click()
    expect(page.locator("#runs-main h1")).to_have_text("<b>cut {{x}}")
    expect(page.locator("#runs-main .hint.bad")).to_contain_text("cannot be read")
    page.locator("#runs-main .back").click()
    page.locator(".row-name", has_text="failed one").click()
    expect(page.locator("#runs-main .hint.bad")).to_contain_text(HOSTILE)
    assert page.locator("#runs-main img").count() == 0


def test_train_again_takes_what_was_set_and_resume_starts_the_worker(
    app: App, home: Home, tiny: Path, tmp_path: Path
) -> None:
    data = tmp_path / "orders.jsonl"
    data.write_text('{"prompt": "a", "completion": "b"}\n' * 9, "utf-8")
    run = trained(
        home, "first", end="stopped", files=str(data), model={"id": str(tiny)}, goal="quick",
        method={"key": "dora", "rank": 4}, training={"learning_rate": 3e-4},
    )  # fmt: skip
    page = app.open("runs")
    page.locator(".row-name", has_text="first").click()
    expect(page.locator("#runs-main .card", has_text="Set by you")).to_contain_text("0.0003")
    page.get_by_role("button", name="Train again with changes").click()
    expect(page.locator("#page-train .page-header:visible")).to_be_visible()
    expect(page.locator("#train-methods [aria-checked=true]")).to_contain_text("DoRA")
    expect(page.locator("#train-goals [aria-checked=true]")).to_contain_text("Quick")
    expect(page.locator("#train-subject")).to_contain_text("orders.jsonl")
    page.get_by_role("button", name=re.compile("All settings")).click()
    expect(page.locator("#set-method-rank textarea")).to_have_value("4")
    expect(page.locator("#set-training-learning-rate textarea")).to_have_value("0.0003")
    expect(page.locator("#set-training-batch-size textarea")).to_have_value("")

    app.go(page, "runs")
    expect(page.locator("#runs-main h1")).to_have_text("first")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#page-train .page-header:visible")).to_contain_text("first")
    while run.worker_pid() is None and not run.log.exists():
        page.wait_for_timeout(50)
    run.kill()
