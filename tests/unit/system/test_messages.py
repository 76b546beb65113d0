"""A sentence keeps the template and the values it was made from: through composition, pickles, errors and JSON."""

from __future__ import annotations

import copy
import errno
import json
import pickle

import pytest

from finetune_local.system.errors import ModelError, SpecError, errors_at
from finetune_local.system.messages import (
    NOTHING,
    Message,
    as_message,
    carried,
    carrying,
    from_json,
    join_messages,
    message_of,
    msg,
    system_reason,
)

HINT = msg(" Did you mean '{name}'?", name="lora")
NESTED = msg("{path}: there is no method '{name}'.{hint}", path="run.toml", name="lorra", hint=HINT)


def test_it_is_the_finished_english() -> None:
    assert NESTED == "run.toml: there is no method 'lorra'. Did you mean 'lora'?"
    assert NESTED.template == "{path}: there is no method '{name}'.{hint}"
    assert NESTED.values["hint"] is HINT


@pytest.mark.parametrize("value", ["{name}", "{x} {0}", "a: b. c", "%s \\1", ""])
def test_values_are_put_in_as_they_are(value: str) -> None:
    made = msg('{"key": {name}} [ or {', name=value)
    assert made == '{"key": ' + value + "}} [ or {".replace("}}", "}")
    assert from_json(json.loads(json.dumps(made.as_json()))) == made


def test_values_are_formatted_once() -> None:
    made = msg("{rank} and {share}", rank=8, share=f"{0.123:.1f}")
    assert dict(made.values) == {"rank": "8", "share": "0.1"}


def test_it_survives_pickle_and_copy() -> None:
    for other in (pickle.loads(pickle.dumps(NESTED)), copy.copy(NESTED), copy.deepcopy([NESTED])[0]):
        assert other == NESTED and isinstance(other, Message)
        assert other.template == NESTED.template and other.values["hint"].template == HINT.template


def test_sums_keep_their_parts() -> None:
    for made in (NESTED + HINT, NESTED + " x", "x " + NESTED, join_messages("; ", [NESTED, "x"])):
        assert isinstance(made, Message)
        assert any(getattr(value, "template", "") == NESTED.template for value in made.values.values()), made
    assert NESTED + "" is NESTED and "" + NESTED is NESTED
    assert join_messages(" and ", ["a", NESTED]) == f"a and {NESTED}"
    assert join_messages(", ", []) == ""


def test_an_error_keeps_what_it_was_raised_with() -> None:
    error = SpecError(NESTED)
    assert error.message is NESTED and str(error) == NESTED
    again = pickle.loads(pickle.dumps(error))
    assert again.message.template == NESTED.template
    assert msg("{error} Stop.", error=error).values["error"] is NESTED
    assert ModelError(error).message is NESTED
    assert str(SpecError()) == ""


def test_a_place_is_named_before_an_error() -> None:
    with pytest.raises(SpecError) as caught, errors_at("[[adapters]] number 2"):
        raise SpecError(HINT)
    assert caught.value.message.template == "{place}: {error}"
    assert caught.value.message.values["error"] is HINT


def test_what_the_system_says() -> None:
    error = OSError(errno.EACCES, "Permission denied", "a.json")
    assert message_of(error) == str(error)
    assert system_reason(error).template == "Permission denied"
    assert message_of(error).values["said"].template == "Permission denied"  # type: ignore[attr-defined]
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads('{"a" 1}')
    assert message_of(caught.value) == str(caught.value)
    assert message_of(RuntimeError("a library's {words}")) == "a library's {words}"


def test_halves_of_surrogate_pairs_are_shown() -> None:
    made = msg("{path}: {said}", path="a\udce4", said=as_message("b\udce4"))
    assert made.encode("utf-8") and made.values["path"] == "a\\udce4"


def test_a_record_carries_the_templates_beside_its_own_keys() -> None:
    record = {"event": "note", "text": NESTED, "more": [NESTED, "plain", {"reason": HINT}], "number": 3}
    written = json.loads(json.dumps(carrying(record)))
    assert {key: written[key] for key in record} == record
    read = carried(written)
    assert set(read) == set(record)
    assert read["text"].template == NESTED.template and read["more"][2]["reason"].template == HINT.template
    assert type(read["more"][1]) is str


def test_a_record_of_an_older_version_stays_as_it_is() -> None:
    record = {"event": "note", "text": str(NESTED)}
    assert carried(record) == record and type(carried(record)["text"]) is str
    assert carrying(record) == record


@pytest.mark.parametrize(
    "said",
    [
        None,
        3,
        [3],
        [{"template": "x {a}", "values": {}}],
        [{"template": 3, "values": {}}],
        [{"template": "x", "values": {"a": 3}}],
        [{"template": "x", "values": []}],
    ],
)
def test_damaged_templates_are_left_out(said: object) -> None:
    assert carried({"text": "x", "said": said}) == {"text": "x"}


def test_nesting_ends() -> None:
    deep: object = {"template": "x", "values": {}}
    for _ in range(100):
        deep = {"template": "{a}", "values": {"a": deep}}
    with pytest.raises(ValueError, match="no message"):
        from_json(deep)


def test_a_path_known_by_another_name() -> None:
    made = msg("{path}: {error}", path="/tmp/x/a.json", error=msg("{file} is missing", file="/tmp/x/b"))
    assert made.with_values("/tmp/x", "/home/me") == "/home/me/a.json: /home/me/b is missing"
    assert NOTHING.with_values("a", "b") == ""
