"""Homes that earlier versions wrote, copied to a place of the test's own, and how what is shown of them may differ."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HOMES = Path(__file__).with_name("homes")
COMMITS = sorted(folder.name for folder in HOMES.iterdir() if folder.is_dir())

CHANGING = {"changed", "changed_time", "began"}
"""What goes by the time at which a file was written, which a copy does not keep."""
REWORDED = {
    "Which is preferred cannot be told yet:": "It is not clear yet which is preferred:",
    "its process ended without a word (": "its process ended unexpectedly (",
}
"""Beginnings of sentences that are composed when they are shown, and how this version words them."""
FACTS = ("commit", "place", "stop", "prompt", "resumed", "answers")
"""What expected.json holds beside what is shown."""


@dataclass(frozen=True)
class OldHome:
    """One of them: where it lies now, and what its version said of it."""

    home: Path
    config: Path
    expected: dict[str, Any]

    @property
    def shown(self) -> dict[str, Any]:
        """What its version showed."""
        return {key: value for key, value in self.expected.items() if key not in FACTS}


def copied(commit: str, place: Path) -> OldHome:
    """A copy in `place`, whose files name it instead of where they were written; what has checksums stays as it is."""
    source = HOMES / commit
    recorded = json.loads((source / "expected.json").read_text("utf-8"))["place"]
    for part in ("home", "config"):
        shutil.copytree(source / part, place / part)
    for file in place.rglob("*.json*"):
        sums = file.parent / "SHA256SUMS"
        if file.suffix in (".json", ".jsonl") and not (sums.exists() and file.name in sums.read_text("utf-8")):
            _put(file, recorded, place)
    for draft in (place / "home" / "window" / "drafts").glob("*.json"):
        _without_sum(draft)
    text = (source / "expected.json").read_text("utf-8")
    return OldHome(place / "home", place / "config", json.loads(text.replace(recorded, _inside(place))))


def differences(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """What was shown and is shown no more, or otherwise; what came to it is none. Lists are compared in any order where they are
    of things with names."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key, value in before.items():
            if key not in now:
                yield f"{where}.{key} is gone"
            elif key not in CHANGING:
                yield from differences(value, now[key], f"{where}.{key}")
    elif isinstance(before, list) and isinstance(now, list):
        if len(before) != len(now):
            yield f"{where}: {len(before)} before, {len(now)} now"
        for number, (one, other) in enumerate(zip(_sorted(before), _sorted(now), strict=False)):
            yield from differences(one, other, f"{where}[{number}]")
    elif _reworded(before) != now or isinstance(before, bool) != isinstance(now, bool):
        yield f"{where}: {before!r} before, {now!r} now"


def _reworded(value: Any) -> Any:
    for old, new in REWORDED.items():
        if isinstance(value, str) and value.startswith(old):
            return new + value.removeprefix(old)
    return value


def _sorted(values: list[Any]) -> list[Any]:
    def name(value: Any) -> str:
        return str(next((value[key] for key in ("run", "name", "id", "use") if key in value), ""))

    return sorted(values, key=name) if values and all(isinstance(value, Mapping) for value in values) else values


def _put(file: Path, recorded: str, place: Path) -> None:
    text = file.read_text("utf-8", errors="surrogateescape")
    if recorded in text:
        file.write_text(text.replace(recorded, _inside(place)), "utf-8", errors="surrogateescape", newline="")


def _inside(place: Path) -> str:
    """The path as it stands inside of a JSON string."""
    return json.dumps(str(place), ensure_ascii=False)[1:-1]


def _without_sum(draft: Path) -> None:
    """Another path has another checksum; drafts of earlier versions have none."""
    values = json.loads(draft.read_text("utf-8"))
    values.pop("sha256", None)
    draft.write_text(json.dumps(values, ensure_ascii=False), "utf-8")
