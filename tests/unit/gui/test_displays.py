"""The windows as processes, with scripts in their place; Chromium's flags."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from finetune_local.gui.window import chromium, displays, gtk, opening
from finetune_local.gui.window.displays import Chromium, Outcome, WebView
from finetune_local.gui.window.window import WindowOptions
from finetune_local.system.paths import Home
from finetune_local.system.private import USER_UMASK
from finetune_local.system.process import Process

LINK = "http://127.0.0.1:1/open?t=secret"
OPTIONS = WindowOptions("http://127.0.0.1:1", "page", {"app": "窗口"}, "icon.png", "place.json", "machine.json", "#fff")


def window(monkeypatch: pytest.MonkeyPatch, home: Home, script: str) -> WebView:
    """A WebView whose process runs a script instead."""
    monkeypatch.setattr(displays, "command_of", lambda *_: [sys.executable, "-c", script])
    shown = WebView(home)
    shown.options = OPTIONS
    return shown


def test_a_closed_window_is_the_user_s_wish(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    received = home.root / "received.json"
    shown = window(
        monkeypatch, home, f"import pathlib; pathlib.Path({str(received)!r}).write_text(input(), encoding='utf-8')"
    )
    assert shown.present(LINK) == Outcome(True)
    assert WindowOptions.read(received.read_text("utf-8")) == replace(OPTIONS, link=LINK)
    assert not (home.window / "window.json").exists()


def test_where_there_is_no_window_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    script = "import sys; print('noise\\nno WebView here', file=sys.stderr); sys.exit(3)"
    outcome = window(monkeypatch, home, script).present(LINK)
    assert not outcome.closed and not outcome.again
    assert outcome.reason.endswith("here: no WebView here.")


def test_a_crash_is_no_wish(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    crashing = window(monkeypatch, home, "import os; os.abort()")
    outcome = crashing.present(LINK)
    assert not outcome.closed and not outcome.again and "unexpectedly" in outcome.reason
    monkeypatch.setattr(displays, "_EARLY_SECONDS", -1.0)
    again = [crashing.present(LINK).again for _ in range(displays._MAX_RETRIES)]
    assert again == [True] * (displays._MAX_RETRIES - 1) + [False]


def test_a_window_that_hangs_makes_way_for_the_next(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    monkeypatch.setattr(displays, "_HANG_SECONDS", 0.5)
    hanging = window(monkeypatch, home, "import time; time.sleep(60)")
    hanging.opened = lambda: False
    outcome = hanging.present(LINK)
    assert not outcome.closed and not outcome.again and "showed nothing" in outcome.reason
    stays = window(monkeypatch, home, "import time; time.sleep(1.5)")  # the user looks at it, and closes it
    stays.opened = lambda: True
    assert stays.present(LINK) == Outcome(True)


def test_it_is_told_to_show_itself_and_to_end(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    script = "import sys\ninput()\nfor line in sys.stdin:\n    open(sys.argv[1], 'a').write(line)\n    if line == 'quit\\n': sys.exit(1)"
    monkeypatch.setattr(displays, "command_of", lambda *_: [sys.executable, "-c", script, str(home.root / "heard")])
    shown = WebView(home)
    shown.options = OPTIONS
    assert not shown.show(LINK)
    ended: list[Outcome] = []
    thread = threading.Thread(target=lambda: ended.append(shown.present(LINK)))
    thread.start()
    until = time.monotonic() + 10
    while not (shown.show(LINK) and (home.window / "window.json").exists()) and time.monotonic() < until:
        time.sleep(0.05)
    shown.close()
    thread.join(10)
    assert (home.root / "heard").read_text("utf-8").splitlines()[-2:] == ["show", "quit"]
    assert ended and not ended[0].closed


def test_an_orphan_makes_room(monkeypatch: pytest.MonkeyPatch, home: Home) -> None:
    orphan = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    kept = Process.of(orphan.pid).as_json()
    (home.window / "window.json").write_text(json.dumps(kept), "utf-8")
    assert window(monkeypatch, home, "input()").present(LINK).closed
    assert orphan.wait(10) != 0


def test_chromium_is_found_and_reaches_nobody(tmp_path: Path) -> None:
    program = tmp_path / "google-chrome"
    program.write_text("#!/bin/sh\n", "utf-8")
    program.chmod(0o755)
    assert chromium.find({"PATH": str(tmp_path)}, "linux") == program
    assert chromium.find({"PATH": str(tmp_path / "none")}, "linux") is None
    edge = tmp_path / "Microsoft/Edge/Application/msedge.exe"
    edge.parent.mkdir(parents=True)
    edge.touch()
    assert chromium.find({"ProgramFiles(x86)": str(tmp_path)}, "win32") == edge
    made = chromium.command(program, LINK, tmp_path / "profile 配置", (900, 700))
    assert made[:3] == [str(program), f"--app={LINK}", f"--user-data-dir={tmp_path / 'profile 配置'}"]
    for flag in ("--proxy-server=http://127.0.0.1:9", "--disable-sync", "--disable-component-update", "--no-first-run",
                 "--disable-background-networking", "--disable-extensions", "--disable-default-apps"):  # fmt: skip
        assert flag in made


def test_a_snap_has_its_own_place(tmp_path: Path) -> None:
    ours, snap = tmp_path / "chromium", tmp_path / "snap"
    assert chromium.profile_for(Path("/usr/bin/chromium-browser"), ours, snap) == ours
    snap.touch()
    assert chromium.profile_for(Path("/usr/bin/chromium-browser"), ours, snap).is_relative_to(Path.home() / "snap")
    assert chromium.profile_for(Path("/usr/bin/google-chrome"), ours, snap) == ours


def test_chromium_that_ends_at_once_is_no_window(home: Home, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "chromium"
    program.write_text("#!/bin/sh\necho cannot >&2\nexit 21\n", "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    outcome = Chromium(home).present(LINK)
    assert not outcome.closed and "ended at once (exit code 21" in outcome.reason
    program.write_text('#!/bin/sh\necho "$@" > "${0%/*}/given"\nexit 0\n', "utf-8")
    assert Chromium(home).present(LINK).closed
    given = (tmp_path / "given").read_text("utf-8")
    assert "secret" not in given and "--app=file:///" in given  # every user of the machine reads command lines
    assert list(home.window.glob("*.html")) == []
    program.unlink()
    assert Chromium(home).present(LINK).reason == "Neither Chromium nor Chrome nor Edge was found."


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is always a screen")
def test_without_a_screen_no_browser_is_tried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program, opened = tmp_path / "browser", tmp_path / "opened"
    program.write_text(f'#!/bin/sh\necho "$1" > "{opened}"; umask >> "{opened}"\n', "utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(program))
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert gtk.no_screen() is not None
    assert not opening.browse(LINK, tmp_path) and not opened.exists()
    monkeypatch.setenv("WAYLAND_DISPLAY", "wayland-0")
    monkeypatch.setenv(USER_UMASK, "026")  # what a browser that is started here writes is the user's business
    assert opening.browse(LINK, tmp_path)
    page, umask = opened.read_text("utf-8").split()
    assert page.startswith("file://") and umask == "0026"


@pytest.mark.skipif(os.name == "nt", reason="the rights are Unix's")
def test_a_link_for_a_browser_lies_in_a_page_that_only_the_user_reads(tmp_path: Path) -> None:
    page = opening.write_launch_page(LINK + '&x="', tmp_path)
    assert stat.S_IMODE(page.stat().st_mode) == 0o600
    assert f'content="0;url={LINK}&amp;x=&quot;"' in page.read_text("utf-8")
    other = opening.write_launch_page(LINK, tmp_path)
    assert page.exists() and other != page  # two may be opened at the same time
    os.utime(page, (0, 0))
    opening.write_launch_page(LINK, tmp_path)
    assert not page.exists() and other.exists()
    opening.remove_launch_pages(tmp_path)
    assert list(tmp_path.iterdir()) == []
    hidden = Path("/home/x/.local/share/finetune-local/window")
    assert opening.launch_page_folder(hidden, snaps=tmp_path) == Path.home()  # a snap reads no hidden folder
    assert opening.launch_page_folder(hidden, snaps=tmp_path / "none") == hidden
    assert opening.launch_page_folder(Path("/data/home/window"), snaps=tmp_path) == Path("/data/home/window")


def test_the_system_s_libraries_are_taken_only_for_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "gi").mkdir()
    (tmp_path / "gi" / "_gi.cpython-27-x86_64-linux-gnu.so").touch()
    assert not gtk.find_libraries(tmp_path)
    assert str(tmp_path) not in sys.path
    (tmp_path / "gi" / f"_gi.cpython-{sys.version_info.major}{sys.version_info.minor}-x.so").touch()
    assert gtk.find_libraries(tmp_path)
    assert sys.path[-1] == str(tmp_path)
