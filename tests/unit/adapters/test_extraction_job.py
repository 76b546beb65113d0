"""The job that extracts an adapter from a full fine-tune."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune_local.adapter_format import write_adapter
from finetune_local.adapters import library, manage
from finetune_local.adapters.extraction import job_extract
from finetune_local.adapters.extraction.job_extract import ExtractionRequest
from finetune_local.adapters.identity import write_identity
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.run import parse_spec, plan_method
from finetune_local.spec.tuners import tuner_of
from finetune_local.system.errors import AdapterError, SpecError, Stopped
from finetune_local.system.paths import Home
from tiny import tiny_model


class Tell:
    """What a job tells, and a wish to stop."""

    def __init__(self, stop_at: str = "") -> None:
        self.texts: list[str] = []
        self.notes: list[str] = []
        self._stop_at = stop_at

    def __call__(self, text: str, done: float | None = None) -> None:
        self.texts.append(text)
        if text == self._stop_at:
            raise Stopped("stopped")

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture
def whole(home: Home) -> Home:
    """A home with a base and an imported full fine-tune of it, called `mine`."""
    model = ModelFolder.open(tiny_model(home.models / "base"), "base")
    plan = plan_method(parse_spec({"method": "full"}, "test").method, model.info())
    rng = np.random.default_rng(0)
    tensors = {
        name: model.read(name.removeprefix("base_model.model.")) + rng.normal(0, 0.01, shape).astype(np.float32)
        for name, shape in tuner_of(plan).shapes(plan).items()
    }
    write_adapter(home.adapters / "mine", plan, tensors, "base")
    write_identity(home.adapters / "mine", model.identity(), "a run elsewhere", {"method": "full"})
    return home


def test_it_is_named_after_its_source_and_says_where_it_is_from(whole: Home) -> None:
    tell = Tell()
    result = job_extract.run({"adapter": "mine", "rank": 4}, whole, tell)
    assert result["name"] == "mine-lora" and 0 < result["kept"] < 1 and "extracting" in tell.texts
    facts = next(facts for facts in library.listing(whole) if facts.name == "mine-lora")
    assert facts.rank == 4 and facts.parameters == result["parameters"] and not facts.whole
    assert facts.extracted_from["adapter"] == "mine"
    assert manage.free_name("mine-lora", whole) == "mine-lora-2"
    with pytest.raises(AdapterError, match="already"):
        job_extract.run({"adapter": "mine"}, whole, tell)


def test_stopping_leaves_nothing(whole: Home) -> None:
    with pytest.raises(Stopped):
        job_extract.run({"adapter": "mine"}, whole, Tell(stop_at="extracting"))
    assert [path.name for path in whole.adapters.iterdir()] == ["mine"]


@pytest.mark.parametrize(
    ("wanted", "error", "said"),
    [
        (ExtractionRequest(), SpecError, "either"),
        (ExtractionRequest(adapter="mine", name="a", out=Path("b")), SpecError, "one of them"),
        (ExtractionRequest(adapter="mine", rank=4, energy=0.9), SpecError, "both set, but"),
        (ExtractionRequest(adapter="nothing"), AdapterError, "no adapter"),
        (ExtractionRequest(adapter="mine", name="a/b"), AdapterError, "in folder names"),
    ],
)
def test_mistakes_are_sentences(whole: Home, wanted: ExtractionRequest, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        job_extract.extract(wanted, whole, lambda *_: None)


def test_what_is_typed_becomes_numbers_or_a_sentence() -> None:
    assert job_extract.size(" 8 ", "") == (8, None) and job_extract.size("", "0.9") == (None, 0.9)
    for rank, energy in (("8.5", ""), ("", "much")):
        with pytest.raises(SpecError, match="should be"):
            job_extract.size(rank, energy)
