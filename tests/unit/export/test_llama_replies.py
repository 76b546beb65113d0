"""Each method needs only its own part of llama.cpp's reply, and a missing part is an error, not an empty result."""

from __future__ import annotations

from typing import Any

import pytest

from finetune_local.export.engines.llama import LlamaCpp, LlamaFailed


def engine(monkeypatch: pytest.MonkeyPatch, **reply: Any) -> LlamaCpp:
    """An engine without a process that always gets this reply."""
    llama = object.__new__(LlamaCpp)
    llama._plain_token = 0
    monkeypatch.setattr(llama, "_send", lambda _: reply, raising=False)
    return llama


def choice(**fields: Any) -> list[dict[str, Any]]:
    return [{"finish_reason": "length", **fields}]


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"logprobs": None},
        {"logprobs": {}},
        {"logprobs": {"content": []}},
        {"logprobs": {"content": [{}]}},
        {"logprobs": {"content": [{"top_logprobs": []}]}},
    ],
)
def test_a_reply_without_probabilities_is_an_error(fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    counts = {"usage": {"prompt_tokens": 1}, "timings": {"cache_n": 0}}
    with pytest.raises(LlamaFailed, match="no probabilities"):
        engine(monkeypatch, choices=choice(**fields), **counts).likeliest([1], 2)


def test_probabilities_and_stops_need_no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"content": [{"top_logprobs": [{"id": 7, "logprob": -0.5}, {"id": 3, "logprob": -2}]}]}
    assert engine(monkeypatch, choices=choice(logprobs=found)).likeliest([1], 2) == {7: -0.5, 3: -2.0}
    assert engine(monkeypatch, choices=choice(finish_reason="stop")).stops([1], 2)
    assert not engine(monkeypatch, choices=choice()).stops([1], 2)


def test_a_common_prefix_needs_no_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    llama = engine(monkeypatch, usage={"prompt_tokens": 4}, timings={"cache_n": 9})
    assert llama.common_prefix("a text", [1, 2, 3]) == (4, 3)
