"""Download one file: resumed, retried, and checked against its hash before it is used."""

from __future__ import annotations

import hashlib
import random
import re
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from finetune_local.system.errors import DiskFailed, DownloadFailed, ModelError
from finetune_local.system.files import failure
from finetune_local.system.messages import Message, msg, system_reason

if TYPE_CHECKING:
    import httpx

ATTEMPTS = 6
"""Consecutive attempts without a new byte before giving up."""
_CHUNK = 1 << 20
_LONGEST_PAUSE = 60.0
_REPORT_SECONDS = 0.1


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: name, bytes, and its hash: SHA-256 of the content, or git's blob SHA-1."""

    name: str
    size: int
    sha256: str | None
    git_sha1: str | None

    @property
    def key(self) -> str:
        """The hash, which also names the partial file, so a new version never continues an old one."""
        return self.sha256 or self.git_sha1 or ""


@dataclass(frozen=True)
class Transfer:
    """A download's progress: bytes here, total bytes, bytes per second and seconds left (None at first)."""

    here: int
    total: int
    rate: float | None = None
    seconds_left: float | None = None

    @property
    def text(self) -> Message:
        """Such as "1.2 of 3.4 GB, 12.0 MB/s, 3 min left"."""
        unit, name = (1e9, "GB") if self.total >= 1e9 else (1e6, "MB")
        line = msg(
            "{path} of {path2} {name}", path=f"{self.here / unit:.1f}", path2=f"{self.total / unit:.1f}", name=name
        )
        if self.rate is None or self.seconds_left is None:
            return line
        left = self.seconds_left
        return (
            msg(
                "{line}, {rate} MB/s, {left} min left",
                line=line,
                rate=f"{self.rate / 1e6:.1f}",
                left=f"{left / 60:.0f}",
            )
            if left > 90
            else msg("{line}, {rate} MB/s, {left} s left", line=line, rate=f"{self.rate / 1e6:.1f}", left=f"{left:.0f}")
        )


