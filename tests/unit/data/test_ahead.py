from __future__ import annotations

from collections.abc import Iterator

import pytest

from finetune_local.data.conversation import Conversation, Message, Rejected, Source
from finetune_local.data.encoding.encode import Row, rendered_ahead
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.system.errors import DataError


def rows(count: int) -> list[Row]:
    made: list[Row] = []
    for number in range(count):
        place = Source("f", number)
        if number % 7 == 3:
            made.append(Rejected(place, "reason"))
        elif number % 7 == 5:
            made.append(Conversation((), place, text="plain"))
        else:
            made.append(Conversation((Message("user", str(number)), Message("assistant", "yes")), place))
    return made


@pytest.mark.parametrize("count", [0, 1, 32, 33, 100])
@pytest.mark.parametrize("template", ["chat", "raw"])
def test_the_same_rows_come_in_the_same_order(tokenizer: Tokenizer, count: int, template: str) -> None:
    assert list(rendered_ahead(rows(count), tokenizer, template)) == rows(count)
    assert list(rendered_ahead(rows(count), None, template)) == rows(count)


def test_an_error_comes_after_the_rows_before_it(tokenizer: Tokenizer) -> None:
    def broken() -> Iterator[Row]:
        yield from rows(40)
        raise DataError("line 41 is damaged")

    seen: list[Row] = []
    with pytest.raises(DataError, match="line 41"):
        seen.extend(rendered_ahead(broken(), tokenizer, "chat"))
    assert seen == rows(40)


def test_it_can_be_left(tokenizer: Tokenizer) -> None:
    left = rendered_ahead(rows(200), tokenizer, "chat")
    assert next(left) == rows(1)[0]
    left.close()
