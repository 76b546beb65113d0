"""A small hub on this machine: the API, files with ranges and redirects to a second host, and the ways both fail."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from tiny import tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Hub:
    """What the hub serves and how it misbehaves. `log` has (host, path, headers) of every request."""

    folder: Path
    address: str = ""
    cdn: str = ""
    token: str | None = None
    token_has_access: bool = True
    gated: bool = False
    cut_after: list[int] = field(default_factory=list)  # bytes after which the next file answers break off
    ignore_ranges: bool = False
    wrong_bytes: int = 0  # how many answers of weights come with a flipped byte
    statuses: list[int] = field(default_factory=list)  # answers to give first
    log: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    extra: dict[str, bytes] = field(default_factory=dict)  # files beside those of the folder
    pause: float = 0.0  # seconds before each of the 4 KiB pieces that weights are sent in
    models: list[dict[str, object]] = field(default_factory=list)  # what a search finds
    without: set[str] = field(default_factory=set)

    def files(self) -> dict[str, bytes]:
        """Name -> content."""
        own = {f.name: f.read_bytes() for f in self.folder.iterdir()}
        return {k: v for k, v in {**own, **self.extra}.items() if k not in self.without}

    def asked(self, part: str, host: str = "") -> list[dict[str, str]]:
        """Headers of the requests whose path contains `part`."""
        return [headers for where, path, headers in self.log if part in path and host in where]


def siblings(files: dict[str, bytes]) -> list[dict[str, object]]:
    """As the hub lists files: weights in LFS by SHA-256, the rest by git's hash."""
    found: list[dict[str, object]] = []
    for name, data in files.items():
        entry: dict[str, object] = {"rfilename": name, "size": len(data)}
        entry["blobId"] = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        if name.endswith((".safetensors", ".bin")):
            entry["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 130}
        found.append(entry)
    return found


def handler(hub: Hub, is_cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def do_GET(self) -> None:
            headers = {k.lower(): v for k, v in self.headers.items()}
            hub.log.append(("cdn" if is_cdn else "hub", self.path, headers))
            if hub.statuses:
                return self.answer(hub.statuses.pop(0))
            path = urlsplit(self.path).path
            if is_cdn:
                return self.content(path.removeprefix("/blob/"))
            if hub.token is not None and headers.get("authorization") not in (None, f"Bearer {hub.token}"):
                return self.answer(401)
            if path == "/api/models":
                return self.answer(200, {"Content-Type": "application/json"}, json.dumps(hub.models).encode())
            if path.startswith("/api/models/"):
                return self.listing(path)
            name = path.rsplit("/", 1)[-1]
            if hub.gated and not (headers.get("authorization") and hub.token_has_access):
                return self.answer(403 if headers.get("authorization") else 401, {"X-Error-Code": "GatedRepo"})
            if name.endswith(".safetensors"):
                return self.answer(302, {"Location": f"{hub.cdn}/blob/{name}"})
            return self.content(name)

        def listing(self, path: str) -> None:
            repository, _, revision = path.removeprefix("/api/models/").rpartition("/revision/")
            if repository != "some/tiny":
                return self.answer(401, {"X-Error-Code": "RepoNotFound"})
            if revision not in ("main", COMMIT):
                return self.answer(404, {"X-Error-Code": "RevisionNotFound"})
            body = {"sha": COMMIT, "siblings": siblings(hub.files()), "cardData": {"license": "apache-2.0"}}
            return self.answer(200, {"Content-Type": "application/json"}, json.dumps(body).encode())

        def content(self, name: str) -> None:
            data = hub.files().get(name)
            if data is None:
                return self.answer(404, {"X-Error-Code": "EntryNotFound"})
            if hub.wrong_bytes and name.endswith(".safetensors"):
                hub.wrong_bytes -= 1
                data = data[:-1] + bytes([data[-1] ^ 1])
            start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
            if hub.ignore_ranges:
                start = 0
            part = data[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(part)))
            if start:
                self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
            self.end_headers()
            if name.endswith(".safetensors") and hub.cut_after:
                self.wfile.write(part[: hub.cut_after.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                return None
            with suppress(ConnectionError):  # whoever asks may leave off
                while hub.pause and name.endswith(".safetensors") and part:
                    time.sleep(hub.pause)
                    self.wfile.write(part[:4096])
                    part = part[4096:]
                self.wfile.write(part)
            return None

        def answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
            self.send_response(status)
            for key, value in {**(headers or {}), "Content-Length": str(len(body))}.items():
                self.send_header(key, value)
            self.end_headers()
            self.wfile.write(body)

    return Handler


@contextmanager
def serving(folder: Path) -> Iterator[Hub]:
    """A hub with one model, some/tiny, of two weight files."""
    made = Hub(tiny_model(folder, shards=2))
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), handler(made, is_cdn)) for is_cdn in (False, True)]
    for server in servers:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    made.address, made.cdn = (f"http://127.0.0.1:{s.server_address[1]}" for s in servers)
    yield made
    for server in servers:
        server.shutdown()
        server.server_close()
