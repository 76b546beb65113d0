"""Every page for people who do not see it or use no mouse: axe-core finds nothing serious, in light and dark, in both languages."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page

from finetune_local.spec.run import DEFAULT_MODEL
from finetune_local.system.paths import Home
from tiny import tiny_model
from ui.conftest import App

PAGES = ("home", "model", "data", "train", "chat", "evaluate", "adapters", "runs", "export", "settings")
SERIOUS = ("serious", "critical")


def serious(page: Page) -> list[str]:
    """What axe-core holds for serious or critical on a page as it stands."""
    told: dict[str, Any] = Axe().run(page).response
    assert len(told["passes"]) > 10, "axe-core looked at nothing"
    violations: list[dict[str, Any]] = told["violations"]
    return [
        f"{found['id']} ({found['impact']}): {node['html'][:160]} {node.get('failureSummary', '')[:200]}"
        for found in violations
        if found["impact"] in SERIOUS
        for node in found["nodes"]
    ]


@pytest.mark.parametrize(("scheme", "language"), [("light", "en-GB"), ("dark", "zh-CN")])
def test_axe_finds_nothing_serious_on_any_page(
    scheme: Literal["light", "dark"], language: str, start_app: Callable[..., App], home: Home
) -> None:
    tiny_model(home.models / DEFAULT_MODEL)
    app = start_app()
    page = app.open(color_scheme=scheme, locale=language)
    found = {}
    for name in PAGES:
        app.go(page, name)
        if name == "data":
            page.click("[data-do='data.example']")
            page.wait_for_selector("[data-do='data.train']:not([disabled])")
        if name == "train":
            page.click("#train-settings > button")
        page.wait_for_timeout(500)
        if problems := serious(page):
            found[name] = problems
    assert found == {}
