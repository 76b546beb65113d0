"""The Data page: files in, what is found, what is learned token by token, how it is read; and hostile data stays text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from finetune_local.system.paths import Home
from tiny import tiny_model
from ui.conftest import PATIENCE, App

expect.set_options(timeout=PATIENCE)
EVIL = "<script>window.hacked=1</script><img src=x onerror='window.hacked=2'> {{7*7}} ${window.hacked=3} `x`"
DROP = """(files) => {
  const data = new DataTransfer();
  for (const [name, text] of files) data.items.add(new File([text], name));
  for (const kind of ["dragenter", "dragover", "drop"])
    document.querySelector("#data-drop strong").dispatchEvent(new DragEvent(kind, { dataTransfer: data, bubbles: true, cancelable: true }));
}"""


@pytest.fixture(autouse=True)
def model(home: Home) -> None:
    """A model in the home, which the page takes as there is no other."""
    tiny_model(home.models / "tiny 小")


def write(path: Path, rows: list[object]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return path


def add(page: Page, path: Path) -> None:
    page.fill("#data-path-field", f'"{path}"')
    page.press("#data-path-field", "Enter")
    expect(page.locator("#data-files li", has_text=path.name)).to_be_visible()


def remembered(home: Home) -> dict[str, object]:
    """The data of the newest window, once it is written."""
    found: dict[str, object] = json.loads((home.window / "drafts" / "last.json").read_text("utf-8"))
    return found


def test_the_example_is_looked_at_set_up_and_taken_to_the_training(app: App, home: Home) -> None:
    page = app.open("data")
    expect(page.locator(".data-like")).to_contain_text("An exported chat")
    page.get_by_role("button", name="160 café orders").click()
    figures = page.locator("#data-found .figures")
    expect(figures).to_contain_text("of 160")
    expect(figures).to_contain_text("144 / 16")
    expect(page.locator("#data-files")).to_contain_text("OpenAI messages · JSON Lines · UTF-8")
    expect(page.locator(".data-rows tbody tr")).to_have_count(10)
    expect(page.locator(".mask .learned.special").last).to_have_text("<|im_end|>")
    expect(page.get_by_role("img", name="Rows by their number of tokens")).to_be_visible()
    page.get_by_role("button", name="Show the learned tokens of row 4", exact=True).click()
    expect(page.locator("#data-mask-title")).to_have_text("Learned tokens of row 4")
    expect(page.locator(".mask")).to_contain_text("你好")
    learned = "".join(page.locator(".mask ins").all_inner_texts())
    assert learned == "GO 4LAT-S 2MUF-S<|im_end|>"
    page.get_by_role("button", name="Next rows").click()
    expect(page.locator(".row-pages")).to_contain_text("11–20 of 160")

    page.select_option("#data-template", "raw")
    expect(page.locator(".mask")).not_to_contain_text("im_start")
    page.fill("#data-validation", "25")
    page.press("#data-validation", "Enter")
    expect(figures).to_contain_text("120 / 40")
    page.fill("#data-max-length", "3")
    page.press("#data-max-length", "Enter")
    expect(page.locator("#notice")).to_contain_text("max_length")

    app.expected.append("AbortError: signal is aborted")  # what Gradio says of a reload while it listens
    page.reload()
    expect(figures).to_contain_text("120 / 40")
    expect(page.locator("#data-template")).to_have_value("raw")
    expect(page.locator(".row-pages")).to_contain_text("11–20 of 160")
    page.get_by_role("button", name="Train with this").click()
    expect(page.locator("#page-train")).to_contain_text("160 rows")
    draft = remembered(home)
    assert draft["data"] == {"files": [str(home.data / "orders.jsonl")], "validation": 0.25, "template": "raw"}
    assert draft["data_facts"]["held_out"] == 40  # type: ignore[index]


def test_hostile_data_and_names_are_shown_as_text(app: App, home: Home, tmp_path: Path) -> None:
    turn = [{"role": "user", "content": EVIL + " \u202egnp.exe\u0007 שלום"}, {"role": "assistant", "content": EVIL}]
    rows: list[object] = [
        {"messages": turn, "{{x}} <b>": 1},
        {"messages": [{"role": f"{EVIL}", "content": "x"}]},
        [EVIL],
    ]
    rows += [{"messages": [{"role": "user", "content": "long " * 5_000}, {"role": "assistant", "content": "a"}]}]
    path = write(tmp_path / "{{7*7}} <img src=x onerror=alert(1)> ${1}.jsonl", rows)
    page = app.open("data")
    add(page, path)
    expect(page.locator("#data-found .figures")).to_contain_text("of 4")
    expect(page.locator("#data-files strong")).to_have_text(path.name)
    expect(page.locator(".data-rows")).to_contain_text("<script>window.hacked=1</script>")
    expect(page.locator(".mask")).to_contain_text("{{7*7}}")
    expect(page.locator(".mask")).to_contain_text("⟨U+202E⟩gnp.exe⟨U+0007⟩")
    expect(page.locator(".data-rejected")).to_contain_text("has role")
    expect(page.locator("#data-found")).to_contain_text("not used: {{x}} <b>")
    page.evaluate(DROP, [["../a<b>.csv", f"{EVIL},prompt\n1,2\n"], ["a b 数.csv", "prompt,completion\nx,y\n"]])
    expect(page.locator("#data-files li")).to_have_count(3)
    assert len(list(home.data.iterdir())) == 2
    assert page.evaluate("window.hacked") is None
    assert page.locator("#page-data script, #page-data img").count() == 0


def test_columns_speakers_and_personal_data_are_for_the_user_to_say(app: App, tmp_path: Path) -> None:
    table = tmp_path / "Fragen.csv"
    lines = [f"{i};Wie heißt die Stadt {i}? Antwort an kunde{i}@b.org;Sie heißt Stadt {i}." for i in range(12)]
    table.write_text("Nr;Kundenfrage;Unsere Antwort\n" + "\n".join(lines) + "\n1;2\n", "utf-8")
    chat = tmp_path / "WhatsApp Chat.txt"
    said = [
        f"[{day}/1/24, 10:{minute:02d}] {('Eva', 'Bo')[minute % 2]}: {day} {minute}"
        for day in range(1, 9)
        for minute in range(4)
    ]
    chat.write_text("\n".join(said), "utf-8")
    page = app.open("data")
    figures = page.locator("#data-found .figures")
    add(page, table)
    expect(page.locator("#data-found")).to_contain_text("What is in each column?")
    expect(page.get_by_role("button", name="Train with this")).to_be_disabled()
    expect(page.get_by_label("Role of column Kundenfrage")).to_have_value("prompt")
    page.get_by_role("button", name="Apply").click()
    expect(figures).to_contain_text("of 13")
    expect(page.locator(".data-rejected")).to_contain_text("its number of columns is 2")
    page.get_by_label("E-mail addresses").check()
    expect(page.locator(".data-rows")).to_contain_text("Antwort an [email]")
    expect(page.get_by_label("E-mail addresses")).to_be_checked()

    add(page, chat)
    expect(page.locator("#data-found")).to_contain_text("Whose messages should the model learn?")
    page.select_option("#data-speaker", "Bo")
    expect(figures).to_contain_text("20of 21")
    page.get_by_label("Use of WhatsApp Chat.txt").select_option("validate")
    expect(figures).to_contain_text("12 / 8")
    page.get_by_role("button", name="Remove Fragen.csv from the list").click()
    expect(page.locator("#data-found")).to_contain_text("Mark at least one")
    page.fill("#data-path-field", str(tmp_path / "none.jsonl"))
    page.press("#data-path-field", "Enter")
    expect(page.locator("#notice")).to_contain_text("file not found")
    preference = write(tmp_path / "p.jsonl", [{"prompt": "q", "chosen": "good", "rejected": "bad"}] * 3)
    add(page, preference)
    page.get_by_role("button", name="Use the chosen answers").click()
    expect(page.locator(".data-rows")).to_contain_text("good")
