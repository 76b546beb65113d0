"""A screen of the tests' own, for windows that are no browser's: Xvfb, and what it shows."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from finetune_local.gui.window import gtk

EXPECTED = "FINETUNE_LOCAL_EXPECT_BROWSER"
SIZE = (1000, 760)
BUTTON = 0x0F766E
"""The colour of a page's main button, in the light theme."""


def needs(what: str, present: bool) -> None:
    """Skip where something is not installed; fail where the environment expects it."""
    if not present and os.environ.get(EXPECTED):
        pytest.fail(f"{EXPECTED} is set, but {what} is not installed")
    if not present:
        pytest.skip(f"{what} is not installed")


@dataclass(frozen=True)
class Screen:
    """A screen in memory: its $DISPLAY, and the file that holds what it shows."""

    display: str
    picture: Path


@pytest.fixture(scope="session")
def screen(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Screen]:
    """One for all tests of a process."""
    needs("Xvfb (Debian: xvfb)", shutil.which("Xvfb") is not None)
    needs("xdotool", shutil.which("xdotool") is not None)
    folder = tmp_path_factory.mktemp("screen")
    reading, writing = os.pipe()
    command = ["Xvfb", "-displayfd", str(writing), "-screen", "0", f"{SIZE[0]}x{SIZE[1]}x24", "-fbdir", str(folder)]
    server = subprocess.Popen(
        [*command, "-nolisten", "tcp"], pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(writing)
    with os.fdopen(reading) as told:
        number = told.readline().strip()
    yield Screen(f":{number}", folder / "Xvfb_screen0")
    server.terminate()
    server.wait()


def needs_gtk() -> None:
    """Skip where GTK's WebKit is not installed, or not for this Python."""
    if (gtk.DEBIAN / "gi").is_dir() and not gtk.find_libraries():
        pytest.skip("the system's python3-gi is for another Python than this one")
    needs("GTK's WebKit (Debian: python3-gi gir1.2-webkit2-4.1)", gtk.find_libraries())


def shows_the_page(screen: Screen) -> bool:
    """Whether its main button is on the screen: more of that colour than the splash has. The picture is an X window dump, four
    bytes a pixel, the least first."""
    return screen.picture.read_bytes().count(BUTTON.to_bytes(3, "little")) > 800


def colours(screen: Screen) -> str:
    """What is most on the screen, for a test that failed there: colours and their pixels."""
    raw = screen.picture.read_bytes()
    header = struct.unpack(">25I", raw[:100])
    begin, lines, line = header[0] + 12 * header[19], header[5], header[12]
    pixels = memoryview(raw)[begin : begin + lines * line].cast("I")
    found = Counter(f"#{pixel & 0xFFFFFF:06x}" for pixel in pixels)
    return ", ".join(f"{colour} {count}" for colour, count in found.most_common(8))
