"""Tokenizers built by the `tokenizers` library alone against those that transformers builds from the same folder."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_local.data.conversation import RowRejected
from finetune_local.data.tokenizers import conversion
from finetune_local.data.tokenizers.build import build, read_files
from finetune_local.data.tokenizers.core import InChild, InProcess, _written, facts_of
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.spec.base.tokenizer_files import NAMED
from finetune_local.system.untrusted.guarded import Setup
from sentencepiece_like import make_sentencepiece_like
from tiny import FAMILIES, MORE_FAMILIES, tiny_model

from .conftest import SPECIAL, write_tokenizer

pytestmark = pytest.mark.engine

CLASSES = (
    None, "PreTrainedTokenizerFast", "TokenizersBackend", "GPT2TokenizerFast", "GPT2Tokenizer", "Qwen2TokenizerFast", "Qwen2Tokenizer",
    "Qwen3_5Tokenizer", "LlamaTokenizerFast", "LlamaTokenizer", "GemmaTokenizerFast", "GemmaTokenizer", "GPTNeoXTokenizerFast", "Unheard",
)  # fmt: skip
TYPES = (
    None, "llama", "mistral", "qwen2", "qwen3", "qwen3_5", "gemma", "gemma3_text", "phi3", "gpt2", "gpt_neox", "granite", "smollm3", "olmo2", "glm4",
)  # fmt: skip
TEXTS = (
    "", " ", "hello world", "  two  spaces \n\n\t", "Hello<|im_end|> x", "<s>a</s> b <unk>", "<bos>hi<eos>", "法国的首都是巴黎。🙂", "e\u0301 \u00e9 ﬁ Ⅷ",
    "I'll don't WE'RE 1234567 3.14", "\u200b\u2028\xa0\ufeff", "x" * 300, "<new> <new>y z<left>  <right> <word>s <word>", "▁a ▁", "\x00\x7f", "[IMG]",
)  # fmt: skip
CHANGES: dict[str, dict[str, dict[str, Any]]] = {
    "nothing": {},
    "added with flags": {
        "tokenizer_config.json": {
            "added_tokens_decoder": {
                "900": {"content": "<new>", "special": False, "normalized": True},
                "901": {"content": "<left>", "lstrip": True, "special": True},
                "902": {"content": "<right>", "rstrip": True, "normalized": False, "special": False},
                "905": {"content": "<word>", "single_word": True, "special": False},
            }
        }
    },
    "older files": {
        "special_tokens_map.json": {
            "eos_token": {"content": "<word>", "lstrip": True, "rstrip": False, "single_word": False, "normalized": False},
            "additional_special_tokens": ["<new>", "<left>"],
            "image_token": "[IMG]",
        },
        "added_tokens.json": {"<right>": 950, "<new>": 951},
    },
    "extra": {"tokenizer_config.json": {"additional_special_tokens": ["<new>", "<right>"], "pad_token": "<left>"}},
    "named extra": {"tokenizer_config.json": {"extra_special_tokens": {"image_token": "[IMG]"}, "video_token": "<new>"}},
    "typed": {
        "tokenizer_config.json": {
            "eos_token": {"__type": "AddedToken", "content": "<word>", "lstrip": True, "normalized": True},
            "boi_token": {"__type": "AddedToken", "content": "<left>", "rstrip": True},
        }
    },
    "split": {"tokenizer_config.json": {"split_special_tokens": True}},
    "ends": {"tokenizer_config.json": {"add_bos_token": True, "add_eos_token": True, "add_prefix_space": True, "legacy": True}},
    "no space": {"tokenizer_config.json": {"add_prefix_space": False, "legacy": False, "unk_token": None, "pad_token": None}},
    "padding": {
        "tokenizer.json": {
            "padding": {
                "strategy": {"Fixed": 10**6}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
                "pad_type_id": 0, "pad_token": "<new>",
            },
            "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        }
    },
}  # fmt: skip


def _kinds(place: Path) -> Iterator[tuple[str, Path]]:
    for family in dict.fromkeys((*FAMILIES, *MORE_FAMILIES)):
        yield family, tiny_model(place / family, family)
    yield "sentencepiece", make_sentencepiece_like(place / "sentencepiece")
    for kind in SPECIAL:
        yield kind, write_tokenizer(place / f"kind {kind}", kind, None)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return dict(_kinds(tmp_path_factory.mktemp("tokenizers")))


def _changed(source: Path, folder: Path, changes: dict[str, dict[str, Any]], cls: str | None, kind: str | None) -> Path:
    folder.mkdir(parents=True)
    for name in (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "config.json",
    ):
        values = json.loads((source / name).read_text("utf-8")) if (source / name).exists() else {}
        values |= changes.get(name, {})
        if name == "tokenizer_config.json":
            values = {k: v for k, v in values.items() if k != "tokenizer_class"} | (
                {"tokenizer_class": cls} if cls else {}
            )
        if name == "config.json":
            values = {"model_type": kind, "tokenizer_class": "GPT2Tokenizer"} if kind else {}
        if values:
            (folder / name).write_text(json.dumps(values), "utf-8")
    return folder


def _same(folder: Path) -> bool:
    """Whether it was built here; then it is compared."""
    from transformers import AutoTokenizer

    try:
        hf = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception:  # noqa: BLE001 - what they refuse is not compared
        return False
    files = read_files(folder)
    if files is None:
        return False
    built = build(files)
    core = built.core
    theirs, ours = json.loads(hf.backend_tokenizer.to_str()), json.loads(core.to_str())
    for part in ("truncation", "padding"):
        theirs.pop(part), ours.pop(part)
    assert ours == theirs
    assert core.encode_special_tokens == hf.backend_tokenizer.encode_special_tokens
    assert built.named == hf.special_tokens_map
    assert list(built.extra) == hf.extra_special_tokens
    facts = facts_of(built)
    assert facts.added == hf.get_added_vocab() and facts.size == len(hf)
    here, there = InProcess(core), hf.backend_tokenizer
    there.no_truncation()
    there.no_padding()
    for special in (False, True):
        for text in TEXTS:
            try:
                expected = there.encode(text, add_special_tokens=special).ids
            except Exception:  # noqa: BLE001 - a class whose unknown token the vocabulary lacks
                with pytest.raises(RowRejected, match="the model's tokenizer fails on it"):
                    here.encode([text], special)
                continue
            assert here.encode([text], special) == [expected]
            assert here.decode(expected, special) == there.decode(expected, skip_special_tokens=special)
    return True


@pytest.mark.parametrize("change", CHANGES)
def test_every_class_and_family_gives_the_same_tokenizer(kinds: dict[str, Path], tmp_path: Path, change: str) -> None:
    built = 0
    for number, (name, source) in enumerate(kinds.items()):
        # All pairs would take minutes; every class and every type meet every change, and over the changes most of each other.
        for step in range(4):
            cls = CLASSES[(number * 4 + step + len(change)) % len(CLASSES)]
            kind = TYPES[(number * 7 + step * 4 + len(change)) % len(TYPES)]
            folder = _changed(source, tmp_path / f"{name} {step}", CHANGES[change], cls, kind)
            try:
                built += _same(folder)
            except AssertionError as error:
                raise AssertionError(f"{name}, class {cls}, model type {kind}: {error}") from None
    assert built >= 30


def test_the_names_are_those_of_transformers() -> None:
    from transformers import PreTrainedTokenizerBase

    assert list(NAMED) == PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES


PIECES = (
    "<s>",
    "</s>",
    "<unk>",
    "<|im_start|>",
    "<|im_end|>",
    " ",
    "  ",
    "\n",
    "▁",
    "a",
    "The",
    "'ll",
    "12",
    "法",
    "🙂",
    "e\u0301",
    "\u200d",
    "\xa0",
)


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.one_of(st.sampled_from(PIECES), st.text(st.characters(exclude_categories=["Cs"]), max_size=8)), max_size=12
    )
)
def test_any_text_has_the_same_ids_in_the_guarded_child(
    texts: list[str], both: Callable[[str], tuple[Any, Any]]
) -> None:
    text = "".join(texts)
    for name in ("qwen2", "sentencepiece"):
        here, there = both(name)
        for special in (False, True):
            ids = here.encode([text, *texts], special)
            assert there.encode([text, *texts], special) == ids
            assert there.decode(ids[0], special) == here.decode(ids[0], special)


@pytest.fixture(scope="module")
def both(kinds: dict[str, Path]) -> Callable[[str], tuple[InProcess, InChild]]:
    made: dict[str, tuple[InProcess, InChild]] = {}

    def make(name: str) -> tuple[InProcess, InChild]:
        if name not in made:
            files = read_files(kinds[name])
            assert files is not None
            made[name] = InProcess(build(files).core), InChild(Setup(json.dumps(_written(kinds[name]))))
        return made[name]

    return make


def test_a_class_that_is_not_repeated_here_is_left_to_transformers(
    kinds: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = _changed(kinds["llama"], tmp_path / "cohere", {}, "CohereTokenizerFast", "cohere")
    assert read_files(folder) is None
    from transformers import AutoTokenizer

    hf, tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True), Tokenizer.load(folder)
    for text in TEXTS:
        assert tokenizer.ids(text) == hf.encode(text, add_special_tokens=False)
    monkeypatch.setattr(conversion, "Guarded", None)
    assert Tokenizer.load(folder).ids(TEXTS[2]) == tokenizer.ids(TEXTS[2]), "what was read last is kept"


@pytest.mark.slow
def test_real_tokenizers_are_the_same(small_model: Path) -> None:
    """The small model's, and those of the folders in $FINETUNE_LOCAL_OTHER_TOKENIZERS, such as one of Gemma 3."""
    others = [Path(name) for name in os.environ.get("FINETUNE_LOCAL_OTHER_TOKENIZERS", "").split(os.pathsep) if name]
    for folder in (small_model, *others):
        assert _same(folder), folder
