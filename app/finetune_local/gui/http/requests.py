"""Validation of the page's requests, before Gradio receives them. An event must have the fields of its components, a file must be one
that was dropped into the page, and no value may name an address.

By itself, Gradio resolves and fetches any address given as a file, and answers a wrong event number, a form field instead of a file or
a number of 5,000 digits with a traceback. Here, a request that the page would not make is answered with 400 and a sentence.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs

from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError

from finetune_local.gui.http.guard import App, Message, Receive, Scope, Send, answer
from finetune_local.system.messages import message_of
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object

logger = logging.getLogger("uvicorn.error")

MOST_BYTES = 64 << 20
"""Largest body of an event; it contains the values of the page's fields."""

MOST_PATH = 1024
_FILE = "/gradio_api/file="
_HEARTBEAT = "/gradio_api/heartbeat/"
_TOKEN = re.compile(r"[A-Za-z0-9_-]{1,64}")
_SEGMENT = 255
_LARGEST_INTEGER = 2**63

Token = Annotated[str, StringConstraints(pattern=rf"^{_TOKEN.pattern}$")]


class Refused(ValueError):
    """The page does not make such a request. The message is the end of a sentence that says why."""


class _Body(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class Join(_Body):
    """POST queue/join: an event of the page."""

    session_hash: Token
    fn_index: int
    data: list[Any]
    event_data: Any = None
    trigger_id: int | None = None


class Cancel(_Body):
    """POST cancel."""

    session_hash: Token
    fn_index: int
    event_id: Token


class Reset(_Body):
    """POST reset."""

    event_id: Token


_BODIES: Mapping[str, type[_Body]] = {
    "/gradio_api/queue/join": Join,
    "/gradio_api/cancel": Cancel,
    "/gradio_api/reset": Reset,
}
_TOKENS = {"/gradio_api/queue/data": "session_hash", "/gradio_api/upload_progress": "upload_id"}
"""GET requests with a query parameter that must be a token."""


@dataclass(frozen=True)
class Shape:
    """The requests that a page can make: for each event, the Gradio component types of the fields it sends; and the ids of all components,
    of which one triggered the event."""

    events: Mapping[int, tuple[str, ...]]
    components: frozenset[int]


NOTHING = Shape({}, frozenset())


def shape_of(blocks: Any) -> Shape:
    """The shape of a gr.Blocks."""
    events = {number: tuple(type(field).__name__ for field in known.inputs) for number, known in blocks.fns.items()}
    return Shape(events, frozenset(blocks.blocks) | {0})


class Requests:
    """ASGI middleware. `shape` returns the shape of the current page; `uploads` is the folder that dropped files are stored in."""

    def __init__(self, app: App, shape: Callable[[], Shape], uploads: Path) -> None:
        self._app, self._shape, self._uploads = app, shape, uploads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on valid requests and refuse others."""
        path: str = scope["path"]
        try:
            self._check_path(scope, path)
            body = await self._body(scope, receive, _BODIES[path]) if path in _BODIES else None
        except Refused as refused:
            logger.warning("A request was refused: %.60s: %.300s", path, refused)
            await answer(send, 400, f"This is no request of the page: {refused}.")
            return
        if path.startswith(_FILE) and self._dropped_file(path.removeprefix(_FILE)) is None:
            await answer(send, 403, "Only files that were dropped into the page are shown.")
        elif body is None:
            await self._app(scope, receive, send)
        else:
            await self._app(_with_body(scope, body), _replaying(body, receive), send)

    def _check_path(self, scope: Scope, path: str) -> None:
        if any(ord(letter) < 32 or ord(letter) == 127 for letter in path):
            raise Refused("its path has control characters")
        if len(path) > MOST_PATH or any(len(part.encode("utf-8", "replace")) > _SEGMENT for part in path.split("/")):
            raise Refused("its path is too long")
        if path in _BODIES and scope["method"] != "POST":
            raise Refused("an event is posted")
        if (name := _TOKENS.get(path)) is not None:
            found = parse_qs(scope["query_string"].decode("ascii", "replace")).get(name, [])
            if len(found) != 1 or not _TOKEN.fullmatch(found[0]):
                raise Refused(f"{name} is missing, or no token")
        if path.startswith(_HEARTBEAT) and not _TOKEN.fullmatch(path.removeprefix(_HEARTBEAT)):
            raise Refused("its session is no token")

    async def _body(self, scope: Scope, receive: Receive, kind: type[_Body]) -> bytes:
        try:
            values = kind.model_validate(parse_json_object(await _read(receive)))
        except ForeignTextError as error:
            raise Refused(message_of(error)) from None
        except ValidationError as error:
            first = error.errors()[0]
            raise Refused(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        if isinstance(values, Join):
            self._check_event(values)
        return json.dumps(values.model_dump(), ensure_ascii=True).encode("ascii")

    def _check_event(self, join: Join) -> None:
        shape = self._shape()
        fields = shape.events.get(join.fn_index)
        if fields is None:
            raise Refused(f"there is no event {join.fn_index}")
        if join.trigger_id is not None and join.trigger_id not in shape.components:
            raise Refused(f"there is no component {join.trigger_id}")
        if len(join.data) != len(fields):
            raise Refused(f"event {join.fn_index} has {len(fields)} fields, not {len(join.data)}")
        join.data = [self._field(kind, value) for kind, value in zip(fields, join.data, strict=True)]
        join.event_data = self._plain(join.event_data)

    def _field(self, kind: str, value: Any) -> Any:
        """The value of a field, checked against the type of its component."""
        simple = (str, bool, int, float)
        fits: bool = {
            "Textbox": isinstance(value, str),
            "Checkbox": isinstance(value, bool),
            "Dropdown": isinstance(value, simple)
            or (isinstance(value, list) and all(isinstance(one, simple) for one in value)),
            "UploadButton": isinstance(value, (dict, list)),
        }.get(kind, True)
        if value is not None and not fits:
            raise Refused(f"a field of the kind {kind} has another content")
        if kind == "Textbox" and value is None:
            return ""
        if kind == "UploadButton" and value is not None:
            return [self._file(one) for one in value] if isinstance(value, list) else self._file(value)
        return self._plain(value)

    def _file(self, value: Any) -> dict[str, object]:
        """A dropped file as Gradio's FileData, with its path and original name only."""
        if not isinstance(value, dict) or not isinstance(value.get("path"), str):
            raise Refused("a dropped file is expected")
        place = self._dropped_file(value["path"])
        if place is None:
            raise Refused("a file is named that was not dropped into the page")
        name = value.get("orig_name")
        original = str(self._plain(name)) if isinstance(name, str) else place.name
        return {"path": str(place), "orig_name": original, "meta": {"_type": "gradio.FileData"}}

    def _dropped_file(self, path: str) -> Path | None:
        """The resolved path of a dropped file; None if the path is not one."""
        try:
            place = Path(path)
            resolved = place.resolve()
            found = place.is_absolute() and resolved.is_file() and resolved.is_relative_to(self._uploads.resolve())
        except (OSError, ValueError):
            return None
        return resolved if found else None

    def _plain(self, value: Any) -> Any:
        """A copy of a JSON value without lone surrogates, non-finite or oversized numbers, or files that were not dropped."""
        if isinstance(value, dict):
            if "path" in value:
                return self._file(value)
            return {self._plain(key): self._plain(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._plain(inner) for inner in value]
        if isinstance(value, str):
            return value.encode("utf-8", "replace").decode("utf-8")
        if isinstance(value, float) and not math.isfinite(value):
            raise Refused("a number is not finite")
        if isinstance(value, int) and not -_LARGEST_INTEGER <= value < _LARGEST_INTEGER:
            raise Refused("a number is too large")
        return value


async def _read(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MOST_BYTES:
            raise Refused(f"it is larger than {MOST_BYTES >> 20} MB")
        if message["type"] == "http.disconnect" or not message.get("more_body"):
            return bytes(body)


def _with_body(scope: Scope, body: bytes) -> Scope:
    others = [
        (n, v)
        for n, v in scope["headers"]
        if n.lower() not in (b"content-length", b"content-type", b"transfer-encoding")
    ]
    own = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode("ascii"))]
    return {**scope, "headers": [*others, *own]}


def _replaying(body: bytes, receive: Receive) -> Receive:
    """A receive that returns the body as one message, then later messages."""
    pending = [body]

    async def receiving() -> Message:
        return {"type": "http.request", "body": pending.pop(), "more_body": False} if pending else await receive()

    return receiving
