"""Security headers of each response: where its parts may come from, who may frame it, what it may use of the machine.

The page's own inline scripts are allowed by a nonce, made anew for each load, so no text that gets into the page can become a script.
Two words stay because Gradio needs them: 'unsafe-eval' (it makes functions of the small scripts that its events bring along) and, for
styles, 'unsafe-inline' (it styles elements in place). An eval needs a script that is let in first; a style can load nothing from elsewhere.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import MutableMapping
from typing import Any

NONCE = "finetune_local.nonce"
"""Where a request's scope has the nonce of the page that it will be answered with."""

_SCRIPT = re.compile(rb"<script(?=[\s>])")
_MANIFEST = re.compile(rb'<link rel="manifest"[^>]*>')

_PAGE = (
    "default-src 'none'; script-src 'self' 'nonce-{nonce}' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "font-src 'self'; connect-src 'self'; worker-src 'none'; manifest-src 'none'; object-src 'none'; "
    "frame-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'none'"
)
_PART = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; sandbox"
"""For what is not the page. A dropped file that is opened by itself is a document without scripts and without this origin."""

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
    """Of an answer: of the page where there is a nonce, else of anything else."""
    policy = _PART if nonce is None else _PAGE.format(nonce=nonce)
    return [(b"content-security-policy", policy.encode()), *_ALWAYS]


def with_nonce(page: bytes, scope: MutableMapping[str, Any]) -> bytes:
    """A page whose scripts have the nonce of the request. What Gradio writes into them has no "<" (it is escaped)."""
    nonce = str(scope.get(NONCE, "")).encode("ascii")
    return _SCRIPT.sub(b'<script nonce="%s"' % nonce, _MANIFEST.sub(b"", page))
