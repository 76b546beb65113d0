"""A GGUF in llama.cpp (the package xllamacpp), run in a child process for the verification: tokens, answers, probabilities."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_local.export.engines.chats import Chat, ChatMessage
from finetune_local.export.engines.process import Rendering, Script
from finetune_local.system.messages import msg
from finetune_local.system.untrusted.text import parse_json_object

INSTALL = "pip install xllamacpp"
_WORKER = Path(__file__).with_name("llama_worker.py")
_FORCE = 1e4  # added to a logit, makes the token certain
_STDERR_LINES = 6


class LlamaFailed(Exception):
    """llama.cpp refused the file or a request, or crashed; the text is its output."""


class LlamaRefused(LlamaFailed):
    """llama.cpp is running and answered a request with an error."""


def available() -> bool:
    """Whether xllamacpp is installed; it is not imported."""
    return importlib.util.find_spec("xllamacpp") is not None


class LlamaCpp(Script):
    """A loaded GGUF; one request at a time."""

    def __init__(self, file: Path, context: int, plain_token: int) -> None:
        """`plain_token` is any token that stands for a letter. Raises LlamaFailed if llama.cpp does not load the file."""
        self._plain_token = plain_token
        self._folder = tempfile.TemporaryDirectory(prefix="ftl-")
        super().__init__(_WORKER, "utf-8")
        threads = max(1, min(8, (os.cpu_count() or 2) // 2))
        try:
            self._send({"model": str(file), "context": context, "threads": threads, "folder": self._folder.name})
        except LlamaFailed:
            self.close()
            raise

    def close(self) -> None:
        """End the process and remove its folder."""
        super().close()
        self._folder.cleanup()

    def rendering(self, chat: Chat) -> Rendering:
        """A chat rendered by the file's own template, as text and as ids; empty if llama.cpp refuses it."""
        messages = [_as_openai(message) for message in chat.messages]
        try:
            body = {
                "messages": messages,
                "tools": chat.tools or [],
                "add_generation_prompt": chat.generation_prompt,
            }
            text = str(self._send({"path": "/apply-template", "body": body})["prompt"])
        except LlamaRefused:
            return Rendering()
        return Rendering(text, self.ids(text, True))

    def ids(self, text: str, special: bool) -> tuple[int, ...]:
        """A text's ids; `special` adds the tokens the file puts first."""
        body = {"content": text, "add_special": special, "parse_special": True}
        return tuple(self._send({"path": "/tokenize", "body": body})["tokens"])

    def common_prefix(self, prompt: str | Sequence[Mapping[str, str]], ids: Sequence[int]) -> tuple[int, int]:
        """The number of tokens llama.cpp makes of a text or a chat, and how many of the first ones equal `ids`.

        llama.cpp reports how much of a prompt it finds in its cache, token by token. So the text is sent first, then the ids with one
        token appended.
        """
        request: dict[str, Any] = {"prompt": prompt} if isinstance(prompt, str) else {"chat": list(prompt)}
        # Without the cache, which would keep equal tokens of an earlier prompt.
        own = int(self._complete({**request, "cache_prompt": False})["usage"]["prompt_tokens"])
        second = self._complete({"prompt": [*ids, ids[0]], "cache_prompt": True})
        return own, min(int(second["timings"]["cache_n"]), len(ids))

    def likeliest(self, ids: Sequence[int], count: int) -> dict[int, float]:
        """Log-probabilities (over the whole vocabulary) of the `count` likeliest next tokens, likeliest first.

        Raises LlamaFailed if the reply has no probabilities.
        """
        # llama.cpp omits the probabilities if the sampled token ends inside a UTF-8 character. So a plain token is forced,
        # which changes the sampled token but not the reported probabilities.
        request = {"prompt": list(ids), "n_probs": count, "logit_bias": [[self._plain_token, _FORCE]]}
        logprobs = self._complete(request)["choices"][0].get("logprobs") or {}
        content = logprobs.get("content") or [{}]
        found = {int(other["id"]): float(other["logprob"]) for other in content[0].get("top_logprobs") or ()}
        if not found:
            raise LlamaFailed(msg("llama.cpp returned no probabilities."))
        return found

    def stops(self, ids: Sequence[int], token: int) -> bool:
        """Whether llama.cpp ends the answer at a token that is forced on it."""
        reply = self._complete({"prompt": list(ids), "n_predict": 2, "logit_bias": [[token, _FORCE]]})
        return bool(reply["choices"][0]["finish_reason"] == "stop")

    def _complete(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """llama.cpp's reply to a prompt that is completed greedily; one token unless `n_predict` says otherwise."""
        fixed = {"n_predict": 1, "max_tokens": 1, "temperature": 0.0, "cache_prompt": True, "seed": 0}
        values = {**fixed, **request}
        values["max_tokens"] = values["n_predict"]
        return self._send(values)

    def _send(self, request: Mapping[str, Any]) -> Mapping[str, Any]:
        """llama.cpp's reply to a request. Raises LlamaFailed, LlamaRefused."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except OSError:
            line = ""
        if not line:
            raise LlamaFailed(
                msg("llama.cpp crashed (exit code {code}).{said}", code=self._process.wait(), said=self._printed())
            )
        reply = parse_json_object(line)
        if "missing" in reply:
            raise LlamaFailed(msg("{missing}. Install it again: {install}", missing=reply["missing"], install=INSTALL))
        if "error" in reply:
            error = reply["error"]
            raise LlamaRefused(f"{error.get('message') if isinstance(error, dict) else error}{self._printed()}")
        return reply

    def _printed(self) -> str:
        """The last lines of llama.cpp's output."""
        lines = self.last_words(_STDERR_LINES)
        return msg(" It printed: ") + " | ".join(lines) if lines else ""


def _as_openai(message: ChatMessage) -> ChatMessage:
    """A message with the arguments of tool calls as text, as programs send them to llama.cpp."""
    result = dict(message)
    if calls := result.get("tool_calls"):
        result["tool_calls"] = [
            {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
            for call in calls
        ]
    return result
