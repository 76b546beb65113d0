"""The real small model's tokenizer and template."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_local.data.conversation import Conversation, Message, Source
from finetune_local.data.encoding.encode import encode
from finetune_local.data.tokenizers.tokenizer import Tokenizer


@pytest.mark.slow
def test_a_chat_as_the_small_model_sees_it(small_model: Path) -> None:
    tokenizer = Tokenizer.load(small_model)
    messages = (
        Message("user", "法国的首都？"),
        Message("assistant", "巴黎。🙂"),
        Message("user", "Spain?"),
        Message("assistant", "Madrid."),
    )
    (row,) = encode(Conversation(messages, Source("f", 1)), tokenizer, "chat", 512)
    assert tokenizer.text(row.ids[row.mask].tolist(), special=True) == "巴黎。🙂<|im_end|>Madrid.<|im_end|>"
    start = int(row.mask.argmax())
    assert row.ids[:start].tolist() == tokenizer.prompt_ids(messages[:1])
    assert {tokenizer.token(i) for i in tokenizer.stop_ids} == {"<|im_end|>"}
    streamer = tokenizer.streamer()
    ids = tokenizer.ids("巴黎。🙂 ok")
    assert "".join([*(streamer.push(i) for i in ids), streamer.finish()]) == "巴黎。🙂 ok"
