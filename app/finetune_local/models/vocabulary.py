"""Check a tokenizer's tokens against the rows of the embedding, from the files alone.

A token without a row crashes torch with an IndexError, and makes MLX read past the last row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_local.spec.base.tokenizer_files import NAMED, added_by_config, in_force
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import msg

_SHOWN = 3


def check_tokens(
    folder: Path, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], template: str | None, rows: int
) -> None:
    """Raise ModelError naming tokens beyond the last of `rows`.

    Special tokens that no template or setting uses are allowed, such as the image placeholder in Gemma 3's text models; a data row
    with one is rejected (data/tokenizers/tokenizer.py). `tokenizer` is tokenizer.json, `settings` tokenizer_config.json or empty.
    """
    known: dict[str, int] = dict(_vocabulary(tokenizer))
    aside = set(_special(tokenizer))
    for number, token in added_by_config(in_force(folder)).items():
        known.setdefault(str(token["content"]), number)
        if token.get("special") is True:
            aside.add(str(token["content"]))
    following = max(known.values(), default=-1) + 1
    for text in dict.fromkeys(_named(settings)):
        aside.discard(text)
        if text not in known:  # the tokenizers library gives it the next free id
            known[text] = following
            following += 1
    beyond = sorted((number, text) for text, number in known.items() if number >= rows)
    beyond = [(number, text) for number, text in beyond if text not in aside or text in (template or "")]
    if not beyond:
        return
    shown = ", ".join(f"{text[:60]!r} ({number})" for number, text in beyond[:_SHOWN])
    more = msg(" and others") if len(beyond) > _SHOWN else ""
    raise ModelError(
        msg(
            "{folder}: {number} tokens of its tokenizer have no row in the embedding, which has {rows}: "
            "{shown}{more}. A token was added without resizing the model. Use the tokenizer that comes with the "
            "model, or resize the model with transformers (resize_token_embeddings) and save both.",
            folder=folder,
            number=len(beyond),
            rows=rows,
            shown=shown,
            more=more,
        )
    )


def _vocabulary(tokenizer: Mapping[str, Any]) -> Iterator[tuple[str, int]]:
    """Token -> id of a tokenizer.json; other types are left for the library to refuse."""
    model = tokenizer.get("model")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from ((text, number) for text, number in vocabulary.items() if type(number) is int)
    elif isinstance(vocabulary, list):  # Unigram: pieces with their scores
        yield from ((str(piece[0]), i) for i, piece in enumerate(vocabulary) if isinstance(piece, list) and piece)
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and type(token.get("id")) is int:
            yield str(token.get("content")), token["id"]


def _special(tokenizer: Mapping[str, Any]) -> Iterator[str]:
    """Added tokens of a tokenizer.json that do not occur in text."""
    added = tokenizer.get("added_tokens")
    for token in added if isinstance(added, list) else ():
        if isinstance(token, dict) and token.get("special") is True:
            yield str(token.get("content"))


def _named(settings: Mapping[str, Any]) -> Iterator[str]:
    """The special tokens that tokenizer_config.json names."""
    more = settings.get("additional_special_tokens")
    for found in (*(settings.get(name) for name in NAMED), *(more if isinstance(more, list) else ())):
        text = found.get("content") if isinstance(found, dict) else found
        if isinstance(text, str) and text:
            yield text
