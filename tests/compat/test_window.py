"""The window of a home that an earlier version wrote: every page is shown, in English and in Chinese."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from compat.old_homes import COMMITS, copied
from finetune_local.system import paths
from ui.conftest import App
from ui.conftest import browser as browser
from ui.conftest import start_app as start_app

PAGES = ("home", "model", "data", "train", "chat", "evaluate", "export", "runs", "adapters", "settings")
SHOWN = {
    "model": ("tiny",),
    "evaluate": ("finished-torch",),
    "runs": ("finished-torch", "finished-mlx"),
    "adapters": ("From a friend. 朋友给的。",),
}


@pytest.mark.ui
@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("commit", COMMITS)
def test_every_page_shows_what_was_left(
    start_app: Callable[..., App], tmp_path: Path, commit: str, language: str
) -> None:
    old = copied(commit, tmp_path / "old 旧")
    preferences = old.config / "preferences.json"
    preferences.write_text(
        preferences.read_text("utf-8").replace('"language": "zh"', f'"language": "{language}"'), "utf-8"
    )
    drafts = old.home / "window" / "drafts"
    shutil.copy(drafts / "window1234.json", drafts / "last.json")  # what a new window begins with
    app = start_app(paths.Home(old.home), **{paths.CONFIG_VARIABLE: str(old.config)})
    page = app.open()
    for name in PAGES:
        app.go(page, name)
        for text in SHOWN.get(name, ()):
            expect(page.locator(f"#page-{name}").get_by_text(text).first).to_be_attached()
        expect(page.locator(".notice.bad")).to_have_count(0)
    chinese = re.search("[一-鿿]", page.locator("#nav [role=tablist]:not(.visually-hidden)").inner_text())
    assert (chinese is not None) == (language == "zh")
