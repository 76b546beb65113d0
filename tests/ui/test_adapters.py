"""The Adapters page: find, look, note, rename, remove and take back, import, extract; and the way to the other pages."""

from __future__ import annotations

import base64
import json
import time
import zipfile
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from finetune_local.adapter_format import CONFIG, WEIGHTS, write_adapter
from finetune_local.adapters import library, manage
from finetune_local.adapters.identity import rewrite, write_identity
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.run import parse_spec, plan_method
from finetune_local.spec.tuners import PREFIX, tuner_of
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import runs
from made import made_adapter
from tiny import tiny_model
from ui.conftest import PATIENCE, App

expect.set_options(timeout=PATIENCE)
DROP = """([name, packed]) => {
  const data = new DataTransfer();
  data.items.add(new File([Uint8Array.from(atob(packed), (letter) => letter.charCodeAt(0))], name));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector("#adapters-main").dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""
HOSTILE = '<img src=x onerror="alert(1)"> {{7*7}} ${1+1}'


def of_run(home: Home, tiny: Path, name: str, made_from: str | None = None) -> runs.Run:
    tables = {"name": name, "model": {"id": str(tiny)}, "data": {"files": [f"/data/{name}.jsonl"]}}
    run = runs.create(home, parse_spec(tables, "test"), made_from=made_from)
    made_adapter(tiny, run.adapter, run=name)
    return run


def evaluated(home: Home, adapter: str, exact: float) -> None:
    """What evaluation/store.py keeps of an evaluation, as far as lists read it."""

    def condition(share: float) -> dict[str, object]:
        interval = {"mean": share, "low": share - 0.05, "high": share + 0.05}
        return {"loss": 1.0, "loss_interval": interval, "exact": interval, "contains": interval, "f1": interval}

    result = {
        "rows": 40, "base": condition(0.1), "few_shot": None, "tuned": condition(exact), "metric": "exact",
        "verdict": {"text": f"It helped. {HOSTILE}"}, "adapter": adapter, "created_time": time.time(),
    }  # fmt: skip
    folder = home.evaluations / f"{adapter}-1"
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result), "utf-8")


def names(page: Page) -> list[str]:
    return page.locator("#adapters-main .row-name").all_inner_texts()


def look_at(page: Page, name: str) -> None:
    page.locator("#adapters-main .row-name").get_by_text(name, exact=True).click()
    expect(page.locator("#adapters-main h1")).to_have_text(name)


def test_adapters_are_found_noted_renamed_removed_and_taken_back(app: App, home: Home, tiny: Path) -> None:
    of_run(home, tiny, "orders")
    of_run(home, tiny, "订单 二", made_from="orders")
    made_adapter(tiny, home.adapters / "friend", plain=True)
    made_adapter(tiny, home.adapters / "cut")
    (home.adapters / "cut" / CONFIG).write_text("[]", "utf-8")
    evaluated(home, "orders", 0.9)
    page = app.open("adapters")
    expect(page.locator("#adapters-main .row-name")).to_have_count(4)
    expect(page.locator("tr", has_text="orders.jsonl")).to_contain_text("90%")
    expect(page.locator("tr", has_text="cut")).to_contain_text("damaged")
    page.fill("#adapters-search input", "订单")
    expect(page.locator("#adapters-main .row-name")).to_have_count(1)
    page.fill("#adapters-search input", "")
    expect(page.locator("#adapters-main .row-name")).to_have_count(4)

    look_at(page, "orders")
    expect(page.locator("#adapters-main .card", has_text="Scores")).to_contain_text(HOSTILE)
    expect(page.locator("#adapters-main .tree")).to_contain_text("Run based on its settings")
    page.get_by_role("button", name="Add a note").click()
    page.fill("textarea[name=note]", f"{HOSTILE}\n最好的")
    page.get_by_role("button", name="Save").click()
    expect(page.locator("#adapters-main .text")).to_contain_text(HOSTILE)
    assert library.entry("orders", home).note == f"{HOSTILE}\n最好的"
    assert page.locator("#adapters-main img").count() == 0

    page.get_by_role("button", name="Rename").click()
    page.fill("input[name=name]", "friend")
    page.keyboard.press("Enter")
    expect(page.locator("#notice .bad")).to_contain_text("an adapter 'friend' already exists")
    page.fill("input[name=name]", "orders 2")
    page.keyboard.press("Enter")
    expect(page.locator("#adapters-main h1")).to_have_text("orders 2")
    expect(page.locator("#adapters-main .card", has_text="Scores")).to_contain_text("90%")
    assert runs.find(home, "订单 二").made_from == "orders 2"

    page.get_by_role("button", name="Delete", exact=True).click()
    expect(page.locator("#adapters-main .row-name")).to_have_count(3)
    page.locator("#notice").get_by_role("button", name="Undo").click()
    expect(page.locator("#adapters-main .row-name")).to_have_count(4)
    assert library.entry("orders 2", home).origin == "run"


def test_a_folder_and_a_dropped_zip_come_in(app: App, home: Home, tiny: Path, tmp_path: Path) -> None:
    source = made_adapter(tiny, tmp_path / "新 one", plain=True)
    archive = tmp_path / "packed.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for name in (CONFIG, WEIGHTS):
            file.write(source / name, name)
    broken = tmp_path / "broken.zip"
    broken.write_bytes(b"PK\x03\x04 and nothing more")
    page = app.open("adapters")
    expect(page.locator("#adapters-main .empty")).to_be_visible()
    page.click("#adapters-import")
    page.fill("input[name=place]", str(tmp_path))
    page.keyboard.press("Enter")
    expect(page.locator("#notice .bad")).to_contain_text("not an adapter")
    page.fill("input[name=place]", str(source))
    page.keyboard.press("Enter")
    expect(page.locator("#adapters-main .row-name")).to_have_text(["新 one"])
    packed = base64.b64encode(archive.read_bytes()).decode()
    for number in (2, 3):  # the second gets a name of its own
        page.evaluate(DROP, ["packed.zip", packed])
        expect(page.locator("#adapters-main .row-name")).to_have_count(number)
    assert {entry.name for entry in library.entries(home)} == {"新 one", "packed", "packed-2"}
    with page.expect_file_chooser() as chooser:
        page.click("#adapters-zip")
    chooser.value.set_files(broken)
    expect(page.locator("#notice .bad")).to_be_visible()
    assert list((home.cache / "uploads").rglob("*.zip")) == []


def test_a_full_fine_tune_is_extracted_by_a_job(app: App, home: Home) -> None:
    model = ModelFolder.open(tiny_model(home.models / "base"), "base")
    plan = plan_method(parse_spec({"method": "full"}, "test").method, model.info())
    rng = np.random.default_rng(0)
    tensors = {
        name: model.read(name.removeprefix(PREFIX)) + rng.normal(0, 0.01, shape).astype(np.float32)
        for name, shape in tuner_of(plan).shapes(plan).items()
    }
    write_adapter(home.adapters / "whole", plan, tensors, "base")
    write_identity(home.adapters / "whole", model.identity(), None, {"method": "full"})
    (home.adapters / "whole" / "chat_template.jinja").write_text("{{ messages[0].content }}", "utf-8")
    page = app.open("adapters")
    look_at(page, "whole")
    expect(page.locator("#adapters-main")).to_contain_text("its own chat template")
    page.fill("input[name=rank]", "many")
    page.get_by_role("button", name="Extract", exact=True).click()
    expect(page.locator("#notice .bad")).to_contain_text("whole number")
    page.fill("input[name=rank]", "4")
    page.get_by_role("button", name="Extract", exact=True).click()
    expect(page.locator("#adapters-main .hint.good")).to_contain_text("rank 4")
    page.locator("#adapters-main .hint.good .link").click()
    expect(page.locator("#adapters-main h1")).to_have_text("whole-lora")
    expect(page.locator("#adapters-main .tree")).to_contain_text("Extracted adapter")
    assert library.entry("whole-lora", home).extracted_from["adapter"] == "whole"


def test_from_here_to_the_other_pages(app: App, home: Home, tiny: Path) -> None:
    of_run(home, tiny, "orders")
    made_adapter(tiny, home.adapters / "child")
    rewrite(home.adapters / "child", extracted_from={"adapter": "orders", "rank": 4, "error": 0.1})
    page = app.open("adapters")
    look_at(page, "child")
    page.locator(".tree .link", has_text="orders").first.click()
    expect(page.locator("#page-runs h1:visible")).to_have_text("orders")
    for button, where in (("Evaluate", "evaluate"), ("Export", "export"), ("Chat with it", "chat")):
        app.go(page, "adapters")
        page.locator("#adapters-main .page-header").get_by_role("button", name=button).click()
        expect(page.locator(f"#page-{where} .page-header:visible")).to_be_visible()
    manage.remove("child", home)
    app.go(page, "adapters")
    expect(page.locator("#adapters-main .row-name")).to_have_text(["orders"])
