from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.system import paths, preferences
from finetune_local.system.errors import SpecError


@pytest.fixture(autouse=True)
def _own_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(paths.CONFIG_VARIABLE, str(tmp_path / "设置 config"))


def test_what_is_saved_comes_back_and_the_rest_stays() -> None:
    assert preferences.load() == preferences.Preferences()
    preferences.save(language="zh", offline=True)
    preferences.save(theme="dark")
    found = preferences.load()
    assert (found.language, found.offline, found.theme) == ("zh", True, "dark")


def test_a_value_that_cannot_be_is_refused_and_nothing_is_lost() -> None:
    preferences.save(theme="dark")
    with pytest.raises(SpecError, match="theme"):
        preferences.save(theme="pink")
    with pytest.raises(SpecError, match="not an absolute path"):
        preferences.save(home="somewhere")
    assert preferences.load().theme == "dark"


@pytest.mark.parametrize("text", ["", "{", "[]", '{"theme": 3, "language": "zh", "gone": 1}', "\x00"])
def test_a_damaged_file_counts_as_far_as_it_can(text: str) -> None:
    file = paths.preferences_file()
    file.parent.mkdir(parents=True)
    file.write_text(text, "utf-8")
    found = preferences.load()
    assert found.theme == "system"
    assert found.language == ("zh" if "zh" in text else "auto")


def test_the_preferred_home_comes_after_the_option_and_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preferences.save(home=str(tmp_path / "大 drive"))
    monkeypatch.setenv(paths.ENVIRONMENT_VARIABLE, str(tmp_path / "variable"))
    assert paths.home(tmp_path / "option").root == tmp_path / "option"
    assert paths.home().root == tmp_path / "variable"
    monkeypatch.delenv(paths.ENVIRONMENT_VARIABLE)
    assert paths.home().root == tmp_path / "大 drive"
