"""Paths: the home folder and its subfolders, and the files shipped with the app."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from finetune_local.system.errors import SpecError
from finetune_local.system.messages import msg, system_reason
from finetune_local.system.private import make_private, open_to_others
from finetune_local.system.untrusted.text import is_text, read_json_object

ENVIRONMENT_VARIABLE = "FINETUNE_LOCAL_HOME"
CONFIG_VARIABLE = "FINETUNE_LOCAL_CONFIG"

PARTS = ("runs", "models", "adapters", "chats", "evaluations", "jobs", "data", "window", "trash", "cache", "exports")
"""Subfolders of a home."""


@dataclass(frozen=True)
class Home:
    """The folder that holds everything the app writes. Subfolders are created on first use; other users have no access."""

    root: Path

    @property
    def runs(self) -> Path:
        """One folder per training run."""
        return self._part("runs")

    @property
    def models(self) -> Path:
        """Base models, one Hugging Face folder each."""
        return self._part("models")

    @property
    def adapters(self) -> Path:
        """Imported adapters (a run's adapter stays in the run)."""
        return self._part("adapters")

    @property
    def chats(self) -> Path:
        """Conversations, one JSON Lines file each."""
        return self._part("chats")

    @property
    def evaluations(self) -> Path:
        """Results of evaluations, one folder each."""
        return self._part("evaluations")

    @property
    def jobs(self) -> Path:
        """Jobs (downloads, evaluations, exports, extractions), one folder each; may be deleted once finished."""
        return self._part("jobs")

    @property
    def data(self) -> Path:
        """Data files dropped into the window."""
        return self._part("data")

    @property
    def window(self) -> Path:
        """The window's state: drafts, size and position, the serving process."""
        return self._part("window")

    @property
    def trash(self) -> Path:
        """Removed runs, adapters and conversations that can be restored."""
        return self._part("trash")

    @property
    def cache(self) -> Path:
        """Files that can be recreated: partial downloads, compiled helpers."""
        return self._part("cache")

    def open_to_others(self) -> list[Path]:
        """Subfolders that other users of the machine can enter."""
        return open_to_others(self.root, PARTS)

    def _part(self, name: str) -> Path:
        folder = self.root / name
        try:
            make_private(self.root, folder, PARTS)
        except OSError as error:
            raise SpecError(
                msg(
                    "{path} cannot be created ({error}). Choose another folder with --home or ${variable}.",
                    path=folder,
                    error=system_reason(error),
                    variable=ENVIRONMENT_VARIABLE,
                )
            ) from None
        return folder


def home(chosen: str | os.PathLike[str] | None = None) -> Home:
    """The home folder: `chosen` (--home), else $FINETUNE_LOCAL_HOME, else the preference, else the system's folder for user data."""
    preference = preferred().get("home")
    place = chosen or os.environ.get(ENVIRONMENT_VARIABLE) or (preference if isinstance(preference, str) else "")
    if place:
        return Home(expanded(place).resolve())
    from platformdirs import user_data_path

    return Home(user_data_path("finetune-local", appauthor=False))


def expanded(path: str | os.PathLike[str]) -> Path:
    """A path with ~ expanded. Raises SpecError if it names an unknown user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise SpecError(msg("{path}: there is no user with that name here. Write the full path.", path=path)) from None


def located(path: str | os.PathLike[str]) -> Path:
    """As expanded(), for lookups only: an unknown user leaves the path unchanged, and nothing exists there."""
    try:
        return expanded(path)
    except SpecError:
        return Path(path)


def preferences_file() -> Path:
    """The preferences file: $FINETUNE_LOCAL_CONFIG, else in the system's folder for settings."""
    if given := os.environ.get(CONFIG_VARIABLE):
        return expanded(given) / "preferences.json"
    from platformdirs import user_config_path

    return user_config_path("finetune-local", appauthor=False) / "preferences.json"


def preferred() -> Mapping[str, object]:
    """The stored preferences (see preferences.py); empty if there are none or they are damaged."""
    try:
        return read_json_object(preferences_file())
    except (OSError, ValueError):
        return {}


def assets() -> Path:
    """The folder of shipped files: inside the wheel, else `assets/` of the checkout."""
    packaged = Path(__file__).parents[1] / "_assets"
    if packaged.is_dir() and any(packaged.iterdir()):
        return packaged
    return Path(__file__).resolve().parents[3] / "assets"


def strings() -> Path:
    """The folder of the window's texts, English and Chinese."""
    return assets() / "strings"


def method_page(key: str) -> Path:
    """A method's documentation as Markdown: inside the wheel, else from the checkout's docs."""
    packaged = Path(__file__).parents[1] / "_methods"
    place = packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "docs" / "methods"
    return place / f"{key}.md"


_UNSEEN = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters and those that change text direction: a name must be what it looks like."""

_DEVICES = re.compile(r"(con|prn|aux|nul|com[\d¹²³]|lpt[\d¹²³]|conin\$|conout\$)( *\..*)?", re.IGNORECASE)
"""Device names reserved by Windows."""


def bad_name(name: str) -> str | None:
    """Why a name cannot be a folder's on every system, as the end of a sentence; None if it can."""
    if not name.strip() or name.startswith((".", "-", " ")) or name.endswith((".", " ")) or _DEVICES.fullmatch(name):
        return msg("is not a valid folder name on every system")
    if not is_text(name):
        return msg("is not valid text")
    if bad := sorted(letter for letter in set(name) if letter in '/\\:*?"<>|' or _UNSEEN.fullmatch(letter)):
        return msg(
            "contains the character {character}, which not every system allows in folder names", character=repr(bad[0])
        )
    return msg("is too long: use at most 100 characters") if len(name.encode()) > 200 or len(name) > 100 else None
