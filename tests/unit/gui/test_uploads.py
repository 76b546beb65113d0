"""Uploads without room: told before they are written, and as a sentence where room runs out meanwhile."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path
from typing import Any

import pytest

from finetune_local.gui.http import uploads
from finetune_local.gui.http.uploads import PATH, Uploads
from finetune_local.gui.shell.context import Context
from finetune_local.system.paths import Home

FORM = b"multipart/form-data; boundary=B"


class Sent:
    """What one request was answered, and what was read of it."""

    def __init__(self, app: Any, size: int | str, path: str = PATH, kind: bytes = FORM) -> None:
        self.messages: list[dict[str, Any]] = []
        self.read = 0
        self._left = 3
        headers = [(b"content-length", str(size).encode()), (b"content-type", kind)]
        scope = {"type": "http", "path": path, "method": "POST", "headers": headers}
        self.error: BaseException | None = None
        try:
            asyncio.run(app(scope, self._receive, self._send))
        except OSError as error:
            self.error = error

    async def _receive(self) -> dict[str, Any]:
        self._left -= 1
        self.read += 1
        return {"type": "http.request", "body": b"x", "more_body": self._left > 0}

    async def _send(self, message: Any) -> None:
        self.messages.append(message)

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def text(self) -> str:
        return str(self.messages[1]["body"].decode())


@pytest.fixture
def folder(home: Home) -> Path:
    place = home.cache / "uploads"
    place.mkdir()
    return place


def made(home: Home, folder: Path, app: Any, largest: int = 10**9) -> Uploads:
    return Uploads(app, Context(home), folder, largest)


async def fine(_scope: Any, _receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def failing(number: int) -> Any:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"Internal Server Error"})
        raise OSError(number, os.strerror(number))

    return app


def test_what_fits_goes_through(home: Home, folder: Path) -> None:
    sent = Sent(made(home, folder, fine), 1000)
    assert (sent.status, sent.text) == (200, "ok")


def test_what_is_too_large_or_has_no_room_is_read_and_refused(
    home: Home, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = Sent(made(home, folder, fine, largest=5000), 6000)
    assert large.status == 413 and "of up to" in large.text and large.read == 3
    monkeypatch.setattr(uploads, "free_bytes", lambda _place: uploads.SPARE + 500)
    full = Sent(made(home, folder, fine), 1000)
    assert full.status == 507 and "not enough disk space" in full.text
    assert Sent(made(home, folder, fine), 1000, "/gradio_api/queue/join").status == 200


def test_a_disk_that_fills_up_meanwhile_is_told_and_nothing_is_left(home: Home, folder: Path) -> None:
    app = made(home, folder, failing(errno.ENOSPC))
    (folder / "tmpabc").write_text("half", "utf-8")
    (folder / "tmpfolder").mkdir()
    sent = Sent(app, 1000)
    assert sent.status == 507 and sent.error is None
    assert [file.name for file in folder.iterdir()] == ["tmpfolder"]


def test_another_failure_stays_what_it_is(home: Home, folder: Path) -> None:
    sent = Sent(made(home, folder, failing(errno.EIO)), 1000)
    assert (sent.status, sent.text) == (500, "Internal Server Error")
    assert sent.error is not None


def test_a_form_that_no_browser_wrote_is_refused_in_a_sentence(home: Home, folder: Path) -> None:
    async def broken(_scope: Any, _receive: Any, _send: Any) -> None:
        raise TypeError("File is not an instance of GradioUploadFile")

    sent = Sent(made(home, folder, broken), 3)
    assert sent.status == 400 and sent.text.endswith("its form cannot be read.")
    for size, kind in (("", FORM), ("-1", FORM), ("9" * 40, FORM), ("²", FORM), (3, b"text/plain"), (3, FORM[:19])):
        sent = Sent(made(home, folder, fine), size, kind=kind)
        assert sent.status == 400 and "files are sent as a form" in sent.text, (size, kind)
