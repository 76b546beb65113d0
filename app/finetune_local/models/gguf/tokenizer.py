"""The tokenizer inside a GGUF as tokenizer.json, tokenizer_config.json and chat_template.jinja.

Byte-level BPE ("gpt2" in GGUF's terms) only. GGUF names the pre-tokenizer; the patterns here are those of the models' own
tokenizer.json files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finetune_local.models.gguf.header import Metadata
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

_USER_DEFINED, _CONTROL, _UNUSED, _UNKNOWN = 4, 3, 5, 2  # llama.cpp's token types
_BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def _cut(digits: str) -> dict[str, object]:
    split = {"type": "Split", "pattern": {"Regex": _WORDS.replace("DIGITS", digits)}, "behavior": "Isolated"}
    steps = [{**split, "invert": False}, {**_BYTES, "use_regex": False}]
    return {"type": "Sequence", "pretokenizers": steps}


_GPT2 = {**_BYTES, "use_regex": True}
_DIGITS_APART = {"type": "Sequence", "pretokenizers": [{"type": "Digits", "individual_digits": True}, _GPT2]}
# name: (pre-tokenizer, NFC first?, whole words before merges?, BOS added by default?)
_PRE: Mapping[str, tuple[dict[str, Any], bool, bool, bool]] = {
    "gpt-2": (_GPT2, False, False, False),
    "smollm": (_DIGITS_APART, False, False, False),
    "qwen2": (_cut(""), True, False, False),
    "deepseek-r1-qwen": (_cut(""), True, False, True),
    "llama-bpe": (_cut("{1,3}"), False, True, True),
}


def tokenizer_files(file: Path, metadata: Mapping[str, Any], rows: int) -> dict[str, str]:
    """File name -> text, from a GGUF's metadata. Raises ModelError if the tokenizer cannot be converted exactly, or has more tokens
    than the embedding has `rows`.
    """
    values = Metadata(file, metadata)
    instead = msg("Download the original model as safetensors instead: finetune-local models get ORG/NAME")
    kind, pre = values.text("tokenizer.ggml.model"), values.text("tokenizer.ggml.pre", "default")
    if kind != "gpt2" or pre not in _PRE:
        what = msg("pre-tokenizer '{name}'", name=pre[:60]) if kind == "gpt2" else msg("kind '{name}'", name=kind[:60])
        raise ModelError(
            msg(
                "{file}: its tokenizer is of {what}, which cannot be converted exactly. {instead}",
                file=file,
                what=what,
                instead=instead,
            )
        )
    tokens, types = _tokens(file, values, metadata, rows)
    bos = values.token("tokenizer.ggml.bos_token_id", len(tokens))
    add_bos = values.flag("tokenizer.ggml.add_bos_token", _PRE[pre][3]) and bos is not None
    ends = _with_bos(tokens[bos], bos) if add_bos and bos is not None else None
    tokenizer = _tokenizer(pre, tokens, types, values.texts("tokenizer.ggml.merges"), ends)
    files = {"tokenizer.json": _checked(file, tokenizer), "tokenizer_config.json": _config(values, tokens, add_bos)}
    if template := values.text("tokenizer.chat_template", ""):
        files["chat_template.jinja"] = template
    return files


def _tokens(file: Path, values: Metadata, metadata: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """The tokens and the type of each. Raises ModelError if they do not fit the embedding or each other."""
    tokens = values.texts("tokenizer.ggml.tokens")
    if len(tokens) > rows:
        raise ModelError(
            msg(
                "{file}: its tokenizer has {count} tokens, but the embedding has {rows} rows, none for {token}. "
                "Download the file from another source.",
                file=file,
                count=len(tokens),
                rows=rows,
                token=repr(tokens[rows][:60]),
            )
        )
    types = metadata.get("tokenizer.ggml.token_type") or [1] * len(tokens)
    if not isinstance(types, list) or len(types) != len(tokens) or not all(type(one) is int for one in types):
        raise ModelError(
            msg(
                "{file}: its metadata does not have one type for each of {count} tokens. Download the file from "
                "another source.",
                file=file,
                count=len(tokens),
            )
        )
    _no_token_twice(file, tokens, types)
    return tokens, types


def _tokenizer(
    pre: str, tokens: list[str], types: list[int], merges: list[str], ends: dict[str, Any] | None
) -> dict[str, object]:
    """tokenizer.json; `ends` is its post-processor."""
    cut, nfc, whole_words, _ = _PRE[pre]
    added = [
        {**_added(i, text), "special": types[i] != _USER_DEFINED}
        for i, text in enumerate(tokens)
        if types[i] in (_USER_DEFINED, _CONTROL, _UNKNOWN)
    ]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": {"type": "NFC"} if nfc else None,
        "pre_tokenizer": cut,
        "post_processor": ends,
        "decoder": {**_BYTES, "use_regex": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": whole_words,
            "vocab": {text: i for i, text in enumerate(tokens) if types[i] != _UNUSED},
            "merges": [merge.split(" ", 1) for merge in merges],
        },
    }


def _no_token_twice(file: Path, tokens: list[str], types: list[int]) -> None:
    """Raise ModelError for a duplicate token: tokenizer.json has each text once, so the second id would be lost."""
    seen: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if types[i] != _UNUSED and seen.setdefault(text, i) != i:
            raise ModelError(
                msg(
                    "{file}: its tokens {one} and {other} are the same text {text}. Download the file from another "
                    "source.",
                    file=file,
                    one=seen[text],
                    other=i,
                    text=repr(text[:60]),
                )
            )


def _added(i: int, text: str) -> dict[str, object]:
    return {"id": i, "content": text, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def _with_bos(text: str, i: int) -> dict[str, object]:
    bos = {"SpecialToken": {"id": text, "type_id": 0}}
    first, second = ({"Sequence": {"id": x, "type_id": n}} for n, x in enumerate("AB"))
    again = {"SpecialToken": {"id": text, "type_id": 1}}
    known = {text: {"id": text, "ids": [i], "tokens": [text]}}
    pair = [bos, first, again, second]
    return {"type": "TemplateProcessing", "single": [bos, first], "pair": pair, "special_tokens": known}


def _checked(file: Path, tokenizer: Mapping[str, Any]) -> str:
    """The JSON text, after the tokenizers library has accepted it."""
    from tokenizers import Tokenizer

    text = json.dumps(tokenizer, ensure_ascii=False)
    try:
        Tokenizer.from_str(text)
    except (
        BaseException
    ) as error:  # the library raises bare Exception, and a panic in its Rust code raises a BaseException
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            msg(
                "{file}: its tokenizer is damaged ({error}). Download the file from another source.",
                file=file,
                error=reason,
            )
        ) from None
    return text


def _config(values: Metadata, tokens: list[str], add_bos: bool) -> str:
    # PreTrainedTokenizerFast uses tokenizer.json unchanged; a model's own class would replace the pre-tokenizer.
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": add_bos,
        "clean_up_tokenization_spaces": False,
        "model_max_length": values.whole(f"{values.text('general.architecture')}.context_length", 2**31 - 1),
    }
    ids = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    for name, key in ids.items():
        if (i := values.token(f"tokenizer.ggml.{key}_token_id", len(tokens))) is not None:
            config[name] = tokens[i]
    config.setdefault("pad_token", config.get("eos_token"))
    return json.dumps({k: v for k, v in config.items() if v is not None}, indent=2, ensure_ascii=False) + "\n"