class Speed:
    """Measures a transfer that starts with `start` of `total` bytes; the speed is over the last ten seconds."""

    def __init__(self, start: int, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.total, self._clock = total, clock
        self._seen = [(clock(), start)]

    def at(self, done: int) -> Transfer:
        """Progress with `done` bytes here."""
        now = self._clock()
        self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - 10:
            self._seen.pop(0)
        since, before = self._seen[0]
        if now - since < 1 or done <= before:
            return Transfer(done, self.total)
        rate = (done - before) / (now - since)
        return Transfer(done, self.total, rate, (self.total - done) / rate)


@cache
def _certificates() -> ssl.SSLContext:
    """The certificates that a server is checked against, read once: it takes as long as a request."""
    import httpx

    return httpx.create_ssl_context()


class Client:
    """An HTTP client that sends the token to the endpoint's host only and turns failures into sentences."""

    def __init__(self, endpoint: str, token: str | None, pause: Callable[[float], None] = time.sleep) -> None:
        import httpx

        parts = urlsplit(endpoint)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise ModelError(
                msg(
                    "HF_ENDPOINT is '{endpoint}', which is not a web address such as https://huggingface.co.",
                    endpoint=endpoint,
                )
            )
        if token and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ModelError(
                msg("the token is not sent to {endpoint}, because http is not encrypted. Use https.", endpoint=endpoint)
            )
        self.endpoint, self.host, self.token = endpoint.rstrip("/"), parts.netloc, token
        self._pause = pause
        timeout, headers = httpx.Timeout(30.0, connect=15.0), {"User-Agent": "finetune-local"}
        self._http = httpx.Client(timeout=timeout, headers=headers, verify=_certificates())

    def close(self) -> None:
        """Close its connections."""
        self._http.close()

    def pause(self, attempt: int, retry_after: str | None = None) -> None:
        """Wait before a retry: as long as the server's Retry-After, else 1, 2, 4, ... seconds with jitter."""
        seconds = (
            float(retry_after)
            if retry_after and re.fullmatch(r"[0-9]{1,6}", retry_after)
            else 2.0**attempt * random.uniform(0.8, 1.2)
        )
        self._pause(min(seconds, _LONGEST_PAUSE))

    @contextmanager
    def get(self, url: str, start: int = 0) -> Iterator[httpx.Response]:
        """A response with an unread body, redirects followed here. Raises httpx.TransportError."""
        headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={start}-"} if start else {})}
        for _ in range(10):
            parts = urlsplit(url)
            own = self.token and url.startswith(self.endpoint) and parts.netloc == self.host
            secret = {"Authorization": f"Bearer {self.token}"} if own else {}
            with self._http.stream("GET", url, headers={**headers, **secret}, follow_redirects=False) as response:
                if not response.has_redirect_location:
                    yield response
                    return
                url = self._next(response)
        raise DownloadFailed(msg("{host} redirects in a loop. Try again later.", host=self.host))

    def _next(self, response: httpx.Response) -> str:
        import httpx

        try:
            url = str(response.url.join(response.headers["location"]))
            usual = urlsplit(url).scheme in ("http", "https")
        except (httpx.InvalidURL, ValueError):
            usual, url = False, ""
        if not usual:
            raise DownloadFailed(msg("{host} redirects to an invalid address. Try again later.", host=self.host))
        return url

    def unreachable(self, error: Exception) -> DownloadFailed:
        """The error for a host that does not answer."""
        return DownloadFailed(
            msg(
                "{host} cannot be reached ({error}). Check the network and run the same command again: it continues "
                "where it stopped. A mirror can be set in HF_ENDPOINT; a model folder copied from another machine "
                "works as well: --model FOLDER.",
                host=self.host,
                error=error or type(error).__name__,
            )
        )


def fetch(
    client: Client,
    url: str,
    file: RemoteFile,
    partial: Path,
    progress: Callable[[int], None],
    refuse: Callable[..., None],
) -> None:
    """Complete and check the file `partial`. `progress` gets the number of bytes here; `refuse` turns a 4xx into a ModelError.

    Raises DownloadFailed, ModelError, DiskFailed. Downloaded bytes are kept for the next attempt unless they proved wrong.
    """
    import httpx

    wrong = attempt = 0
    if file.size == 0:
        partial.touch()
    while True:
        have = partial.stat().st_size if partial.exists() else 0
        if have >= file.size:
            if have == file.size and _matches(partial, file):
                progress(have)
                return
            partial.unlink(missing_ok=True)
            wrong += 1
            if wrong == 2:
                raise DownloadFailed(
                    msg(
                        "{name}: the data from {host} did not match its checksum, twice. Try again later.",
                        name=file.name,
                        host=client.host,
                    )
                )
            continue
        retry_after: str | None = None
        problem: Exception | str
        try:
            with client.get(url, have) as response:
                problem, retry_after = _received(response, file, partial, have, progress, refuse)
        except httpx.HTTPError as error:
            problem = error
        if (partial.stat().st_size if partial.exists() else 0) > have:
            attempt = 0
            if partial.stat().st_size >= file.size:
                continue
        attempt += 1
        if attempt == ATTEMPTS:
            raise client.unreachable(Exception(f"{file.name}: {problem}"))
        client.pause(attempt - 1, retry_after)


def _received(
    response: httpx.Response,
    file: RemoteFile,
    partial: Path,
    have: int,
    progress: Callable[[int], None],
    refuse: Callable[..., None],
) -> tuple[str, str | None]:
    """Store what a response sends; returns why another request is needed if it was not all, and its Retry-After header."""
    status = response.status_code
    if status in (200, 206):
        _store(response, partial, have, file.size, progress)
        return msg("the connection was lost"), None
    if status == 416:
        partial.unlink(missing_ok=True)
        return msg("it does not support resuming"), None
    if status == 429 or status >= 500:
        return msg("it answers {status}", status=status), response.headers.get("retry-after")
    refuse(response, file.name)
    return msg("it answers {status}", status=status), None


def _store(response: httpx.Response, partial: Path, have: int, size: int, progress: Callable[[int], None]) -> None:
    """Append a 206 response, or start over if the server sent everything or another range.

    Bytes beyond the expected size are dropped: the file is wrong already, and disks fill up.
    """
    continues = response.status_code == 206 and response.headers.get("content-range", "").startswith(f"bytes {have}-")
    if response.status_code == 206 and not continues:
        partial.unlink(missing_ok=True)
        return
    try:
        with partial.open("ab" if continues else "wb") as out:
            count = have if continues else 0
            reported_at = 0.0
            for chunk in (
                response.iter_bytes()
            ):  # without a chunk size: bytes waiting in an incomplete chunk would be lost if the connection breaks
                out.write(chunk)
                count += len(chunk)
                if count > size:
                    break
                if time.monotonic() - reported_at > _REPORT_SECONDS:
                    progress(count)
                    reported_at = time.monotonic()
    except OSError as error:
        refused = failure(error, partial, msg("Free some space and run the same command again."))
        raise refused or DiskFailed(
            msg(
                "{path} could not be written: {error}. Run the same command again.",
                path=partial,
                error=system_reason(error),
            )
        ) from error


def _matches(path: Path, file: RemoteFile) -> bool:
    digest = hashlib.sha256() if file.sha256 else hashlib.sha1(b"blob %d\0" % file.size, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest() == file.key
