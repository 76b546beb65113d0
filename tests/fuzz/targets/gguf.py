"""GGUF files made wrong, imported."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from finetune_local.models.gguf.convert import install_gguf
from finetune_local.models.local import architecture
from fuzz.mutate import AWKWARD, mutate_bytes
from gguf_made import KINDS, Made

COUNTS = (150, 15_000)
_BIG = (0, 1, 7, 2**31 - 1, 2**32 - 1, 2**62, 2**63, 2**64 - 1, 10**6, 10**9)


def prepare(folder: Path) -> Any:
    """Importing what it takes."""
    import tokenizers

    return tokenizers


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Import; nothing may be left where it fails."""
    models = folder / "models"
    models.mkdir()
    made = Made()
    try:
        for _ in range(draw.choice((1, 1, 2, 3))):
            draw.choice((_value, _value, _tensor, _tensor, _put))(made, draw)
        content = made.bytes()
    except (ValueError, OverflowError, TypeError, KeyError, __import__("struct").error):
        return  # cannot even be written
    if draw.random() < 0.3:
        content = mutate_bytes(content, draw)
    file = folder / "x.gguf"
    file.write_bytes(content)
    architecture(file)
    try:
        install_gguf(file, models, "x", lambda *_: None)
    finally:
        left = [path.name for path in models.iterdir() if path.name != "x"]
        assert not left, f"left behind: {left}"


def _value(made: Made, draw: random.Random) -> None:
    key = draw.choice(list(made.values))
    kind, value = made.values[key]
    change = draw.randrange(6)
    if change == 0:
        del made.values[key]
    elif change == 1:
        made.values[key] = (draw.choice([k for k in KINDS if k not in ("arr", "str")]), draw.choice((0, 1, 5)))
    elif change == 2:
        made.values[key] = ("nested", draw.choice((2, 50, 5000)))
    elif change == 3:
        made.values[key] = (f"arr:{draw.choice(('u8', 'i32', 'f32', 'bool', 'str'))}", [])
    elif isinstance(value, list):
        made.values[key] = (
            kind,
            [*value[: draw.choice((0, 1, 5))], *value] if draw.random() < 0.5 else value[: draw.randrange(len(value))],
        )
    elif isinstance(value, str):
        made.values[key] = (
            kind,
            draw.choice([a for a in AWKWARD if isinstance(a, str)] + ["qwen2", "qwen3", "llama-bpe", "gpt2"]),
        )
    else:
        made.values[key] = (kind, draw.choice((0, 1, 3, 7, 300, 2**31 - 1, float("nan"), float("inf"), -1.0)))


def _tensor(made: Made, draw: random.Random) -> None:
    name = draw.choice(list(made.tensors))
    change = draw.randrange(4)
    if change == 0:
        made.tensors[name]["dims"] = draw.choice(
            ([0], [], [64], [64, 2**62], [2**32, 2**32], [1] * 72, [64, 64, 1, 1], [63, 10], [2**64 - 1])
        )
    elif change == 1:
        made.tensors[name]["kind"] = draw.choice((1, 2, 8, 10, 12, 14, 16, 24, 30, 34, 35, 99, 2**32 - 1))
    elif change == 2:
        made.tensors[name]["offset"] = draw.choice((*_BIG, 32, 64))
    else:
        new = draw.choice(("", "x", "weight", ".", "blk.-1.x.weight", "blk.5.attn_q.weight", "blk.0.attn_q.bias", "output.weight",
                           "rope_freqs.weight", "\x00", "blk.99999999999999999999.attn_q.weight", "a" * 2000))  # fmt: skip
        made.tensors = {new if key == name else key: tensor for key, tensor in made.tensors.items()}


def _put(made: Made, draw: random.Random) -> None:
    key = draw.choice(("magic", "version", "count", "pairs", "text_length", "list_length", "number", "cut", "twice"))
    values: dict[str, Any] = {
        "magic": b"GGUX", "version": draw.choice((0, 1, 2, 4, 3 << 24)), "number": float(draw.choice(("nan", "inf", "3e38"))),
        "cut": draw.random(), "twice": draw.choice(list(made.values)),
    }  # fmt: skip
    made.put(**{key: values.get(key, draw.choice(_BIG))})
