"""Security headers of each response: which sources it may load, who may frame it, and which devices it may use.

The page's inline scripts carry a nonce, which is new for each load, so text that gets into the page cannot become a script. Gradio
requires two exceptions: 'unsafe-eval', as it compiles the scripts of its events, and 'unsafe-inline' for styles. An eval needs an
admitted script to call it, and a style can load nothing from elsewhere.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from typing import Any

NONCE = "finetune_local.nonce"
"""Key of a request's scope: the nonce of the page that will be the response."""

_SCRIPT = re.compile(rb"<script(?=[\s>])")
_MANIFEST = re.compile(rb'<link rel="manifest"[^>]*>')

_PAGE = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'none'; manifest-src 'none'; object-src 'none'; "
    "frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
_PART = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox"
"""For responses other than the page. A dropped file that is opened in a tab has no scripts and no access to this origin."""

_UNUSED = (
    "accelerometer", "camera", "display-capture", "geolocation", "gyroscope", "hid", "idle-detection", "local-fonts", "magnetometer",
    "microphone", "midi", "payment", "publickey-credentials-get", "screen-wake-lock", "serial", "usb", "xr-spatial-tracking",
)  # fmt: skip
_ALWAYS = (
    (b"x-frame-options", b"DENY"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", ", ".join(f"{name}=()" for name in _UNUSED).encode()),
)
NAMES = frozenset({b"content-security-policy", *(name for name, _ in _ALWAYS)})


def new_nonce() -> str:
    """A nonce for one load of the page."""
    return secrets.token_urlsafe(16)


def headers(nonce: str | None = None) -> list[tuple[bytes, bytes]]:
    """The headers of the page, if a nonce is given, or of any other response."""
    policy = _PART if nonce is None else _PAGE.format(nonce=nonce)
    return [(b"content-security-policy", policy.encode()), *_ALWAYS]


def with_nonce(page: bytes, scope: MutableMapping[str, Any]) -> bytes:
    """The page with the request's nonce on each script. Gradio escapes "<" in the data it writes, so no text is taken for a script."""
    nonce = str(scope.get(NONCE, "")).encode("ascii")
    return _SCRIPT.sub(b'<script nonce="%s"' % nonce, _MANIFEST.sub(b"", page))
