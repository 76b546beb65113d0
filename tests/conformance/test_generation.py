"""Answers on the real backends: equal text by seed, many at once, adapters swapped in mid-conversation and across backends."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from conforming import batch
from conftest import USABLE
from finetune_local.adapter_format import write_adapter
from finetune_local.adapters.attach import attach
from finetune_local.adapters.identity import write_identity
from finetune_local.backend import Backend, Session, backends
from finetune_local.chat.session import ChatSession
from finetune_local.data.conversation import Message
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.inference.engine import Opened, RunningText
from finetune_local.inference.generate import answer, generate, greedy_batch
from finetune_local.inference.sampling import GREEDY, Sampling
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.low_rank.settings import LowRankSettings
from finetune_local.spec.objectives import objectives
from finetune_local.spec.run import TrainingSettings
from finetune_local.spec.tuners import tuners
from finetune_local.system import paths
from finetune_local.system.errors import AdapterError
from made import made_adapter

PROMPTS = (
    "What is the capital of France?",
    "今天天气很好，我们去哪里？",
    "Ada",
    "Write one line for each name: Ada, Grace.",
)
SAMPLED = Sampling(temperature=0.9, top_p=0.95, top_k=50, min_p=0.01, repetition_penalty=1.1, seed=7, max_tokens=24)

both = pytest.mark.skipif(len(USABLE) < 2, reason="needs two backends")


@pytest.fixture(scope="module")
def tokenizer(tiny: Path) -> Tokenizer:
    return Tokenizer.load(tiny)


@pytest.fixture(scope="module")
def prompts(tokenizer: Tokenizer) -> list[list[int]]:
    return [tokenizer.prompt_ids([Message("user", text)]) for text in PROMPTS]


def opened(backend: Backend, folder: Path, tokenizer: Tokenizer, home: paths.Home) -> Opened:
    return Opened(home, ModelFolder.open(folder), backend.load(folder, "fp32"), backend.name)


@both
def test_a_seed_gives_the_same_text_on_every_backend(
    tiny: Path, tokenizer: Tokenizer, prompts: list[list[int]], tmp_path: Path
) -> None:
    adapter = made_adapter(tiny, tmp_path / "a", strength=0.1)
    texts: dict[str, list[str]] = {}
    for name in USABLE:
        session = backends()[name].load(tiny, "fp32")
        attach(session, ModelFolder.open(tiny), tokenizer, adapter, "a")
        texts[name] = []
        for active in (None, "a"):
            session.activate(active)
            texts[name] += [answer(session, tokenizer, prompt, SAMPLED).text for prompt in prompts]
    first, *others = texts.values()
    assert all(other == first for other in others)
    assert len(set(first)) == len(first), "each prompt and adapter says something else"


def test_another_seed_gives_another_text(backend: Backend, tiny: Path, prompts: list[list[int]]) -> None:
    session = backend.load(tiny, "fp32")
    said = {
        tuple(generate(session, prompts[0], SAMPLED.model_copy(update={"seed": seed}), set()))
        for seed in (1, 2, 1, 2, 3)
    }
    assert len(said) == 3


def test_many_at_once_say_what_each_says_alone(
    backend: Backend, tiny: Path, prompts: list[list[int]], tokenizer: Tokenizer
) -> None:
    session = backend.load(tiny, "fp32")
    greedy = Sampling(temperature=0, max_tokens=20)
    alone = [list(generate(session, prompt, greedy, tokenizer.stop_ids)) for prompt in prompts]
    # Stopping where the first row says its fifth token lets rows end at different times.
    stops = {alone[0][4]}
    alone = [list(generate(session, prompt, greedy, stops)) for prompt in prompts]
    assert greedy_batch(session, prompts, 20, stops) == alone
    assert len({len(a) for a in alone}) > 1
    assert not any(stop in row for row in alone for stop in stops)


def test_the_cache_of_a_running_text_changes_nothing(backend: Backend, tiny: Path, prompts: list[list[int]]) -> None:
    session, running = backend.load(tiny, "fp32"), RunningText()
    greedy = Sampling(temperature=0, max_tokens=8)
    first = list(generate(session, prompts[0], greedy, set(), running=running))
    longer = [*prompts[0], *first, *prompts[1]]
    assert np.allclose(running.logits(session, longer), session.logits(longer)[-1], atol=1e-3)
    assert list(generate(session, [*longer, 50], greedy, set(), running=running)) == list(
        generate(session, [*longer, 50], greedy, set())
    )


def test_the_context_ends_an_answer(backend: Backend, tiny: Path, tokenizer: Tokenizer) -> None:
    session, context = backend.load(tiny, "fp32"), ModelFolder.open(tiny).context_length
    prompt = [50] * (context - 3)
    result = answer(session, tokenizer, prompt, GREEDY, context)
    assert result.stop == "stop" or (result.stop, result.tokens) == ("length", 3)
    made = greedy_batch(session, [prompt, [50, 51]], 10, set(), context)
    assert [len(row) for row in made] == [3, 10]


def test_an_adapter_swaps_in_mid_conversation_and_out_again_bit_for_bit(
    backend: Backend, tiny: Path, tokenizer: Tokenizer, home: paths.Home, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, name in enumerate(("formal", "诗人")):
        made_adapter(tiny, home.adapters / name, seed=number)
    chat = ChatSession(opened(backend, tiny, tokenizer, home), Sampling(temperature=0, max_tokens=12))
    session = chat.opened.session
    probe = tokenizer.ids(PROMPTS[1])
    base, alone = session.logits(probe), chat.ask(PROMPTS[0]).result.ids
    for name in ("formal", "诗人"):
        chat.opened.load(name)
    tuned = session.logits(probe)
    milliseconds = {str(name): chat.use(name) for name in ("formal", None, "诗人", "formal", None)}
    with capsys.disabled():
        print(f"\n{backend.name}: swap {max(milliseconds.values()):.2f} ms at the most")  # noqa: T201
    assert np.array_equal(session.logits(probe), base)
    chat.use("诗人")
    assert np.array_equal(session.logits(probe), tuned) and not np.array_equal(tuned, base)
    second = chat.ask(PROMPTS[2]).result
    assert second.prompt_tokens > len(alone), "the new adapter reads what was said before it came"
    chat.use(None)
    chat.clear()
    assert chat.ask(PROMPTS[0]).result.ids == alone


def test_a_dead_or_foreign_adapter_is_refused_and_the_base_stays(
    backend: Backend, tiny: Path, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    session, model = backend.load(tiny, "fp32"), ModelFolder.open(tiny)
    probe = tokenizer.ids(PROMPTS[0])
    base = session.logits(probe)
    with pytest.raises(AdapterError, match="changes nothing"):
        attach(session, model, tokenizer, made_adapter(tiny, tmp_path / "dead", dead=True), "dead")
    assert session.adapters() == []
    assert np.array_equal(session.logits(probe), base)


@both
@pytest.mark.parametrize("method", ["lora", "dora"])
def test_an_adapter_trained_on_one_backend_answers_alike_on_the_others(
    tiny: Path, tokenizer: Tokenizer, prompts: list[list[int]], tmp_path: Path, method: str
) -> None:
    model = ModelFolder.open(tiny)
    settings = LowRankSettings(rank=4, use_dora=method == "dora")
    plan = tuners()["low_rank"].plan(method, settings, model.info())
    for trained_on in USABLE:
        session = backends()[trained_on].load(tiny, "fp32")
        session.attach("new", plan, 3)
        session.prepare("new", TrainingSettings())
        losses = [session.step([batch()], objectives()["sft"], 1e-2).loss for _ in range(10)]
        assert losses[-1] < 0.8 * losses[0]
        folder = tmp_path / trained_on
        write_adapter(folder, plan, session.tensors("new"), model.name)
        write_identity(folder, model.identity(), None, {"method": method})
        here = greedy_batch(session, prompts, 16, tokenizer.stop_ids)
        assert here != _base(session, prompts, tokenizer, "new")
        for name in USABLE:
            other = backends()[name].load(tiny, "fp32")
            attach(other, model, tokenizer, folder, "read")
            assert greedy_batch(other, prompts, 16, tokenizer.stop_ids) == here
            assert answer(other, tokenizer, prompts[0], GREEDY.model_copy(update={"max_tokens": 16})).ids == tuple(
                here[0]
            )


def _base(session: Session, prompts: list[list[int]], tokenizer: Tokenizer, name: str) -> list[list[int]]:
    session.activate(None)
    result = greedy_batch(session, prompts, 16, tokenizer.stop_ids)
    session.activate(name)
    return result
