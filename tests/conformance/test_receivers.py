"""Exports opened by the programs they are for, in processes of their own; and exports that are broken on purpose, which only
such a program can notice."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_local.export.engines import llama
from finetune_local.export.pipeline import export
from finetune_local.export.targets.merged import write_merged
from finetune_local.export.verification import receivers as verification
from finetune_local.export.verification.compare import F32
from finetune_local.export.verification.receivers import FOLDER_RECEIVERS, MLX_LM, TRANSFORMERS, receivers_of
from finetune_local.export.verification.verify import verify
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import VerificationFailed
from made import made_adapter
from receiving import answered_here
from tiny import CHATML, tiny_model

needs_torch = pytest.mark.skipif(importlib.util.find_spec("torch") is None, reason="torch is not installed")
needs_mlx_lm = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="mlx-lm is not installed")
needs_llama = pytest.mark.skipif(not llama.available(), reason="xllamacpp is not installed")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers and mlx-lm answer in this process; see tests/receiving.py."""
    monkeypatch.setattr(verification, "run_receiver", answered_here)


def change(path: Path, **values: Any) -> None:
    found = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**found, **values}), "utf-8")


def ended_elsewhere(folder: Path, template: bool = True, family: str = "qwen2") -> Path:
    """A base whose end-of-text token is not what its chat template puts after an answer."""
    base = tiny_model(folder, family)
    change(base / "tokenizer_config.json", eos_token="<|endoftext|>", bos_token=None)
    change(base / "generation_config.json", eos_token_id=0)
    change(base / "config.json", eos_token_id=0)
    if not template:
        (base / "chat_template.jinja").unlink()
    return base


@needs_torch
@needs_mlx_lm
def test_a_folder_is_opened_by_both_in_processes_without_the_app(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    heard = []

    def listening(*asked: Any) -> Any:
        heard.append(real(*asked))
        return heard[-1]

    real = verification.run_receiver
    monkeypatch.setattr(verification, "run_receiver", listening)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "evil"))
    (tmp_path / "evil" / "transformers").mkdir(parents=True)
    (tmp_path / "evil" / "transformers" / "__init__.py").write_text(
        "raise SystemExit('imported what lay about')", "utf-8"
    )
    done = export("merged", ModelFolder.open(tiny), made_adapter(tiny, tmp_path / "a", strength=0.1), tmp_path / "m 合")
    assert done.verification.passed and [check.name for check in done.verification.receivers] == [
        "transformers",
        "mlx-lm",
    ]
    assert [answer.modules for answer in heard] == [[], []] and all(answer.version for answer in heard)
    for check in done.verification.receivers:
        assert check.passed and check.chats >= 13 and check.stops >= 1 and check.tokens > 4
        assert check.kl_mean is not None and check.kl_mean < 1e-5
    told = done.as_json()["gate"]["receivers"]
    assert [(check["name"], check["passed"]) for check in told] == [("transformers", True), ("mlx-lm", True)]


@needs_torch
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("template", [True, False], ids=["own template", "no template"])
def test_a_base_that_ends_elsewhere_stops_where_the_app_does(template: bool, tmp_path: Path) -> None:
    base = ended_elsewhere(tmp_path / "base", template)
    adapter = made_adapter(base, tmp_path / "a", strength=0.1)
    done = export("merged", ModelFolder.open(base), adapter, tmp_path / "m")
    assert done.verification.passed and all(check.stops == 2 for check in done.verification.receivers if check.passed)


Breaking = Callable[[Path], None]


def ends_at_the_bases_end(out: Path) -> None:
    change(out / "generation_config.json", eos_token_id=0)


def ends_too_early(out: Path) -> None:
    change(out / "generation_config.json", eos_token_id=[0, 2, 7])


def other_theta(out: Path) -> None:
    config = json.loads((out / "config.json").read_text("utf-8"))
    change(out / "config.json", rope_parameters={**config["rope_parameters"], "rope_theta": 500.0})


def other_old_theta(out: Path) -> None:
    change(out / "config.json", rope_theta=10_000.0)


def other_history(out: Path) -> None:
    """The same words, the same first turn; only what comes after an answer differs."""
    text = CHATML.replace(
        "'<|im_end|>\n' }}",
        "'<|im_end|>' }}{% if not loop.last or message['role'] == 'user' %}{{ '\n' }}{% endif %}",
        1,
    )
    (out / "chat_template.jinja").write_text(text, "utf-8", newline="\n")


def thoughts_dropped(out: Path) -> None:
    text = CHATML.replace("message['content'] +", "message['content'].split('</think>')[-1] +", 1)
    (out / "chat_template.jinja").write_text(text, "utf-8", newline="\n")


