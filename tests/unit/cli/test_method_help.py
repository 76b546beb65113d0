"""Settings of methods in the help: under the methods that have them; `methods KEY` tells of one alone."""

from __future__ import annotations

import json

import pytest

from finetune_local.cli.main import main
from finetune_local.spec.tuners import presets, tuners
from finetune_local.spec.walk import owners, spec_fields
from finetune_local.system.fields import flag_of
from finetune_local.system.paths import method_page


def run(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def sections(text: str) -> dict[str, str]:
    """The lines under each heading of a help text."""
    found: dict[str, str] = {}
    heading = ""
    for line in text.splitlines():
        if line.endswith(":") and not line.startswith(" "):
            heading = line.removesuffix(":")
        found[heading] = found.get(heading, "") + line + "\n"
    return found


@pytest.mark.parametrize("verb", ["train", "parity"])
def test_every_setting_stands_once_under_the_methods_that_have_it(
    verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run([verb, "--help"], capsys)
    assert code == 0
    parts = sections(out)
    for path, field in spec_fields():
        name = path.rpartition(".")[2]
        (heading,) = [title for title, text in parts.items() if f"\n  {flag_of(name, field)} " in text]
        if path.startswith("method."):
            kind, _, named = heading.partition(" ")
            listed = set(named.removeprefix("but ").split(", "))
            assert set(owners(name)) == (set(presets()) - listed if kind == "Methods" else listed), path
    assert {"Options", "Base model", "Data", "Training", "Method vera"} <= parts.keys()


@pytest.mark.parametrize("key", list(presets()))
def test_one_method_is_told_with_its_settings_and_its_page(key: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["methods", key, "--json"], capsys)
    told = json.loads(out)
    fields = tuners()[presets()[key].tuner].settings.model_fields
    assert code == 0 and told["key"] == key
    assert [row["setting"] for row in told["settings"]] == list(fields)
    assert told["text"] == method_page(key).read_text("utf-8")
    implied = {p.removeprefix("method."): v for p, v in presets()[key].defaults.items() if p.startswith("method.")}
    for row in told["settings"]:
        wanted = implied.get(row["setting"], fields[row["setting"]].default)
        assert row["default"] == (list(wanted) if isinstance(wanted, tuple) else wanted)


def test_one_method_for_people_and_a_name_that_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(["methods", "qlora"], capsys)
    assert code == 0 and "model.precision = 4-bit" in out and "--rank-pattern" in out
    code, _, err = run(["methods", "qlorra"], capsys)
    assert code == 2 and "Did you mean 'qlora'" in err


def test_a_setting_of_other_methods_is_refused_by_naming_them(capsys: pytest.CaptureFixture[str], home: object) -> None:
    code, _, err = run(["--data", "x.jsonl", "--method", "prefix", "--rank", "4"], capsys)
    assert code == 2
    assert "it has no setting 'rank', which belongs to dora, longlora, lora" in err and "prefix_length" in err
