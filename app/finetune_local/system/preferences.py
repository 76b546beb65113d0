"""Preferences that apply to every home folder: language, theme, folders, offline mode.

Stored in the system's folder for settings, since the home folder is one of them. Declared like a run's settings, so the
settings page is generated from these fields.
"""

from __future__ import annotations

import json
from typing import Any, Literal

from finetune_local.system.errors import SpecError
from finetune_local.system.fields import Settings, parse, setting
from finetune_local.system.files import write_text
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.paths import located, preferences_file, preferred

Language = Literal["auto", "en", "zh"]
Theme = Literal["system", "light", "dark"]


class Preferences(Settings):
    """All preferences."""

    language: Language = setting("auto", help="Language of the window; auto: the system's.", group="window")
    theme: Theme = setting("system", help="Light, dark, or the system's.", group="window")
    notify: bool = setting(
        True, help="Show a desktop notification when a run or another long job has ended.", group="window"
    )
    home: str = setting(
        "",
        help="Folder for runs, models and adapters. Empty: the system's folder for application data.",
        group="folders",
    )
    model_folders: tuple[str, ...] = setting(
        (), help="Folders, on any drive, in which to search for models.", group="folders", metavar="DIR"
    )
    exports: str = setting("", help="Folder for exports. Empty: exports in the home folder.", group="folders")
    offline: bool = setting(False, help="Never access the network: no searches, no downloads.", group="network")


def load() -> Preferences:
    """The current preferences; damaged and unknown values count as unset."""
    kept: dict[str, Any] = {}
    for name, value in preferred().items():
        try:
            Preferences.model_validate({name: value})
        except ValueError:
            continue
        kept[name] = value
    return Preferences.model_validate(kept)


def save(**changed: Any) -> Preferences:
    """Change some preferences and store them. Raises SpecError for an invalid value, DiskFull."""
    preferences = parse(Preferences, {**load().model_dump(), **changed}, "preferences")
    if preferences.home and not located(preferences.home).is_absolute():
        raise SpecError(
            msg(
                "the home folder '{folder}' is not an absolute path. Start it with the drive or /.",
                folder=preferences.home,
            )
        )
    file = preferences_file()
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(preferences.model_dump(mode="json"), indent=2, ensure_ascii=False) + "\n")
    except OSError as error:
        raise SpecError(
            msg("{path} cannot be written ({error}). Change its permissions.", path=file, error=system_reason(error))
        ) from None
    return preferences
