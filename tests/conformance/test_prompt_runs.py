"""Prompts from a run to its answers: stopped and gone on with, published, chatted with, evaluated by vote, not merged."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.backend import Backend
from finetune_local.chat.session import ChatSession
from finetune_local.data.conversation import Message, Source
from finetune_local.evaluation import compare
from finetune_local.evaluation.rows import Row
from finetune_local.export.weights import MergedWeights
from finetune_local.inference.engine import Opened, open_chat
from finetune_local.inference.generate import greedy_batch
from finetune_local.inference.sampling import GREEDY
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.tuners.prompt import ROWS
from finetune_local.system import checksums
from finetune_local.system.errors import FinetuneError
from finetune_local.system.paths import Home
from finetune_local.training.setup import Ready
from training import assert_same, losses, result, train

METHODS: list[dict[str, Any]] = [
    {"key": "prompt", "prompt_length": 5, "prompt_text": "说 ok"},
    {"key": "prompt-ensemble", "prompt_length": 5, "prompt_members": 3},
    {"key": "p-tuning", "prompt_length": 5, "prompt_encoder": "lstm", "prompt_encoder_width": 16},
]


@pytest.mark.parametrize("method", METHODS, ids=[method["key"] for method in METHODS])
def test_a_stopped_run_goes_on_and_its_result_answers(
    make_run: Any, home: Home, tiny: Path, backend: Backend, method: dict[str, Any]
) -> None:
    whole = make_run("whole", method, learning_rate=2e-2)
    told = losses(train(whole, home))
    assert np.mean(list(told.values())[-3:]) < 0.9 * told[1]
    parts, steps = make_run("parts", method, learning_rate=2e-2), []
    train(parts, home, stop=lambda: len(steps) >= 5 or bool(steps.append(1)))
    train(parts, home)
    assert_same(result(parts), result(whole))
    plan, tensors = read_adapter(whole.adapter)
    assert list(tensors) == [ROWS], "what is published is a prompt, whatever made it"

    opened = open_chat(home, str(tiny), ["whole"], backend=backend.name, precision="fp32")
    assert opened.session.ensemble_size == method.get("prompt_members", 1)
    chat = ChatSession(opened, GREEDY.model_copy(update={"max_tokens": 6}))
    pieces: list[str] = []
    first = chat.ask("say 1", pieces.append).result
    assert "".join(pieces) == first.text
    second = chat.ask("say 2").result
    chat.use(None)
    chat.clear()
    chat.use("whole")
    assert (chat.ask("say 1").result.ids, chat.ask("say 2").result.ids) == (first.ids, second.ids)

    with pytest.raises(FinetuneError, match=r"a prompt consists of vectors before the text.*Use it as an adapter"):
        MergedWeights(ModelFolder.open(tiny), whole.adapter)
    assert plan.method == method["key"]


def test_an_ensemble_keeps_to_the_budget_of_tokens(make_run: Any, home: Home) -> None:
    asked: list[int] = []

    def change(ready: Ready) -> None:
        step = ready.session.step_many

        def seen(requests: Any) -> Any:
            asked.extend(batch.ids.size for request in requests for batch in request.batches)
            return step(requests)

        ready.session.step_many = seen  # type: ignore[method-assign]

    train(make_run("whole", METHODS[1], max_steps=1, batch_size=8, micro_batch_tokens=300), home, change=change)
    whole, asked = asked, []
    train(make_run("alone", METHODS[0], max_steps=1, batch_size=8, micro_batch_tokens=300), home, change=change)
    assert max(whole) <= 100 < max(asked) <= 300 and sum(whole) <= sum(asked)


def test_evaluation_scores_the_mean_and_counts_the_vote(
    make_run: Any, home: Home, tiny: Path, backend: Backend
) -> None:
    run = make_run("vote", METHODS[1], max_steps=1)
    train(run, home)
    plan, tensors = read_adapter(run.adapter)
    tensors[ROWS] = np.random.default_rng(2).normal(0, 3, tensors[ROWS].shape).astype(np.float32)
    tensors[ROWS][2] = tensors[ROWS][1]  # two agree against the first
    write_adapter(run.adapter, plan, tensors, "tiny")
    checksums.write(run.adapter)
    opened = open_chat(home, str(tiny), ["vote"], backend=backend.name, precision="fp32")
    rows = [Row((Message("user", f"say {i}"),), f"好 {i % 5} ok", Source("f", i)) for i in range(6)]
    found = compare.run(opened, rows, (), adapter="vote", max_tokens=8).tuned
    assert found
    alone = [_alone(opened, rows, tensors[ROWS][member], member) for member in range(3)]
    for i in range(len(rows)):
        said = [answers[i] for answers, _ in alone]
        assert found.answers[i] == Counter(said).most_common(1)[0][0] == said[1]
    np.testing.assert_allclose(found.nll, np.mean([nll for _, nll in alone], axis=0), rtol=1e-4)
    assert all(one != other for one, other in zip(alone[0][0], alone[1][0], strict=True)), "else a vote proves nothing"


def _alone(opened: Opened, rows: list[Row], prompt: np.ndarray, member: int) -> tuple[list[str], np.ndarray]:
    """Answers and losses of one member as a prompt of its own."""
    from finetune_local.spec.plan import AdapterPlan, Target
    from finetune_local.spec.tuners.prompt import PromptSettings

    name = f"alone {member}"
    plan = AdapterPlan("prompt", "prompt", PromptSettings(prompt_length=len(prompt)), (Target("", prompt.shape[1], 0),))
    opened.session.attach(name, plan, 1, {ROWS: prompt})
    opened.adapters[name] = Path(name)
    found = compare.run(opened, rows, (), adapter=name, max_tokens=8).tuned
    assert found and greedy_batch(opened.session, [[5]], 1, set())
    return found.answers, found.nll
