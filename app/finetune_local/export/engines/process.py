"""A receiver in a process of its own: a script of this folder, run by its path, with the request in a file."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

Floats = npt.NDArray[np.float32]
_LONGEST = 3600  # seconds
_KILLED = (-9, 137)
_SAID = 3  # last lines of what it printed


@dataclass(frozen=True)
class Rendering:
    """A chat as text and ids; both None where the template refuses it, or there is none."""

    text: str | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Question:
    """One prompt and the answer along which the logits are wanted: those before the answer's first token, and before each next."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """What a receiver is asked about `folder`.

    texts: pairs of a text and whether the tokenizer adds its own beginning. stops: tokens that are forced on an answer to see
    whether it ends; plain_token: one at which it must not.
    """

    folder: Path
    dtype: str
    device: str
    chats: Sequence[Mapping[str, Any]]
    texts: Sequence[tuple[str, bool]]
    probes: Sequence[Question]
    stops: Sequence[int]
    plain_token: int

    def as_json(self) -> dict[str, Any]:
        """As the script reads it."""
        return {
            "folder": str(self.folder),
            "dtype": self.dtype,
            "device": self.device,
            "chats": list(self.chats),
            "texts": [{"text": text, "special": special} for text, special in self.texts],
            "probes": [{"ids": p.ids, "answer": p.answer, "wanted": len(p.answer) + 1} for p in self.probes],
            "stops": list(self.stops),
            "plain_token": self.plain_token,
        }


@dataclass
class Heard:
    """What it answered. `absent` says why it could not be asked at all; `failed`, what went wrong when it opened the folder."""

    version: str = ""
    absent: str = ""
    failed: str = ""
    chats: list[Rendering] = field(default_factory=list)
    texts: list[tuple[int, ...]] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    lengths: list[int] = field(default_factory=list)
    """How many tokens it gave after each forced stop; 1 is that it stopped."""
    goes_on: bool = True
    thinks: bool | None = None
    """What mlx-lm tells the template as enable_thinking."""
    logits: list[Floats] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    """Modules of ours that it had imported: none."""


def ask(worker: Path, needs: Sequence[str], request: Request) -> Heard:
    """Run a script and read its answer; `needs` are the modules it imports. Never raises for what the script does."""
    for name in needs:
        if importlib.util.find_spec(name) is None:
            return Heard(absent=msg("{module} is not installed", module=name))
    with tempfile.TemporaryDirectory(prefix="ftl-") as place:
        folder = Path(place)
        (folder / "request.json").write_text(json.dumps(request.as_json()), "utf-8")
        # -P and -E: neither the script's own folder nor PYTHONPATH is looked through, only what is installed.
        command = [sys.executable, "-P", "-E", "-X", "utf8", str(worker), str(folder / "request.json")]
        with (folder / "printed").open("w+b") as printed:
            try:
                code = subprocess.run(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=printed,
                    stderr=printed,
                    env={name: value for name, value in os.environ.items() if not name.startswith("PYTHON")},
                    timeout=_LONGEST,
                    check=False,
                ).returncode
            except subprocess.TimeoutExpired:
                return Heard(absent=msg("it gave no answer within {n} minutes", n=_LONGEST // 60))
            printed.seek(0)
            said = printed.read().decode("utf-8", "replace").strip().splitlines()[-_SAID:]
        return read_reply(folder, code, " | ".join(said))


def read_reply(folder: Path, code: int, said: str) -> Heard:
    """What a script wrote into `folder`; `code` is how its process ended and `said` what it printed."""
    try:
        reply = read_json_object(folder / "reply.json")
    except (OSError, ForeignTextError):
        words = msg("its process ended with exit code {code}", code=code) + (
            msg(" ({said})", said=said) if said else ""
        )
        # The system's last resort against want of memory is SIGKILL. Any other death is a crash on what it was given.
        return Heard(absent=words) if code in _KILLED else Heard(failed=words)
    for key in ("missing", "memory", "unknown"):
        if key in reply:
            return Heard(absent=str(reply[key]))
    if "error" in reply:
        return Heard(failed=str(reply["error"]))
    count = sum(1 for _ in folder.glob("logits-*.npy"))
    return Heard(
        version=str(reply["version"]),
        chats=[_rendering(chat) for chat in reply["chats"]],
        texts=[tuple(ids) for ids in reply["texts"]],
        ends=frozenset(reply["ends"]),
        lengths=list(reply["lengths"]),
        goes_on=bool(reply["goes_on"]),
        thinks=reply.get("thinks"),
        logits=[np.load(folder / f"logits-{number}.npy") for number in range(count)],
        modules=list(reply["modules"]),
    )


def _rendering(chat: Mapping[str, Any]) -> Rendering:
    return Rendering() if "refused" in chat else Rendering(str(chat["text"]), tuple(chat["ids"]))
