"""Tables of tokens that PEFT saves with an adapter: a vocabulary that grew or shrank, whole copies, single rows. PEFT is the reference,
with the model resized first; the base beside such an adapter keeps its own rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the torch backend is not installed")
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from finetune_local.adapters import manage
from finetune_local.adapters.attach import attach
from finetune_local.adapters.companions import companions, tokenizer_of
from finetune_local.adapters.library import details
from finetune_local.backend import Backend
from finetune_local.export.pipeline import export
from finetune_local.export.verification import receivers
from finetune_local.export.verification.candidates import log_softmax
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.batch import Batch
from finetune_local.system.errors import AdapterError
from finetune_local.system.paths import Home
from receiving import answered_here
from tiny import tiny_model
from torch_tools import PLAIN_PEFT

pytestmark = [
    PLAIN_PEFT,
    pytest.mark.filterwarnings("ignore:.*tie_word_embeddings:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*[Ss]etting `save_embedding_layers` to `True`:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*tied.*:UserWarning"),
]
TEXT = [1, 40, 41, 300, 2]
BASES_ROWS = 384


@dataclass(frozen=True)
class Form:
    """One way in which PEFT saves tables: the rows that the model was resized to (None: not at all), and its config."""

    rows: int | None = 386
    tied: bool = False
    config: dict[str, Any] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(repr(self))


BOTH = ["embed_tokens", "lm_head"]
FORMS = {
    "resized": Form(),
    "resized, tied": Form(tied=True),
    "shrunk to the tokenizer": Form(rows=381, tied=True),
    "both copied": Form(config={"modules_to_save": BOTH}),
    "both copied of a tied model": Form(tied=True, config={"modules_to_save": BOTH}),
    "the embedding copied of a tied model": Form(tied=True, config={"modules_to_save": BOTH[:1]}),
    "the head copied, as many rows": Form(rows=None, config={"modules_to_save": BOTH[1:]}),
    "new rows": Form(config={"trainable_token_indices": [384, 385]}),
    "new rows of a tied model": Form(tied=True, config={"trainable_token_indices": [384, 385]}),
    "old rows of a tied model": Form(rows=None, tied=True, config={"trainable_token_indices": [5, 7]}),
    "updates beside resized tables": Form(config={"target_modules": ["q_proj", *BOTH]}),
    "an update of a tied, resized embedding": Form(tied=True, config={"target_modules": ["q_proj", "embed_tokens"]}),
}


def resized(model: Any, form: Form) -> Any:
    if form.rows is not None:
        model.resize_token_embeddings(form.rows, mean_resizing=False)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Form], tuple[Path, Path, np.ndarray]]:
    """Base, adapter and PEFT's logits of a form."""

    @cache
    def make(form: Form) -> tuple[Path, Path, np.ndarray]:
        place = tmp_path_factory.mktemp("grown")
        base = tiny_model(place / "base", "qwen2", tied=form.tied)
        torch.manual_seed(0)
        model = resized(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), form)
        config = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"}
        tuned = get_peft_model(model, LoraConfig(**{**config, **form.config}))
        with torch.no_grad():
            for parameter in tuned.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.3 * torch.randn_like(parameter) * max(float(parameter.std()), 0.1))
        tuned.save_pretrained(place / "adapter")
        if form.rows is not None and form.rows > BASES_ROWS:
            tokenizer = AutoTokenizer.from_pretrained(base)
            tokenizer.add_tokens([f"<|new {i}|>" for i in range(form.rows - len(tokenizer))], special_tokens=True)
            tokenizer.save_pretrained(place / "adapter")
        fresh = resized(AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), form)
        return base, place / "adapter", logits_of(PeftModel.from_pretrained(fresh, place / "adapter"), form)

    return make


def ids_of(form: Form) -> list[int]:
    return [*TEXT, (form.rows or BASES_ROWS) - 1, 7]


def logits_of(model: Any, form: Form) -> np.ndarray:
    model.eval()
    with torch.no_grad():
        found: np.ndarray = model(input_ids=torch.tensor([ids_of(form)])).logits[0].numpy()
    return found


@pytest.mark.parametrize("name", FORMS)
def test_a_table_is_used_as_peft_uses_it_and_the_base_keeps_its_own(
    backend: Backend, made: Callable[[Form], tuple[Path, Path, np.ndarray]], name: str
) -> None:
    form = FORMS[name]
    base, adapter, wanted = made(form)
    session, model = backend.load(base, "fp32"), ModelFolder.open(base)
    before = session.logits(TEXT)
    attach(session, model, tokenizer_of(base, adapter), adapter, "a")
    ids = ids_of(form)
    got = session.logits(ids)
    assert got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    # An answer's decoder and the scoring of an evaluation have ways of their own to the head.
    decoder = session.decoder()
    decoder.feed([ids[:-2]])
    np.testing.assert_allclose(decoder.feed([ids[-2:]])[0], wanted[-1], atol=1e-4)
    mask = np.array([[False] + [True] * (len(ids) - 1)])
    scored = session.score(Batch(np.array([ids], np.int32), np.array([len(ids)], np.int32), mask))
    expected = log_softmax(wanted)[np.arange(len(ids) - 1), ids[1:]]
    np.testing.assert_allclose(scored, expected, atol=1e-4)
    session.activate(None)
    assert np.array_equal(session.logits(TEXT), before) and before.shape[-1] == BASES_ROWS
    session.activate("a")
    np.testing.assert_array_equal(session.logits(ids), got)
    session.detach("a")
    assert np.array_equal(session.logits(TEXT), before)


@pytest.mark.parametrize("name", FORMS)
def test_merged_it_is_peft_s_model(
    made: Callable[[Form], tuple[Path, Path, np.ndarray]],
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(receivers, "run_receiver", answered_here)
    form = FORMS[name]
    base, adapter, wanted = made(form)
    checked = name == "resized, tied"  # the check of exports is the same for all
    done = export("merged", ModelFolder.open(base), adapter, tmp_path / "merged", backend="torch", verification=checked)
    assert done.verification.passed is (True if checked else None)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert merged.config.vocab_size == (form.rows or BASES_ROWS)
    np.testing.assert_allclose(logits_of(merged, form), wanted, atol=1e-4)
    if form.rows and form.rows > BASES_ROWS:
        ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "merged", adapter))
        assert ours.get_vocab() == theirs.get_vocab() and ours("<|new 3|>")["input_ids"] == [383]


def test_the_library_takes_it_and_says_what_it_brings(
    made: Callable[[Form], tuple[Path, Path, np.ndarray]], home: Home
) -> None:
    base, adapter, _ = made(FORMS["resized"])
    entry = manage.bring_in(adapter, home, "grown")
    assert {file.name for file in adapter.iterdir()} - {"README.md"} <= {file.name for file in entry.folder.iterdir()}
    assert companions(base, entry.folder).sentences == (
        "6 added tokens (<|new 0|>, <|new 1|>, <|new 2|>, <|new 3|> and 2 more)",
    )
    assert details("grown", entry.folder, "imported").facts.parameters > 2 * 386 * 64


def test_rows_that_were_not_saved_are_named(
    made: Callable[[Form], tuple[Path, Path, np.ndarray]], tiny: Path, tmp_path: Path
) -> None:
    form = Form(config={"target_modules": ["q_proj", "embed_tokens"]})
    base, adapter, _ = made(form)
    with pytest.raises(
        AdapterError, match="embedding has 386 rows, but only the base's 384 rows of the head were saved"
    ):
        export("merged", ModelFolder.open(base), adapter, tmp_path / "m", verification=False)
