"""Data files of every container, format and encoding: inspected as `data inspect` and the window do, without a tokenizer."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_local.data.formats import formats
from finetune_local.data.inspect import Inspection
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import FinetuneError
from fuzz.mutate import mutate_bytes, mutate_json

COUNTS = (1_500, 60_000)

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello", "weight": 1},
]
CALLS = [
    {"role": "user", "content": [{"type": "text", "text": "2 + 3?"}]},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "add", "arguments": '{"a": 2, "b": 3}'}}],
    },
    {"role": "tool", "content": "5"},
    {"role": "assistant", "content": "5"},
]
ROWS: Sequence[Mapping[str, Any]] = (
    {"messages": CHAT},
    {"messages": CALLS, "tools": [{"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}]},
    {"messages": json.dumps(CHAT)},
    {"conversations": [{"from": "human", "value": "Tea?"}, {"from": "gpt", "value": "Oolong."}], "system": "A shop."},
    {"instruction": "Name a tea", "input": "green", "output": "Sencha", "history": [["a", "b"]]},
    {"prompt": "Tea?", "completion": "Oolong."},
    {"question": CHAT[:2], "answer": 42},
    {"text": "write to ann@example.org or call +49 30 1234567, DE89370400440532013000, 4111 1111 1111 1111"},
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"messages": CHAT, "label": True},
    {"speaker": "Ann", "text": "hi", "time": "2024-01-02T10:00:00", "thread": 1},
    {"from": "Bob", "text": ["a", {"type": "bold", "text": "b"}], "date": "31.12.23, 10:15"},
    {"sender": "Bob", "message": "so", "timestamp": 1_700_000_000},
    {"messages": [{"role": "Ann", "content": "hi"}, {"role": "Bob", "content": "yes"}], "several": False},
    {"chat_log": [{"from": "Ann", "value": "hi"}, {"from": "Bob", "value": "yes"}]},
    {"frage": "Tee?", "antwort": "Oolong."},
)  # fmt: skip
TEXTS = (
    "[12/31/23, 10:15:00 AM] Ann: hi\n[12/31/23, 10:16:00 AM] Bob: yes\nmore\n[1/1/24, 10:17:00 PM] Ann: <Media omitted>\n",
    "31.12.23, 10:15 - Ann: hi\n31.12.23, 10:16 - Bob: yes <edited>\n31.12.23, 10:17 - Ann: so\n31.12.23, 10:18 - Bob: no\n",
    "2023-12-31 10:15:00 <Ann> hi\n2023-12-31 10:16:00 <Bob> yes\n2023-12-31 10:17:00 <Ann> so\n",
    "2023-12-31 上午10:15:00 小明(12345678)\n你好\n2023-12-31 10:16:00 小红(12345679)\n好\n2023-12-31 10:17:00 小明(12345678)\n嗯\n",
    "Ann: hi\nBob: hm\nAnn: so\nBob: yes\n",
    "A text.\n\nWith paragraphs, and more of them.\n" * 20,
    "prompt,completion\nTea?,Oolong.\n\"a, b\",\"say \"\"so\"\"\"\n",
    "instruction;input;output\nName;;Sencha\nName;green;Sencha\n",
    "speaker\ttext\ttime\nAnn\thi\t2024-01-01 10:00\nBob\tyes\t2024-01-01 10:01\nAnn\tx\t²\nBob\tso\t5\n",
)  # fmt: skip
PIECES = (
    '"',
    "\\",
    "[" * 2_000,
    '{"a":' * 2_000,
    "9" * 4_400,
    "-",
    "NaN",
    "+" + "1" * 40,
    "\x00",
    "\ufeff",
    "\u2028",
    "²",
    "\\ud800",
    "\r",
    ",",
)
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "gb18030", "cp1252")
COLUMNS = ("prompt=frage", "completion=antwort", "text=text", "messages=messages", "speaker=speaker")


def prepare(folder: Path) -> Any:
    """Nothing to prepare."""
    return None


def attempt(prepared: Any, draw: random.Random, folder: Path) -> None:
    """Write a file and look at it twice: as far as the window does, and as a whole, which is refused where no row can be used."""
    text, ending = (
        _json(draw) if draw.random() < 0.65 else (draw.choice(TEXTS), draw.choice(("txt", "csv", "tsv", "md", "dat")))
    )
    for _ in range(draw.choice((0, 0, 1, 3))):
        at = draw.randint(0, len(text))
        text = text[:at] + draw.choice(PIECES) + text[at:]
    encoding = draw.choice(ENCODINGS) if draw.random() < 0.3 else "utf-8"
    content = text.encode(encoding, "surrogatepass" if encoding.startswith("utf") else "replace")
    path = folder / f"in.{draw.choice((ending, ending, 'json', 'dat'))}"
    path.write_bytes(mutate_bytes(content, draw) if draw.random() < 0.4 else content)
    settings = DataSettings(
        files=(str(path),),
        format=draw.choice(["auto"] * 8 + list(formats())),
        assistant=draw.choice((None, None, None, "Bob", "assistant")),
        scrub=("all",) if draw.random() < 0.3 else (),
        columns=(draw.choice(COLUMNS),) if draw.random() < 0.1 else (),
    )
    look = Inspection(settings, None, 512, first=0, count=20, masked=range(3))
    for _ in look.steps():
        pass
    json.dumps(look.shown(), ensure_ascii=False).encode("utf-8")
    try:
        json.dumps(look.as_json(), ensure_ascii=False).encode("utf-8")
        Inspection(settings, None, 512).whole()
    except FinetuneError as error:
        assert len(str(error)) < 20_000
        raise


def _json(draw: random.Random) -> tuple[str, str]:
    """Rows of one kind or mixed, some of them changed, as JSON Lines, an array, under a key, or one after the other."""
    kind = draw.choice(ROWS)
    rows = [kind if draw.random() < 0.9 else draw.choice(ROWS) for _ in range(draw.choice((1, 2, 3, 8)))]
    rows = [mutate_json(dict(row), draw) if draw.random() < 0.5 else row for row in rows]
    escaped = draw.random() < 0.5
    written = [json.dumps(row, ensure_ascii=escaped) for row in rows]
    form = draw.randrange(5)
    if form < 2:
        return "\n".join(written) + draw.choice(("", "\n", "\n\n")), "jsonl"
    if form == 2:
        return "[" + draw.choice((", ", ",\n", ",\n  ")).join(written) + "]", "json"
    if form == 3:
        before = draw.choice(("", '"version": 1.5, ', '"x": {"y": ["]"]}, '))
        after = draw.choice(("", ', "n": 1', ', "rows": []'))
        return f'{{{before}"{draw.choice(("data", "Rows", "messages"))}": [{", ".join(written)}]{after}}}', "json"
    return draw.choice(("", "\n", " ")).join(json.dumps(row, indent=1, ensure_ascii=escaped) for row in rows), "json"
