"""Programs in a separate process: a script of assets/receivers that answers one request in a file, or one that stays and answers many."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from finetune_local.export.engines.chats import Chat
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import ForeignTextError, read_json_object

Floats = npt.NDArray[np.float32]
_LONGEST = 3600  # seconds
_KILLED = (-9, 137)
_OUTPUT_LINES = 3  # last lines of what it printed


@dataclass(frozen=True)
class Rendering:
    """A chat as text and ids; both None if the template refuses it or there is none."""

    text: str | None = None
    ids: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Question:
    """One prompt and an answer; the logits before each token of the answer are requested."""

    ids: tuple[int, ...]
    answer: tuple[int, ...]


@dataclass(frozen=True)
class Request:
    """The request to a receiver about `folder`.

    texts: pairs of a text and whether the tokenizer adds its special tokens. probes: prompts with their answers; the logits before each
    token of an answer and after the last are requested. stops: tokens that are forced on an answer, which must end it; plain_token: a
    token that must not end it.
    """

    folder: Path
    dtype: str
    device: str
    chats: Sequence[Chat]
    texts: Sequence[tuple[str, bool]]
    probes: Sequence[Question]
    stops: Sequence[int]
    plain_token: int

    def document(self) -> str:
        """The JSON text that the script reads: the fields by name."""
        return json.dumps(asdict(self), default=str)


@dataclass
class ReceiverReply:
    """A receiver's reply. `absent`: why it could not run; `failed`: the error when it opened the folder."""

    version: str = ""
    absent: str = ""
    failed: str = ""
    chats: list[Rendering] = field(default_factory=list)
    texts: list[tuple[int, ...]] = field(default_factory=list)
    ends: frozenset[int] = frozenset()
    lengths: list[int] = field(default_factory=list)
    """Number of tokens after each forced stop; 1 means it stopped."""
    continues: bool = True
    thinks: bool | None = None
    """The value mlx-lm passes to the template as enable_thinking."""
    logits: list[Floats] = field(default_factory=list)
    modules: list[str] = field(default_factory=list)
    """Modules of the app it had imported; must be empty."""


def run_receiver(worker: Path, needs: Sequence[str], request: Request) -> ReceiverReply:
    """Run a script and read its reply; `needs` are the modules it imports. Failures of the script are part of the reply, never raised."""
    for name in needs:
        if importlib.util.find_spec(name) is None:
            return ReceiverReply(absent=msg("{module} is not installed", module=name))
    with tempfile.TemporaryDirectory(prefix="ftl-") as place:
        folder = Path(place)
        (folder / "request.json").write_text(request.document(), "utf-8")
        # -P and -E: import only installed packages, not from the script's folder or PYTHONPATH.
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
                return ReceiverReply(absent=msg("it did not answer within {n} minutes", n=_LONGEST // 60))
            printed.seek(0)
            output = printed.read().decode("utf-8", "replace").strip().splitlines()[-_OUTPUT_LINES:]
        return read_reply(folder, code, " | ".join(output))


def read_reply(folder: Path, code: int, output: str) -> ReceiverReply:
    """The reply a script wrote into `folder`; `code` is the exit code of its process and `output` its output."""
    try:
        reply = read_json_object(folder / "reply.json")
    except (OSError, ForeignTextError):
        words = msg("its process ended with exit code {code}", code=code) + (
            msg(" ({said})", said=output) if output else ""
        )
        # SIGKILL is how the system ends a process when memory runs out. Any other signal is a crash on the input.
        return ReceiverReply(absent=words) if code in _KILLED else ReceiverReply(failed=words)
    for key in ("missing", "memory", "unknown"):
        if key in reply:
            return ReceiverReply(absent=str(reply[key]))
    if "error" in reply:
        return ReceiverReply(failed=str(reply["error"]))
    count = sum(1 for _ in folder.glob("logits-*.npy"))
    return ReceiverReply(
        version=str(reply["version"]),
        chats=[_rendering(chat) for chat in reply["chats"]],
        texts=[tuple(ids) for ids in reply["texts"]],
        ends=frozenset(reply["ends"]),
        lengths=list(reply["lengths"]),
        continues=bool(reply["continues"]),
        thinks=reply.get("thinks"),
        logits=[np.load(folder / f"logits-{number}.npy") for number in range(count)],
        modules=list(reply["modules"]),
    )


def _rendering(chat: Mapping[str, Any]) -> Rendering:
    return Rendering() if "refused" in chat else Rendering(str(chat["text"]), tuple(chat["ids"]))


class Script:
    """A script that answers requests on its standard output until it is closed; use as a context manager.

    A subclass defines how requests are written and replies are read.
    """

    def __init__(self, path: Path, encoding: str | None = None) -> None:
        """`encoding`: of standard input and output; None for bytes."""
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        # -P: the script's own folder holds modules named like packages (gguf.py), which must not stand in for them.
        command = [sys.executable, "-P", "-X", "utf8", str(path)]
        pipe = subprocess.PIPE
        self._process: subprocess.Popen[Any] = subprocess.Popen(
            command, stdin=pipe, stdout=pipe, stderr=self._errors, encoding=encoding
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            if stream is not None:
                with suppress(BrokenPipeError):  # input the dead process had not read
                    stream.close()

    def last_words(self, most: int) -> list[str]:
        """The last lines, at most `most`, of what the process printed on standard error."""
        self._errors.seek(0)
        return self._errors.read().decode("utf-8", "replace").strip().splitlines()[-most:]
