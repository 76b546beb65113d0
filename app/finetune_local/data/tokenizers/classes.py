"""Which class transformers reads a folder's tokenizer with, and what those classes make of tokenizer.json.

transformers 5 takes tokenizer.json as it is for most models, but some classes take its vocabulary and merges alone and set their own
normaliser, pre-tokenizer and decoder. Those of the families that are fine-tuned most are repeated here, equal by test; every other
class is left to transformers itself (data/tokenizers/conversion.py).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE

from finetune_local.data.tokenizers.settings import Settings
from finetune_local.system.paths import assets
from finetune_local.system.untrusted.text import read_json_object

AS_IT_IS = "TokenizersBackend"
_PLAIN = {
    AS_IT_IS,
    "PythonBackend",
    "PreTrainedTokenizer",
    "PreTrainedTokenizerFast",
    "BloomTokenizer",
    "BloomTokenizerFast",
}
_MISTRAL = "MistralCommonBackend"
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_WORDS_AND_MARKS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_END = "<|endoftext|>"
Build = Callable[[Any, Any, Settings], Tokenizer]


@dataclass(frozen=True)
class Rebuilt:
    """A class that builds the tokenizer anew: `build` from vocabulary, merges and settings."""

    build: Build
    defaults: Mapping[str, str | None]
    """Its special tokens where no file names them; None for those that it has by name and leaves out."""
    adds_special: bool = False
    """Whether its special tokens are added once more at the end, as plain special ones."""
    own_ends: bool = False
    """Whether what tokenizer.json puts around a text is dropped."""


def class_of(settings: Settings, config: Mapping[str, Any], byte_level: bool, folder: Path) -> str | None:
    """The class's name, AS_IT_IS for tokenizer.json as it is; None where only transformers itself can tell or read it."""
    table = _table()
    kind, model_name = config.get("model_type"), config.get("model_name")
    kind = kind if isinstance(kind, str) else ""
    registered = table.by_model_type.get(kind)
    wrong = bool({kind, model_name if isinstance(model_name, str) else ""} & table.wrong)
    of_config = config.get("tokenizer_class")
    wanted = settings.class_name or (of_config if isinstance(of_config, str) and of_config else None)
    if (settings.from_code and not wrong) or settings.other_file or settings.changes_pattern:
        return None
    if registered == _MISTRAL and (folder / "tekken.json").exists() and importlib.util.find_spec("mistral_common"):
        return None
    if wanted is None:
        return _known(registered or AS_IT_IS) if registered != _MISTRAL else AS_IT_IS
    if _bare(wanted) == "LlamaTokenizer" and registered != _MISTRAL and not wrong and byte_level:
        return AS_IT_IS
    if registered is None or _bare(registered) == _bare(wanted):
        return _known(_bare(wanted))
    if registered in (AS_IT_IS, _MISTRAL):
        return AS_IT_IS
    return _known(registered if wrong else wanted)


def _known(name: str) -> str | None:
    """A class as named, or AS_IT_IS where transformers takes that for it; None where the class is another one of transformers."""
    if name in _PLAIN or _bare(name) in _PLAIN:
        return AS_IT_IS
    if _bare(name) in REBUILT:
        return _bare(name)
    return None if {name, _bare(name)} & _table().classes else AS_IT_IS


def _bare(name: str) -> str:
    return name.removesuffix("Fast")


@dataclass(frozen=True)
class _Table:
    by_model_type: Mapping[str, str]
    wrong: frozenset[str]
    """Model types whose files name a wrong class."""
    classes: frozenset[str]


@cache
def _table() -> _Table:
    """Made by packaging/make_tokenizer_classes.py out of transformers' source."""
    values = read_json_object(assets() / "tokenizer_classes.json")
    return _Table(values["by_model_type"], frozenset(values["wrong_on_the_hub"]), frozenset(values["classes"]))


def _byte_level(vocabulary: Any, merges: Any, **more: Any) -> Tokenizer:
    empty = {"continuing_subword_prefix": "", "end_of_word_suffix": ""}
    core = Tokenizer(BPE(vocab=vocabulary, merges=merges, dropout=None, fuse_unk=False, **empty, **more))
    core.decoder = decoders.ByteLevel()
    return core


def _gpt2(vocabulary: Any, merges: Any, settings: Settings) -> Tokenizer:
    core = _byte_level(vocabulary, merges)
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.add_prefix_space))
    return core


def _gpt_neox(vocabulary: Any, merges: Any, settings: Settings) -> Tokenizer:
    core = _byte_level(vocabulary, merges)
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.add_prefix_space), trim_offsets=True)
    return core


def _qwen(pattern: str) -> Build:
    def build(vocabulary: Any, merges: Any, settings: Settings) -> Tokenizer:
        core = _byte_level(vocabulary, merges, unk_token=None, byte_fallback=False)
        core.normalizer = normalizers.NFC()
        words = pre_tokenizers.Split(Regex(pattern), behavior="isolated", invert=False)
        as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=bool(settings.add_prefix_space), use_regex=False)
        core.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
        return core

    return build


def _gemma(vocabulary: Any, merges: Any, settings: Settings) -> Tokenizer:
    unknown = str(settings.named.get("unk_token", "<unk>"))
    core = Tokenizer(
        BPE(vocab=vocabulary, merges=merges, fuse_unk=True, unk_token=unknown, dropout=None, byte_fallback=True)
    )
    core.pre_tokenizer = pre_tokenizers.Split(pattern=" ", behavior="merged_with_previous", invert=False)
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    core.normalizer = normalizers.Replace(" ", "▁")
    return core


def _llama(vocabulary: Any, merges: Any, settings: Settings) -> Tokenizer:
    prefixed = settings.add_prefix_space is not False
    core = Tokenizer(BPE(vocab=vocabulary, merges=merges, fuse_unk=True, byte_fallback=True, dropout=None))
    scheme = ("always" if settings.legacy else "first") if prefixed else "never"
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme=scheme, split=False)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    core.decoder = decoders.Sequence([*steps, decoders.Strip(content=" ", left=1)] if prefixed else steps)
    return core


_QWEN = {"unk_token": _END, "bos_token": None, "eos_token": _END, "pad_token": _END}
REBUILT = {
    "GPT2Tokenizer": Rebuilt(_gpt2, {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": None}),
    "GPTNeoXTokenizer": Rebuilt(
        _gpt_neox, {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"}, own_ends=True
    ),
    "Qwen2Tokenizer": Rebuilt(_qwen(_WORDS), _QWEN, adds_special=True),
    "Qwen3_5Tokenizer": Rebuilt(_qwen(_WORDS_AND_MARKS), _QWEN),
    "GemmaTokenizer": Rebuilt(
        _gemma,
        {
            "unk_token": "<unk>",
            "bos_token": "<bos>",
            "eos_token": "<eos>",
            "pad_token": "<pad>",
            "mask_token": "<mask>",
        },
    ),
    "LlamaTokenizer": Rebuilt(_llama, {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}),
}
"""By name, the classes that are repeated here."""


def plainly_special(texts: list[str]) -> list[AddedToken]:
    """Tokens as Qwen's class adds its special ones."""
    return [AddedToken(text, special=True) for text in texts]
