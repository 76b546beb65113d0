"""A GGUF of one empty layer with the real tokenizer, opened in llama.cpp before the real file is written.

Texts and chats that llama.cpp would tokenize differently are found within a second instead of after the whole model was written.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from finetune_local.export.engines.chats import CUTS
from finetune_local.export.engines.llama import LlamaCpp, LlamaFailed, available
from finetune_local.export.gguf.vocabulary import CONTROL, USER_DEFINED, add_vocabulary, read_vocabulary
from finetune_local.export.verification.compare import parted, quoted
from finetune_local.export.verification.expected import Expected, expected
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import ModelError
from finetune_local.system.messages import Message, msg

WIDTH = 32
_CONTEXT = 128
_MOST_ADDED = 512
"""Number of added tokens up to which each is tried; of more, every n-th is."""

_passed: set[bytes] = set()
"""Tokenizers already tried in this process, by a hash of texts and file."""


def rehearse(model: ModelFolder, adapter: Path | None, rows: int) -> None:
    """Raise ModelError if llama.cpp would tokenize a text or a chat differently. Does nothing if it is not installed."""
    if not available():
        return
    vocabulary = read_vocabulary(model, adapter, rows)
    expectation = expected(model, adapter)
    added = [
        text for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=True) if kind in (CONTROL, USER_DEFINED)
    ]
    texts = [(text, False) for text in (*CUTS, *_around(added[:: 1 + len(added) // _MOST_ADDED]))]
    texts += [text for text in expectation.texts if text not in texts]
    ids = [expectation.text_ids(text, special) for text, special in texts]
    chats = [
        (chat.title, expectation.rendering(chat)) for chat in expectation.chats if chat.plain and chat.generation_prompt
    ]
    key = hashlib.sha256(repr((vocabulary, texts, ids, chats, expectation.template)).encode()).digest()
    if key in _passed:
        return
    with tempfile.TemporaryDirectory(prefix="ftl-") as place:
        file = Path(place) / "tokenizer.gguf"
        _write(file, model, adapter, rows)
        try:
            with LlamaCpp(file, _CONTEXT, expectation.plain_token) as llama:
                for (text, special), ours in zip(texts, ids, strict=True):
                    theirs = llama.ids(text, special)
                    if ours != theirs:
                        raise _refused(model, _named(added, text), parted(ours, theirs))
                _compare_chats(model, expectation, llama)
        except LlamaFailed as error:
            raise ModelError(
                msg(
                    "'{name}': llama.cpp cannot load a file with this model's tokenizer: {error}",
                    name=model.name,
                    error=error,
                )
            ) from None
    _passed.add(key)


def _compare_chats(model: ModelFolder, expectation: Expected, llama: LlamaCpp) -> None:
    for chat in expectation.chats:
        if not chat.plain or not chat.generation_prompt:
            continue
        ours, theirs = expectation.rendering(chat), llama.rendering(chat)
        # Rendering by llama.cpp's own template engine is checked when the finished file is verified.
        same = theirs.text is not None and ours.text is not None and ours.text.endswith(theirs.text)
        if same and ours.ids != theirs.ids:
            raise _refused(
                model, msg("a chat with {title}", title=quoted(chat.title)), parted(ours.ids or (), theirs.ids or ())
            )


def _around(added: list[str]) -> Iterator[str]:
    """Texts with each added token inside words, between spaces, and next to itself."""
    for token in added:
        yield f"a{token}b {token} c  {token}  {token}{token}\n{token}"


def _named(added: list[str], text: str) -> Message:
    token = max(
        (token for token in added if text == f"a{token}b {token} c  {token}  {token}{token}\n{token}"),
        default="",
        key=len,
    )
    return msg("the added token {token}", token=quoted(token)) if token else msg("the text {text}", text=quoted(text))


def _refused(model: ModelFolder, what: str, difference: str) -> ModelError:
    return ModelError(
        msg(
            "'{name}': llama.cpp would tokenize {what} differently: {difference} Export with --to merged, then "
            "try llama.cpp's convert_hf_to_gguf.py on the folder.",
            name=model.name,
            what=what,
            difference=difference,
        )
    )


def _write(file: Path, model: ModelFolder, adapter: Path | None, rows: int) -> None:
    from gguf import GGUFWriter

    writer = GGUFWriter(file, "llama")
    try:
        writer.add_context_length(_CONTEXT)
        writer.add_embedding_length(WIDTH)
        writer.add_block_count(1)
        writer.add_feed_forward_length(WIDTH)
        writer.add_head_count(1)
        writer.add_layer_norm_rms_eps(1e-5)
        writer.add_rope_dimension_count(WIDTH)
        writer.add_vocab_size(rows)
        add_vocabulary(writer, model, adapter, rows)
        square = np.zeros((WIDTH, WIDTH), np.float16)
        writer.add_tensor("token_embd.weight", np.zeros((rows, WIDTH), np.float16))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.0.{name}.weight", square)
        for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
            writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