def other_cut(out: Path) -> None:
    values = json.loads((out / "tokenizer.json").read_text("utf-8"))
    values["model"]["merges"] = values["model"]["merges"][: len(values["model"]["merges"]) // 2]
    (out / "tokenizer.json").write_text(json.dumps(values), "utf-8")


BROKEN: dict[str, tuple[Breaking, str, str]] = {
    "eos in transformers": (
        ends_at_the_bases_end,
        "transformers",
        r"transformers does not stop at “<\|im_end\|>” \(id 2\)",
    ),
    "more ends": (ends_too_early, "transformers", r"transformers stops at .*\(id 7\), where the app continues"),
    "more ends in mlx-lm": (ends_too_early, "mlx-lm", r"mlx-lm stops at .*\(id 7\), where the app continues"),
    "theta": (other_theta, "transformers", "greedy text: transformers|probabilities: transformers"),
    "theta as mlx-lm reads it": (other_old_theta, "mlx-lm", "greedy text: mlx-lm|probabilities: mlx-lm"),
    "template": (other_history, "transformers", "chat template: transformers: a chat with “an answer at the end”"),
    "template in mlx-lm": (thoughts_dropped, "mlx-lm", "chat template: mlx-lm: a chat with “thoughts in the text”"),
    "cut": (other_cut, "transformers", r"token ids: transformers: the text “.*they differ from token \d"),
}


@needs_torch
@needs_mlx_lm
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("case", list(BROKEN))
def test_a_broken_folder_is_noticed_by_who_opens_it(case: str, tmp_path: Path) -> None:
    breaking, receiver, message = BROKEN[case]
    base = ended_elsewhere(tmp_path / "base")
    adapter = made_adapter(base, tmp_path / "a", strength=0.1)
    out = tmp_path / "m"
    write_merged(ModelFolder.open(base), adapter, out)
    breaking(out)
    others = {TRANSFORMERS.name, MLX_LM.name} - {receiver}
    with pytest.raises(VerificationFailed, match=message):
        verify(FOLDER_RECEIVERS, out, F32, ModelFolder.open(base), adapter, skip=others)


@needs_torch
@pytest.mark.usefixtures("quick")
def test_a_receiver_that_is_left_out_or_not_there_is_never_passed(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = export("merged", ModelFolder.open(tiny), None, tmp_path / "a", skip=["mlx-lm"])
    assert done.verification.passed and done.verification.receivers[1].passed is None
    assert done.verification.receivers[1].reason == "not verified: skipped as requested"
    monkeypatch.undo()
    absent = [replace(receiver, needs=(f"no_{receiver.name}",)) for receiver in (TRANSFORMERS, MLX_LM)]
    checked = verify(receivers_of(absent), tmp_path / "a", F32, ModelFolder.open(tiny), None)
    assert checked.passed is None and checked.reason == "not verified: no_transformers is not installed"
    assert checked.receivers[1].reason == "not verified: no_mlx-lm is not installed"


@needs_torch
@needs_mlx_lm
@pytest.mark.usefixtures("quick")
def test_what_mlx_lm_cannot_hold_is_told_and_the_folder_stands(tmp_path: Path) -> None:
    base = tiny_model(tmp_path / "base", "gemma2", tied=False)
    done = export("merged", ModelFolder.open(base), None, tmp_path / "m")
    first, second = done.verification.receivers
    assert first.passed and second.passed is None
    assert second.reason.startswith("not verified: mlx-lm's class for gemma2 has no separate head")


@needs_torch
@needs_mlx_lm
@pytest.mark.usefixtures("quick")
def test_a_template_that_mlx_lm_asks_in_its_own_way_is_told(tmp_path: Path) -> None:
    """mlx-lm tells every template whether to think, by what it finds in the vocabulary."""
    base = tiny_model(tmp_path / "base", "qwen2")
    thinking = "{% if enable_thinking is defined and not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    template = CHATML.replace("assistant\n' }}{% endif %}", "assistant\n' }}" + thinking + "{% endif %}")
    (base / "chat_template.jinja").write_text(template, "utf-8", newline="\n")
    done = export("merged", ModelFolder.open(base), None, tmp_path / "m")
    first, second = done.verification.receivers
    assert done.verification.passed and first.passed and second.passed is False
    assert "enable_thinking=False, so the prompt differs" in second.reason


@needs_llama
def test_a_gguf_with_another_template_is_noticed(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from gguf import GGUFWriter

    real = GGUFWriter.add_chat_template
    other = CHATML.replace("message['content'] +", "message['content'] | trim +", 1)
    monkeypatch.setattr(GGUFWriter, "add_chat_template", lambda self, _: real(self, other))
    with pytest.raises(VerificationFailed, match="chat template: the file's own: a chat with “spaces around texts”"):
        export("gguf", ModelFolder.open(tiny), None, tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


@needs_llama
def test_a_gguf_of_a_base_that_ends_elsewhere_stops_where_the_app_does(tmp_path: Path) -> None:
    base = ended_elsewhere(tmp_path / "base")
    done = export("gguf", ModelFolder.open(base), None, tmp_path / "m.gguf", "f32")
    (check,) = done.verification.receivers
    assert check.passed and check.stops == 2 and check.chats >= 8


def special_beyond(folder: Path, family: str) -> Path:
    """A base with a special token that no text has and that has no row, as the text models of Gemma 3 keep one."""
    base = tiny_model(folder, family)
    values = json.loads((base / "tokenizer.json").read_text("utf-8"))
    values["added_tokens"].append({**values["added_tokens"][0], "id": 384, "content": "<image>", "special": True})
    (base / "tokenizer.json").write_text(json.dumps(values), "utf-8")
    return base


@needs_torch
@pytest.mark.usefixtures("quick")
def test_a_folder_with_a_special_token_that_has_no_row_passes(tmp_path: Path) -> None:
    done = export("merged", ModelFolder.open(special_beyond(tmp_path / "base", "gemma3_text")), None, tmp_path / "m")
    assert done.verification.passed and done.verification.receivers[0].passed


@needs_llama
def test_a_gguf_of_a_base_with_a_special_token_that_has_no_row_passes(tmp_path: Path) -> None:
    done = export(
        "gguf", ModelFolder.open(special_beyond(tmp_path / "base", "llama")), None, tmp_path / "m.gguf", "f32"
    )
    assert done.verification.passed and done.verification.receivers[0].passed
