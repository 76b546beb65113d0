"""Verbs, flags, settings, exit codes and the keys of --json are those that were recorded; what came to them is allowed."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from compat import record_interface
from conftest import USABLE

KNOWN = json.loads(record_interface.RECORDED.read_text("utf-8"))
TEXT = {"param_type": "String", "name": "text"}

pytestmark = pytest.mark.skipif(not USABLE, reason="no backend is installed")


@pytest.fixture(scope="module")
def now(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The interface as it is."""
    return record_interface.everything(tmp_path_factory.mktemp("interface 接口"))


def test_verbs_and_their_parameters(now: dict[str, Any]) -> None:
    assert list(lost_parameters(KNOWN["commands"], now["commands"])) == []


def test_settings_of_a_run_file(now: dict[str, Any]) -> None:
    problems = []
    for path, setting in KNOWN["settings"].items():
        found = now["settings"].get(path)
        if found is None:
            problems.append(f"{path} is gone")
        else:
            problems += [f"{path}: {text}" for text in narrowed(setting, found)]
    assert problems == []


def test_keys_of_json(now: dict[str, Any]) -> None:
    problems = []
    for name, shape in KNOWN["outputs"].items():
        problems += list(shrunk(shape, now["outputs"][name], name)) if name in now["outputs"] else [f"{name} is gone"]
    assert problems == []


def test_exit_codes_of_mistakes(now: dict[str, Any]) -> None:
    assert {name: now["errors"][name] for name in KNOWN["errors"]} == KNOWN["errors"]


def lost_parameters(before: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Verbs and parameters that are gone, narrower, in another order, or new and required."""
    for verb, parameters in before.items():
        if verb not in now:
            yield f"{verb} is gone"
            continue
        there = {tuple(one["opts"][:1]): one for one in now[verb]}
        kept = [tuple(one["opts"][:1]) for one in parameters]
        order = [key for key in there if key in kept]
        if order != kept:
            yield f"{verb}: {[key for key in kept if key not in there] or 'another order'}"
        for one in parameters:
            if (found := there.get(tuple(one["opts"][:1]))) is not None:
                yield from (f"{verb} {one['opts']}: {text}" for text in narrowed(one, found))
        yield from (
            f"{verb}: {key} is new and required" for key, one in there.items() if key not in kept and one["required"]
        )


def narrowed(before: Any, now: Any, where: str = "") -> Iterator[str]:
    """How a parameter or setting takes less than before, or does something else; lists of choices may have become longer."""
    if before == TEXT and isinstance(now, Mapping) and now.get("name") == "choice":
        return  # a text of which only some were taken is a choice of these
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key, value in before.items():
            yield from narrowed(value, now.get(key), f"{where}.{key}")
    elif where.endswith((".choices", ".enum", ".opts", ".secondary_opts")) and isinstance(now, list):
        if not set(before) <= set(now):
            yield f"{where}: without {sorted(set(before) - set(now))}"
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        for number, (one, other) in enumerate(zip(before, now, strict=True)):
            yield from narrowed(one, other, f"{where}[{number}]")
    elif before != now:
        yield f"{where}: {before!r} before, {now!r} now"


def shrunk(before: Any, now: Any, where: str) -> Iterator[str]:
    """Keys that are gone, and values of other types. What was null or empty when it was recorded may be anything."""
    if before in ("null", "", []) or now == []:
        return
    if isinstance(before, dict) and isinstance(now, dict):
        for key, value in before.items():
            if key in now:
                yield from shrunk(value, now[key], f"{where}.{key}")
            elif key not in ("*", "|"):
                yield f"{where}.{key} is gone"
    elif isinstance(before, list) and isinstance(now, list):
        yield from shrunk(before[0], now[0], f"{where}[]")
    elif isinstance(before, str) and isinstance(now, str):
        allowed = {*before.split("|"), *(["int"] if "float" in before else [])}
        if not ("null" in allowed or set(now.split("|")) <= allowed):
            yield f"{where}: {before} before, {now} now"
    else:
        yield f"{where}: {before!r} before, {now!r} now"


def test_what_is_lost_is_found() -> None:
    before = {"a": "int", "b": [{"c": "str|null"}], "d": "float"}
    assert not list(shrunk(before, {"a": "int", "b": [{"c": "str", "e": "int"}], "d": "int", "f": "str"}, ""))
    assert list(shrunk(before, {"b": [{"c": "str"}], "d": "float"}, "x")) == ["x.a is gone"]
    assert list(shrunk(before, {"a": "str", "b": [{}], "d": "float"}, "x")) == [
        "x.a: int before, str now",
        "x.b[].c is gone",
    ]
    option = {"opts": ["--to"], "required": False, "type": {"choices": ["a"]}}
    other = {"opts": ["--by"], "required": False, "type": {"choices": ["a"]}}
    wider = {**option, "type": {"choices": ["b", "a"]}}
    assert not list(lost_parameters({"v": [option, other]}, {"v": [wider, other], "w": []}))
    assert list(lost_parameters({"v": [option, other]}, {"v": [other, option]})) == ["v: another order"]
    assert list(lost_parameters({"v": [option]}, {"v": [{**option, "required": True}]}))
    assert list(lost_parameters({"v": []}, {"v": [{**option, "required": True}]})) == [
        "v: ('--to',) is new and required"
    ]
