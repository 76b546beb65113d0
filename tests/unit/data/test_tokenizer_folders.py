"""Tokenizer folders that are damaged or hostile: a sentence with the file and the place, soon."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_local.data.conversation import RowRejected
from finetune_local.data.tokenizers import core as tokenizer_core
from finetune_local.data.tokenizers.shape import pattern_known
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.system.errors import ModelError
from finetune_local.system.untrusted.guarded import Guarded, Limits
from tiny import tiny_model

SLOW = "(a|aa)+$"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model", "llama")


@pytest.fixture
def _quick(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Limits that a test can wait for."""
    child = Guarded("finetune_local.data.tokenizers.child", Limits(0.3, 4 * 10**8))
    monkeypatch.setattr(tokenizer_core, "_child", child)
    monkeypatch.setattr(tokenizer_core, "SECONDS", 0.3)
    yield
    child.close()


def change(folder: Path, name: str, values: dict[str, Any]) -> None:
    path = folder / name
    before = json.loads(path.read_text("utf-8")) if path.exists() else {}
    path.write_text(json.dumps(before | values), "utf-8")


@pytest.mark.parametrize(
    ("name", "values", "said"),
    [
        ("tokenizer.json", {"model": 3}, '"model" is a number'),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": {"a": -1}, "merges": []}},
            "not a whole number from 0 up",
        ),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 2**32}, "merges": []}}, "the token id 4294967296"),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": {"a": True}, "merges": []}},
            "not a whole number from 0 up",
        ),
        ("tokenizer.json", {"model": {"type": "BPE", "merges": []}}, '"vocab" is null'),
        (
            "tokenizer.json",
            {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [["b", "c"]]}},
            '"merges" joins',
        ),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": [["a", 1]]}}, "not a pair of tokens"),
        ("tokenizer.json", {"model": {"type": "BPE", "vocab": {"a": 1}, "merges": None}}, '"merges" is null'),
        ("tokenizer.json", {"added_tokens": [7]}, '"added_tokens" contains a number'),
        ("tokenizer.json", {"added_tokens": [{"id": -5, "content": "x"}]}, "-5 is not a token id"),
        ("tokenizer.json", {"normalizer": {"type": "Nothing"}}, "cannot be built"),
        ("tokenizer_config.json", {"eos_token": 5}, '"eos_token" is a number'),
        ("tokenizer_config.json", {"bos_token": "\ud800"}, '"bos_token" is not a token'),
        ("tokenizer_config.json", {"pad_token": {"content": None}}, '"pad_token" is null'),
        ("tokenizer_config.json", {"pad_token": {"content": "x", "lstrip": 2}}, "true or false"),
        ("tokenizer_config.json", {"extra_special_tokens": 3}, "expected a list of texts"),
        ("tokenizer_config.json", {"extra_special_tokens": [3]}, '"extra_special_tokens" is a number'),
        ("tokenizer_config.json", {"added_tokens_decoder": {"x": {"content": "a"}}}, "not a token id"),
        ("tokenizer_config.json", {"added_tokens_decoder": {"1": "a"}}, "has no token at '1'"),
        ("tokenizer_config.json", {"added_tokens_decoder": []}, '"added_tokens_decoder" is a list'),
        ("tokenizer_config.json", {"add_prefix_space": "yes"}, '"add_prefix_space" is a text'),
        ("added_tokens.json", {"<x>": "7"}, "'7' is not a token id"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(folder: Path, name: str, values: dict[str, Any], said: str) -> None:
    change(folder, name, values)
    with pytest.raises(ModelError, match="json") as raised:
        Tokenizer.load(folder)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "generation_config.json"])
@pytest.mark.parametrize(
    "content", [b"{", b"[]", b"\xff", b"9" * 5000, b"[" * 100_000, b'{"a": ' * 100_000, b"null", b'"x"']
)
def test_what_is_no_json_object_is_named(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    with pytest.raises(ModelError, match=name):
        Tokenizer.load(folder)


@pytest.mark.slow
@pytest.mark.usefixtures("_quick")
@pytest.mark.parametrize(
    "part",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": SLOW}, "behavior": "Isolated", "invert": False}},
        {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}] * 40}},
        {"normalizer": {"type": "Replace", "pattern": {"String": ""}, "content": "x" * 10**6}},
    ],
)  # fmt: skip
def test_a_text_that_the_tokenizer_does_not_end_with_is_refused_soon(folder: Path, part: dict[str, Any]) -> None:
    change(folder, "tokenizer.json", part)
    began = time.monotonic()
    try:
        tokenizer = Tokenizer.load(folder)
    except ModelError:
        return
    for _ in range(6):
        with pytest.raises(RowRejected, match="the model's tokenizer fails on it"):
            tokenizer.ids("a" * 60 + "b")
    assert time.monotonic() - began < 30


def test_an_unknown_pattern_gives_the_same_ids_in_the_child(folder: Path) -> None:
    cut = {"type": "Split", "pattern": {"Regex": r"\w+|\W"}, "behavior": "Isolated", "invert": False}
    as_bytes = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    change(folder, "tokenizer.json", {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [cut, as_bytes]}})
    tokenizer = Tokenizer.load(folder)
    from tokenizers import Tokenizer as Core

    core = Core.from_file(str(folder / "tokenizer.json"))
    for text in ("", "The quick brown fox", "法国 \U0001f642", "<|im_end|> x"):
        ids = core.encode(text, add_special_tokens=False).ids
        assert tokenizer.ids(text) == ids
        assert tokenizer.text(ids, special=True) == core.decode(ids, skip_special_tokens=False)
    assert tokenizer.names() == {i: name for name, i in core.get_vocab().items()}


def test_half_a_character_is_refused(folder: Path) -> None:
    with pytest.raises(RowRejected, match="the model's tokenizer fails on it"):
        Tokenizer.load(folder).ids("\ud800")


def test_ids_that_leave_some_out_are_told(folder: Path) -> None:
    vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    name = max(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get)
    vocabulary["model"]["vocab"][name] = 100_000
    (folder / "tokenizer.json").write_text(json.dumps(vocabulary), "utf-8")
    tokenizer = Tokenizer.load(folder)
    assert tokenizer.largest_id == 100_000 and tokenizer.vocabulary_size < 1000


def test_an_end_that_is_no_token_is_not_used(folder: Path) -> None:
    change(folder, "tokenizer_config.json", {"eos_token": None})
    change(folder, "config.json", {"eos_token_id": 99_999})
    change(folder, "generation_config.json", {"eos_token_id": [99_999, 2**40]})
    with pytest.raises(ModelError, match="names no end-of-text token"):
        Tokenizer.load(folder)


def test_patterns_are_known_by_their_alternatives() -> None:
    assert pattern_known(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+")
    for pattern in (SLOW, r"\p{L}+|" + SLOW, r"(\p{N})+", r"\p{N}|", r"[|]", r"\|", r"(\p{N}|\p{N})", r"\p{N}\p{N}+"):
        assert not pattern_known(pattern)
