"""What cannot be read of the app's own things: shown with its reason beside the sound ones, so that it hides none of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Damaged:
    """One thing by its name and place; `problem` is a sentence."""

    name: str
    place: Path
    problem: str
