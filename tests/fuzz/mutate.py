"""Inputs made from good ones by a seed: bytes that are changed, cut, doubled; JSON values that are replaced by awkward ones."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from typing import Any

AWKWARD: Sequence[Any] = (
    None, True, False, 0, -1, 1, 2, 10**6, 10**12, 2**63, -(2**63), 10**40, 0.0, -0.5, 1e-300, 1e308, float("nan"), float("inf"),
    "", " ", "x", "\x00", "\ud800", "²", "-1", "1e9", "/etc/passwd", "../../x", "é" * 300, "x" * 70_000, "{{ 1/0 }}", "<|im_end|>",
    [], [[]], [None], [0] * 72, ["a", 1], {}, {"": {}}, {"a": [{"b": None}]}, [[[[[[[[]]]]]]]],
)  # fmt: skip
"""Values that a field of another kind is replaced by."""

_TOKENS = (b"\x00", b"\xff\xfe", b"\xef\xbb\xbf", b"\r", b"\n", b'"', b"\\", b"\\ud800", b"{", b"[", b"}", b"]", b",", b":",
           b"9" * 4_400, b"[" * 400, b"NaN", b"-", b"\xf0\x9f", "²".encode(), b"\x1b[31m", b"\x7f", b"%s%n", b"0x10", b"1e999")  # fmt: skip


def mutate_bytes(content: bytes, draw: random.Random) -> bytes:
    """`content` with one to four changes."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        reach = min(len(data), at + draw.choice((1, 1, 2, 4, 16, 256)))
        change = draw.randrange(7)
        if change == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif change == 1:
            data[at:reach] = bytes(draw.randrange(256) for _ in range(reach - at))
        elif change == 2:
            del data[at:reach]
        elif change == 3:
            data[at:at] = draw.choice(_TOKENS)
        elif change == 4:
            data[at:at] = data[at:reach] * draw.choice((2, 10, 300))
        elif change == 5:
            del data[at:]
        else:
            data[at:reach] = draw.choice(_TOKENS)
    return bytes(data)


def mutate_json(value: Any, draw: random.Random) -> Any:
    """A copy of a JSON value with one to three of its parts replaced, removed, doubled or renamed."""
    root = [copy.deepcopy(value)]
    for _ in range(draw.randint(1, 3)):
        places = list(_places(root))
        holder, key = draw.choice(places)
        change = draw.randrange(8)
        if change < 5:
            holder[key] = copy.deepcopy(draw.choice(AWKWARD))
        elif change == 5 and isinstance(holder, dict):
            del holder[key]
        elif change == 6 and isinstance(holder, dict):
            holder[draw.choice(("", "x", "\ud800", key.upper(), key + " "))] = holder.pop(key)
        elif isinstance(holder[key], (int, float)) and not isinstance(holder[key], bool):
            holder[key] = draw.choice(
                (holder[key] + 1, -holder[key], holder[key] * 1000, holder[key] // 2 if holder[key] else 7)
            )
        elif isinstance(holder[key], list):
            holder[key] = holder[key] * draw.choice((0, 2, 50))
    return root[0]


def mutate_json_text(text: bytes, draw: random.Random) -> bytes:
    """A JSON text changed as a value (mostly) or as bytes."""
    if draw.random() < 0.3:
        return mutate_bytes(text, draw)
    return json.dumps(mutate_json(json.loads(text), draw)).encode("utf-8")


def one_of(draw: random.Random, *changes: Callable[[], None]) -> None:
    """Make one of several changes."""
    draw.choice(changes)()


def _places(root: list[Any]) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting: list[Any] = [root]
    while waiting:
        holder = waiting.pop()
        keys = list(holder) if isinstance(holder, dict) else list(range(min(len(holder), 200)))
        for key in keys:
            found.append((holder, key))
            if isinstance(holder[key], (dict, list)) and holder[key]:
                waiting.append(holder[key])
    return found
