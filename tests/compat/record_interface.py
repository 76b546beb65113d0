"""What scripts rely on: verbs, flags, settings of a run file, exit codes, keys of `--json`. It only grows.

`python tests/compat/record_interface.py` writes interface.json; what is recorded already stays, what is new is added.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from compat import house
from compat.old_homes import COMMITS, copied

RECORDED = Path(__file__).with_name("interface.json")
SCHEMA = house.ROOT / "docs" / "run.schema.json"

OPEN = ("versions", "speakers", "personal", "presets", "defaults", "settings", "layers_by_kind", "receivers")
"""Keys of objects whose own keys are data: names of libraries, of speakers, of settings."""

ERRORS: Mapping[str, tuple[str, ...]] = {
    "no such verb": ("trian",),
    "no such option": ("runs", "list", "--colour"),
    "a number out of range": ("train", "--data", "x.jsonl", "--seed", "-1"),
    "no data": ("train",),
    "data that is not there": ("train", "--data", "nowhere.jsonl"),
    "no such method": ("train", "--data", "x.jsonl", "--method", "lra"),
    "a setting of another method": ("train", "--data", "DATA", "--model", "tiny", "--method", "ia3", "--rank", "4"),
    "no such model": ("train", "--data", "DATA", "--model", "nowhere"),
    "a name that is taken": ("train", "--data", "DATA", "--model", "tiny", "--run", "several-a"),
    "a config that is not there": ("train", "--config", "nowhere.toml"),
    "no such run to resume": ("resume", "nobody"),
    "fewer steps than were done": ("resume", "finished-torch", "--max-steps", "1"),
    "no such run": ("runs", "show", "nobody"),
    "a damaged run": ("runs", "check"),
    "no such adapter": ("adapters", "info", "nobody"),
    "no adapter to answer": ("generate", "--model", "tiny", "--adapter", "nobody", "--prompt", "x"),
    "no such backend": ("generate", "--model", "tiny", "--prompt", "x", "--backend", "abacus"),
    "no such conversation": ("chat", "--model", "tiny", "--continue", "nothing"),
    "no such export target": ("export", "several-a", "--to", "nothing", "--out", "x"),
    "no such quantization": ("export", "several-a", "--to", "gguf", "--quant", "q9", "--out", "x"),
    "an export over something else": ("export", "several-a", "--to", "adapter", "--out", "HOME"),
    "what cannot be merged": ("merge", "提示 prompt", "--out", "x"),
    "nothing to evaluate on": ("evaluate", "--model", "tiny"),
    "no full fine-tune": ("adapters", "extract", "several-b"),
    "no file to inspect": ("data", "inspect", "nowhere.jsonl"),
    "no such model to show": ("models", "info", "nowhere"),
    "nothing to take back": ("runs", "restore", "nobody"),
}
"""Mistakes that a user makes, each with the arguments; HOME and DATA stand for paths."""


def commands() -> dict[str, list[dict[str, Any]]]:
    """Every verb with its parameters in their order."""
    import click

    from finetune_local.cli.main import cli

    def walk(info: Mapping[str, Any], name: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        yield name, [_parameter(one) for one in info["params"] if "--help" not in one["opts"]]
        for key, inner in info.get("commands", {}).items():
            yield from walk(inner, f"{name} {key}".strip())

    return dict(walk(cli.to_info_dict(click.Context(cli)), ""))


def _parameter(info: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: info[key] for key in ("opts", "secondary_opts", "required", "nargs", "multiple")}
    kind = {key: value for key, value in info["type"].items() if key in ("name", "choices", "min", "max", "param_type")}
    flags = {key: info.get(key) for key in ("is_flag", "default")}
    return {**kept, "type": kind, **flags, **({"flag_value": info["flag_value"]} if info.get("flag_value") else {})}


def settings() -> dict[str, Any]:
    """Every setting of a run file by its path, with its default and what it may be."""
    schema = json.loads(SCHEMA.read_text("utf-8"))
    found: dict[str, Any] = {}
    for name, value in schema["properties"].items():
        inner = schema["$defs"].get(str(value.get("$ref", "")).rpartition("/")[2])
        if "oneOf" in value:  # a key, or a table with the settings of that key
            keys, *tables = value["oneOf"]
            found[name] = {"enum": keys["enum"], "default": value.get("default")}
            for table in tables:
                own = {key: one for key, one in table["properties"].items() if key != "key"}
                for chosen in table["properties"]["key"]["enum"]:
                    found |= {f"{name} {chosen}.{key}": _setting(one) for key, one in own.items()}
        else:
            found |= {
                f"{name}.{key}".rstrip("."): _setting(one)
                for key, one in (inner["properties"] if inner else {"": value}).items()
            }
    return found


def _setting(schema: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in schema.items() if key not in ("description", "title", "group", "metavar")}


def shape(value: Any, name: str = "") -> Any:
    """The keys and types of a JSON value: "int", a list with one shape for all its elements, an object by its keys."""
    if isinstance(value, dict):
        if name in OPEN:
            return {"*": merged([shape(one) for one in value.values()])}
        return {key: shape(one, key) for key, one in value.items()}
    if isinstance(value, list):
        return [merged([shape(one) for one in value])] if value else []
    return "null" if value is None else type(value).__name__


def merged(shapes: list[Any]) -> Any:
    """One shape for several: a key of some is a key of all, and types stand side by side ("int|null")."""
    objects = [one for one in shapes if isinstance(one, dict)]
    lists = [one for one in shapes if isinstance(one, list)]
    plain = sorted({part for one in shapes if isinstance(one, str) for part in one.split("|")})
    if objects and not lists:
        keys = list(dict.fromkeys(key for one in objects for key in one))
        found: dict[str, Any] = {key: merged([one[key] for one in objects if key in one]) for key in keys}
        return {**found, **({"|": "|".join(plain)} if plain else {})}
    if lists and not objects:
        inner = [part for one in lists for part in one]
        return [merged(inner)] if inner else []
    return "|".join(plain)


def outputs(place: Path) -> dict[str, Any]:
    """The shape of the last line of every verb with --json, in a home that an earlier version wrote."""
    old = copied(COMMITS[0], place / "old")
    os.environ |= {"FINETUNE_LOCAL_HOME": str(old.home), "FINETUNE_LOCAL_CONFIG": str(old.config)}
    data, backend = str(old.home / "data" / "orders.jsonl"), house.usable_backends()[-1]
    short = ("--temperature", "0", "--max-tokens", "3", "--backend", backend)
    measured = ("--limit", "2", "--max-tokens", "3", "--backend", backend)
    train = (
        "--data",
        data,
        "--model",
        "tiny",
        "--max-steps",
        "2",
        "--checkpoint-every",
        "1",
        "--max-length",
        "96",
        "--backend",
        backend,
    )
    tests: dict[str, tuple[str, ...]] = {
        "runs list": ("runs",), "runs show": ("runs", "show", "again"), "runs check": ("runs", "check", "again"),
        "runs rename": ("runs", "rename", "again", "renamed"), "runs remove": ("runs", "remove", "renamed", "--yes"),
        "runs restore": ("runs", "restore"), "trash": ("trash",), "adapters list": ("adapters",),
        "adapters info": ("adapters", "info", "several-a"), "adapters note": ("adapters", "note", "imported", "x"),
        "adapters import": ("adapters", "import", str(old.home / "runs" / "several-a" / "adapter"), "--name", "copy"),
        "adapters rename": ("adapters", "rename", "copy", "another"), "adapters remove": ("adapters", "remove", "another"),
        "adapters restore": ("adapters", "restore", "another"), "models list": ("models",), "models info": ("models", "info", "tiny"),
        "models add": ("models", "add", str(old.home / "models" / "tiny")), "models forget": ("models", "forget", str(old.home / "models" / "tiny")),
        "models get": ("models", "get", str(old.home / "models" / "tiny"), "--name", "copy"),
        "models remove": ("models", "remove", "copy", "--yes"), "chat list": ("chat", "--list"),
        "generate": ("generate", "--adapter", "several-a", "--prompt", "x", *short),
        "evaluate": ("evaluate", "--adapter", "several-a", *measured),
        "evaluate base": ("evaluate", "--model", "tiny", "--data", data, "--few-shot", "0", *measured),
        "export adapter": ("export", "several-a", "--to", "adapter", "--out", str(place / "a")),
        "export merged": ("export", "several-a", "--to", "merged", "--no-gate", "--out", str(place / "b")),
        "merge": ("merge", "several-a", "--out", str(place / "c"), "--backend", backend, "--skip-receiver", "transformers",
                  "--skip-receiver", "mlx-lm", "--skip-receiver", "llama.cpp"),
        "data inspect": ("data", "inspect", data, "--model", "tiny", "--show-mask", "1"),
        "methods": ("methods",), "methods lora": ("methods", "lora"), "doctor": ("doctor",), "train": ("train", *train, "--run", "new"),
        "train full": ("train", *train, "--run", "whole", "--method", "full"),
        "adapters extract": ("adapters", "extract", "whole", "--rank", "2"), "resume": ("resume", "new", "--max-steps", "3"),
        "trash empty": ("trash", "empty", "--yes"),
    }  # fmt: skip
    found: dict[str, Any] = {}
    for name, arguments in tests.items():
        code, out = house.command_line(*arguments, "--json")
        assert code == 0, f"{name}: exit code {code}\n{out}"
        *lines, last = [json.loads(line) for line in out.splitlines()]
        found[name] = shape(last)
        for event in lines:
            kind = f"event {event['event']}" if "event" in event else f"{name}, lines before"
            found[kind] = merged([found[kind], shape(event)]) if kind in found else shape(event)
    answers = house.printed("chat", "--adapter", "several-a", *short, text="say 1\n")
    return {**found, "chat": shape(answers), "error": shape(house.printed("runs", "show", "nobody", code=2))}


def errors(place: Path) -> dict[str, Any]:
    """The exit code of every mistake, and the kind of error that --json tells."""
    old = copied(COMMITS[0], place / "old")
    os.environ |= {"FINETUNE_LOCAL_HOME": str(old.home), "FINETUNE_LOCAL_CONFIG": str(old.config)}
    stands = {"HOME": str(old.home), "DATA": str(old.home / "data" / "orders.jsonl")}
    found = {}
    for name, arguments in ERRORS.items():
        code, out = house.command_line(*[stands.get(one, one) for one in arguments], "--json")
        last = json.loads(out.splitlines()[-1]) if out.strip() else None
        found[name] = {"code": code, "error": last.get("error") if isinstance(last, dict) else None}
    return found


def everything(place: Path) -> dict[str, Any]:
    """All that is recorded."""
    before = {name: os.environ.get(name) for name in ("FINETUNE_LOCAL_HOME", "FINETUNE_LOCAL_CONFIG")}
    try:
        shapes, mistakes = outputs(place / "outputs"), errors(place / "errors")
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.__setitem__(name, value)
    plain = {"commands": commands(), "settings": settings(), "outputs": shapes, "errors": mistakes}
    return dict(json.loads(json.dumps(plain)))


def main() -> None:
    """Record what is new."""
    known = json.loads(RECORDED.read_text("utf-8")) if RECORDED.exists() else {}
    with tempfile.TemporaryDirectory(prefix="interface-") as place:
        for part, now in everything(Path(place)).items():
            known[part] = {**now, **known.get(part, {})} if part != "commands" else now
    RECORDED.write_text(_in_lines(known), "utf-8")


def _in_lines(known: Mapping[str, Any]) -> str:
    """JSON with one parameter, setting, output or mistake a line, so that a change of it reads well."""
    parts = []
    for part, entries in known.items():
        lines = []
        for name, entry in entries.items():
            inner = json.dumps(entry, ensure_ascii=False)
            if part == "commands" and entry:
                inner = "[\n" + ",\n".join(f"   {json.dumps(one, ensure_ascii=False)}" for one in entry) + "]"
            lines.append(f"  {json.dumps(name, ensure_ascii=False)}: {inner}")
        parts.append(f' "{part}": {{\n' + ",\n".join(lines) + "}")
    return "{\n" + ",\n".join(parts) + "}\n"


if __name__ == "__main__":
    main()
