from __future__ import annotations

import time
from collections import Counter

import pytest

from finetune_local.data.conversation import Conversation, Message, Source
from finetune_local.data.readers.scrub import KINDS, kinds_of, scrub, scrubbed

FOUND = [
    ("write to anna.b+x@web.de, please", "write to [email], please"),
    ("邮箱abc@qq.com。", "邮箱[email]。"),
    ("https://user:pa55@host.example/x and ftp://a.b/c", "https://[credentials]@host.example/x and ftp://a.b/c"),
    ("card 4111 1111 1111 1111, or 5500-0000-0000-0004", "card [card], or [card]"),
    ("IBAN DE89 3704 0044 0532 0130 00 UND mehr", "IBAN [iban] UND mehr"),
    ("GB82WEST12345698765432", "[iban]"),
    ("身份证11010519491231002X，手机13812345678", "身份证[id]，手机[phone]"),
    ("SSN 123-45-6789", "SSN [id]"),
    ("+86 138-1234-5678 or +49 170 1234567", "[phone] or [phone]"),
    ("0170 1234567, (030) 12345678, 021-62345678, 020 7946 0958", "[phone], [phone], [phone], [phone]"),
    ("01 23 45 67 89", "[phone]"),
    ("555-123-4567 and (212) 555-1234", "[phone] and [phone]"),
    ("from 192.168.2.14 or 2001:db8::ff00:42:8329", "from [ip] or [ip]"),
    ("use sk-abcdefghijklmnopqrstuvwx now", "use [key] now"),
    ("password: hunter2hunter2", "password: [key]"),
    ("api_key = 'AbC123456789'", "api_key = '[key]'"),
    ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY----- end", "[key] end"),
]

LEFT = [
    "4111111111111112",  # Luhn says no
    "DE88370400440532013000",  # so does the IBAN's checksum
    "110105194912310021",  # and that of the identity number
    "2023-12-31 10:15, 31.12.2023, 1,234,567.89",
    "ISBN 978-3-16-148410-0, order 20231231-00012",
    "3.14159265358979 and 12345678901",
    "version v1.2.3.4 at 127.0.0.1, std::vector, A::B::C, 12:30:45",
    "the password is secret, and the token is a word",
    "me@home and @name",
    "000-12-3456",
]


@pytest.mark.parametrize(("text", "expected"), FOUND)
def test_what_has_the_form_is_replaced(text: str, expected: str) -> None:
    found: Counter[str] = Counter()
    assert scrub(text, KINDS, found) == expected
    assert found.total() == expected.count("[")


@pytest.mark.parametrize("text", LEFT)
def test_what_only_looks_like_it_is_left(text: str) -> None:
    found: Counter[str] = Counter()
    assert scrub(text, KINDS, found) == text
    assert found.total() == 0


def test_only_the_chosen_kinds_are_replaced_but_all_are_counted() -> None:
    found: Counter[str] = Counter()
    text = "a@b.org, 13812345678, 11010519491231002X"
    assert scrub(text, {"phone"}, found) == "a@b.org, [phone], 11010519491231002X"
    assert found == {"email": 1, "phone": 1, "id": 1}, "an identity number is not a card as well"


def test_every_turn_of_a_conversation_is_scrubbed() -> None:
    found: Counter[str] = Counter()
    turns = (Message("user", "I am a@b.org"), Message("assistant", "hello a@b.org", train=False), Message("user", "ok"))
    result = scrubbed(Conversation(turns, Source("f", 1)), kinds_of(["email"]), found)
    assert [m.content for m in result.messages] == ["I am [email]", "hello [email]", "ok"]
    assert result.messages[1].train is False
    plain = scrubbed(Conversation((), Source("f", 1), "call 13812345678"), kinds_of(["all"]), found)
    assert plain.text == "call [phone]"
    assert found == {"email": 2, "phone": 1}


@pytest.mark.parametrize(
    "text", ["a", "1", "a@", "1 ", "+1 ", "A1", "-----BEGIN PRIVATE KEY-----", "eyJa", "1.1.", "0123 4567 "]
)
def test_hostile_texts_take_linear_time(text: str) -> None:
    def seconds(size: int) -> float:
        started = time.process_time()
        scrub(text * (size // len(text)), KINDS, Counter())
        return time.process_time() - started

    seconds(1000)
    assert seconds(400_000) < 12 * max(seconds(100_000), 0.01)


def test_long_runs_take_no_longer_than_their_length() -> None:
    """Without a limit of time: what goes back over what it has read needs minutes or years for these."""
    for piece in (
        "+" + "1" * 40 + " ",
        "+1 (",
        "+" + "1 " * 20 + "x",
        "a@b.",
        "DE89 1",
        "1:",
        "4111 ",
        "password=",
        "eyJaaaaaaaa.",
    ):
        scrub(piece * (200_000 // len(piece)), KINDS, Counter())


def test_a_great_many_findings_are_put_in_order_once() -> None:
    found: Counter[str] = Counter()
    text = "a1@example.org +49 30 1234567, 10.1.2.3 " * 20_000
    assert scrub(text, KINDS, found) == "[email] [phone], [ip] " * 20_000
    assert found == {"email": 20_000, "phone": 20_000, "ip": 20_000}
