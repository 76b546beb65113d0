from __future__ import annotations

from playwright.sync_api import expect

from ui.conftest import App


def test_a_first_look_says_what_to_do_and_what_the_machine_has(app: App) -> None:
    page = app.open()
    expect(page.locator("#page-home h1")).to_have_text("Fine-tune a model on your own computer")
    expect(page.locator("#home .steps li.next strong")).to_have_text("Pick a base model")
    expect(page.locator("#home .facts dt").first).to_have_text("Computes on")
    assert app.hosts == {f"127.0.0.1:{app.port}"}
