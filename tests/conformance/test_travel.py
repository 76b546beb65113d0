"""What travels beside an adapter's weights: plain transformers and PEFT ask with a run's adapter as the training did."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_local.adapters.attach import attach
from finetune_local.adapters.companions import companions, prompt_setup, tokenizer_of
from finetune_local.adapters.identity import rewrite
from finetune_local.backend import Backend
from finetune_local.data.conversation import Message
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.export.pipeline import export
from finetune_local.models.folder import ModelFolder
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home
from finetune_local.training.run_folder.runs import Run
from tiny import tiny_model
from training import train

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "say 3 好"}]
MESSAGES = [Message("system", "Be brief."), Message("user", "say 3 好")]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A base of the test's own, whose files may be changed."""
    return tiny_model(tmp_path / "the base 基座")


@pytest.fixture
def unspoken(tiny: Path) -> Path:
    """The base without a chat template, whose end-of-text token is not what ends a turn."""
    (tiny / "chat_template.jinja").unlink()
    for name, change in (
        ("tokenizer_config.json", {"eos_token": "<|endoftext|>"}),
        ("generation_config.json", {"eos_token_id": 0}),
        ("config.json", {"eos_token_id": 0}),
    ):
        values = json.loads((tiny / name).read_text("utf-8"))
        (tiny / name).write_text(json.dumps({**values, **change}), "utf-8")
    return tiny


def outside(folder: Path) -> tuple[list[int], list[int]]:
    """Prompt ids and end tokens by transformers alone."""
    from transformers import AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=True)["input_ids"]
    eos = GenerationConfig.from_pretrained(folder).eos_token_id
    return list(ids), eos if isinstance(eos, list) else [eos]


def test_a_run_on_a_base_without_a_template_says_how_it_is_asked(
    home: Home, unspoken: Path, make_run: Callable[..., Run], tmp_path: Path
) -> None:
    in_training = Tokenizer.load(unspoken)
    run = make_run("unspoken", max_steps=3)
    train(run, home)
    out = tmp_path / "alone"
    assert export("adapter", None, run.adapter, out).verification.passed
    for folder in (run.adapter, out):
        ids, ends = outside(folder)
        assert ids == in_training.prompt_ids(MESSAGES)
        assert set(ends) == {0, 2} == in_training.stop_ids and ends[0] == 2, "the turn's own end first"
        assert not companions(unspoken, folder).differs, "it asks as the app asks that base"
    packed = export("adapter", None, run.adapter, tmp_path / "alone.zip", "zip")
    assert packed.verification.passed


def test_a_base_that_says_all_itself_is_copied_as_it_is(home: Home, tiny: Path, make_run: Callable[..., Run]) -> None:
    run = make_run("plain", max_steps=2)
    train(run, home)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        assert (run.adapter / name).read_bytes() == (tiny / name).read_bytes()
    assert tokenizer_of(tiny, run.adapter) is tokenizer_of(tiny)


def test_a_template_that_the_base_was_given_since_is_told_and_not_asked_with(
    home: Home, tiny: Path, make_run: Callable[..., Run], backend: Backend
) -> None:
    before = Tokenizer.load(tiny).prompt_ids(MESSAGES)
    run = make_run("before", max_steps=3)
    train(run, home)
    (tiny / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "utf-8"
    )
    model, notes = ModelFolder.open(tiny), list[str]()
    for folder in (run.adapter, run.checkpoints / "step-000003"):
        notes.clear()
        tokenizer = prompt_setup(tiny, folder).tokenizer
        attach(backend.load(tiny, "fp32"), model, tokenizer, folder, "a", notes.append)
        assert tokenizer.prompt_ids(MESSAGES) == before != prompt_setup(tiny).tokenizer.prompt_ids(MESSAGES)
        assert any("the chat template of" in note and "has changed since" in note for note in notes), notes


def test_runs_of_earlier_versions_have_no_such_files_and_are_held_against_the_base_as_before(
    home: Home, tiny: Path, make_run: Callable[..., Run], backend: Backend
) -> None:
    run = make_run("old", max_steps=3)
    train(run, home)
    for folder in (run.adapter, run.tokenizer):
        for file in folder.iterdir():
            if file.name.startswith(
                ("tokenizer", "chat_template", "generation_config", "special_tokens", "SHA256SUMS")
            ):
                file.unlink()
    run.tokenizer.rmdir()
    rewrite(run.adapter, vocabulary_sha256=None)
    model = ModelFolder.open(tiny)
    attach(backend.load(tiny, "fp32"), model, prompt_setup(tiny, run.adapter).tokenizer, run.adapter, "a")
    (tiny / "chat_template.jinja").write_text("{{ messages }}", "utf-8")
    with pytest.raises(AdapterError, match="in its tokenizer or chat template"):
        attach(backend.load(tiny, "fp32"), ModelFolder.open(tiny), Tokenizer.load(tiny), run.adapter, "a")
