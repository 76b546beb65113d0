"""Prompts on each backend: where they begin, what an ensemble's members get and say, the encoder folded, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conforming import ROWS as TEXTS
from conforming import SFT, batch, gradients_of, log_softmax, make_plan
from conftest import USABLE
from finetune_local.adapter_format import read_adapter, write_adapter
from finetune_local.adapters.identity import check_shapes
from finetune_local.backend import Backend, Session, backends
from finetune_local.data.tokenizers.tokenizer import Tokenizer
from finetune_local.inference.generate import answer, greedy_batch
from finetune_local.inference.sampling import GREEDY, Sampling
from finetune_local.models.folder import ModelFolder
from finetune_local.spec.defaults import Facts, resolve
from finetune_local.spec.initial import generator
from finetune_local.spec.numerics.prompt_encoder import EMBEDDING, NumpyFunctions, encode
from finetune_local.spec.plan import AdapterPlan, BaseInfo, Target, WeightInfo
from finetune_local.spec.run import TrainingSettings, parse_spec
from finetune_local.spec.tuners import Source, tuner_of, tuners
from finetune_local.spec.tuners.prompt import ROWS, PromptSettings
from finetune_local.system.errors import AdapterError, SpecError
from finetune_local.system.paths import Home
from finetune_local.training import check
from tiny import HIDDEN, tiny_model

N = 6
TEXT = list(TEXTS[0])
both = pytest.mark.skipif(len(USABLE) < 2, reason="needs two backends")


def plan_of(folder: Path, method: str = "prompt", **settings: Any) -> AdapterPlan:
    return make_plan(parse_spec({"method": {"key": method, "prompt_length": N, **settings}}, "test"), folder)


def random_rows(plan: AdapterPlan, spread: float = 0.15) -> dict[str, np.ndarray]:
    shape = tuner_of(plan).shapes(plan)[ROWS]
    return {ROWS: (np.random.default_rng(4).normal(size=shape) * spread).astype(np.float32)}


def trained(
    session: Session, plan: AdapterPlan, steps: int, rate: float, start: Any = None, **training: Any
) -> list[float]:
    """Attach as "a", train on TEXTS; the losses."""
    session.attach("a", plan, 1, start)
    session.prepare("a", TrainingSettings(**training))
    return [session.step([batch()], SFT, rate).loss for _ in range(steps)]


@both
@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma", "gemma2", "gemma3_text"])
def test_both_backends_answer_alike_where_embeddings_are_scaled_and_where_heads_are_tied(
    family: str, tmp_path: Path
) -> None:
    folder = tiny_model(tmp_path / family, family)
    plan, starts, shown = plan_of(folder), {}, {}
    for name in ("torch", "mlx"):
        session = backends()[name].load(folder, "fp32")
        session.attach("own", plan, 1)
        starts[name] = session.tensors("own")[ROWS]
        session.attach("random", plan, 1, random_rows(plan, 0.5))
        shown[name] = session.logits(TEXT)
    np.testing.assert_allclose(starts["mlx"], starts["torch"], atol=1e-6)
    np.testing.assert_allclose(shown["mlx"], shown["torch"], atol=1e-4)


def test_a_prompt_of_embeddings_is_the_text_itself(backend: Backend, tmp_path: Path) -> None:
    """Rows that begin as a text's embeddings give what the text before the text gives, scaled or not."""
    for tuner in ("llama", "gemma"):
        folder = tiny_model(tmp_path / tuner, tuner)
        tokenizer, session = Tokenizer.load(folder), backend.load(folder, "fp32")
        before = tokenizer.ids("今天天气很好 ok")
        expected = session.logits([*before, *TEXT])[len(before) :]
        plan = plan_of(folder, prompt_length=len(before), prompt_text="今天天气很好 ok")
        session.attach("a", plan, 1, ids=tokenizer.ids)
        np.testing.assert_allclose(session.logits(TEXT), expected, atol=2e-5, err_msg=tuner)


def test_where_a_prompt_begins(tiny: Path) -> None:
    tuner, weight = tuners()["prompt"], ModelFolder.open(tiny).read("model.embed_tokens.weight")
    source = Source(lambda _: weight, lambda text: [len(word) for word in text.split()], embedding_scale=8.0)

    def begin(seed: int = 1, **settings: Any) -> np.ndarray:
        return tuner.initial(plan_of(tiny, **settings), seed, source)[ROWS]

    np.testing.assert_array_equal(begin(prompt_text="a bb ccc dddd"), 8 * weight[[1, 2, 3, 4, 1, 2]])
    np.testing.assert_array_equal(begin(prompt_text="a bb ccc dddd", prompt_length=3), 8 * weight[[1, 2, 3]])
    drawn = begin() / 8
    assert all((drawn[i] == weight).all(axis=1).any() for i in range(N)), "each row is that of a token"
    assert len(np.unique(drawn, axis=0)) == N
    assert not np.array_equal(begin(seed=2), begin())
    np.testing.assert_array_equal(begin(), begin(prompt_init="vocabulary"))
    spread = begin(prompt_init="random", prompt_length=200).std()
    assert spread == pytest.approx(8 * weight.std(), rel=0.02)
    prompts = begin(prompt_members=3)
    assert prompts.shape == (3, N, HIDDEN) and len(np.unique(prompts.reshape(-1, HIDDEN), axis=0)) > 2 * N
    np.testing.assert_array_equal(prompts[0], begin())
    with pytest.raises(SpecError, match=r"--prompt-text ' ' has no tokens.*Write some words"):
        begin(prompt_text=" ")


def test_rows_that_belong_to_no_token_are_not_drawn(tiny: Path) -> None:
    weight = np.zeros((384, HIDDEN), np.float32)
    weight[100:103] = 1 + np.arange(3)[:, None]
    found = tuners()["prompt"].initial(plan_of(tiny), 1, Source(lambda _: weight))[ROWS]
    assert set(found[:, 0]) <= {1, 2, 3}


@pytest.mark.parametrize("checkpointing", [False, True])
def test_members_train_as_each_would_alone(backend: Backend, tiny: Path, checkpointing: bool) -> None:
    plan = plan_of(tiny, "prompt-ensemble", prompt_members=3)
    together, start = backend.load(tiny, "fp32"), random_rows(plan)
    settings: dict[str, Any] = {"max_gradient_norm": 0, "gradient_checkpointing": checkpointing}
    told = trained(together, plan, 6, 2e-2, start, **settings)
    losses = []
    for member in range(3):
        alone = backend.load(tiny, "fp32")
        losses.append(trained(alone, plan_of(tiny), 6, 2e-2, {ROWS: start[ROWS][member]}, max_gradient_norm=0))
        np.testing.assert_allclose(together.tensors("a")[ROWS][member], alone.tensors("a")[ROWS], atol=2e-5)
    np.testing.assert_allclose(told, np.mean(losses, axis=0), atol=1e-5)


def test_members_score_by_their_mean_and_answer_side_by_side(backend: Backend, tiny: Path) -> None:
    plan = plan_of(tiny, "prompt-ensemble", prompt_members=3)
    session, rows = backend.load(tiny, "fp32"), random_rows(plan)
    for member in range(3):
        session.attach(f"alone {member}", plan_of(tiny), 1, {ROWS: rows[ROWS][member]})
    session.attach("all", plan, 1, rows)
    assert (session.ensemble_size, session.virtual_tokens) == (3, N)
    scored, decoder = session.score(batch()), session.decoder()
    steps = [decoder.feed([TEXT, TEXT, TEXT, TEXT[:3]]), decoder.feed([[9], [9], [9], [9]])]
    scores = []
    for member in range(3):
        session.activate(f"alone {member}")
        assert session.ensemble_size == 1
        scores.append(session.score(batch()))
        expected = session.logits([*TEXT, 9])[-2:]
        np.testing.assert_allclose([step[member] for step in steps], expected, atol=1e-4)
    np.testing.assert_allclose(scored, np.mean(scores, axis=0), atol=1e-5)
    session.activate("alone 0")  # row 3 is under member 3 % 3
    np.testing.assert_allclose(steps[1][3], session.logits([*TEXT[:3], 9])[-1], atol=1e-4)
    session.activate(None)
    assert (session.ensemble_size, session.virtual_tokens) == (1, 0)


@pytest.mark.parametrize(("order", "winner"), [("abb", "b"), ("aba", "a"), ("ab", "a"), ("abcc", "c"), ("abc", "a")])
def test_the_most_frequent_answer_is_taken(backend: Backend, tiny: Path, order: str, winner: str) -> None:
    """Of equally frequent ones the lowest member's; for one prompt and for many, which share a pass."""
    tokenizer, session = Tokenizer.load(tiny), backend.load(tiny, "fp32")
    one = {
        name: rows * 20 for name, rows in zip("abc", random_rows(plan_of(tiny, prompt_members=3))[ROWS], strict=True)
    }
    prompts = [tokenizer.ids(text) for text in ("What is the capital of France?", "今天", "Ada and Grace", "2 + 2 =")]
    said = {}
    for name in set(order):
        session.attach(name, plan_of(tiny), 1, {ROWS: one[name]})
        said[name] = greedy_batch(session, prompts, 8, tokenizer.stop_ids)
    assert all(len({tuple(said[name][i]) for name in said}) == len(said) for i in range(len(prompts)))
    plan = plan_of(tiny, "prompt-ensemble", prompt_members=len(order))
    session.attach("all", plan, 1, {ROWS: np.stack([one[name] for name in order])})
    assert greedy_batch(session, prompts, 8, tokenizer.stop_ids) == said[winner]
    greedy, compared = GREEDY.model_copy(update={"max_tokens": 8}), 0
    for i, prompt in enumerate(prompts):
        if len({tokenizer.text(said[name][i]) for name in said}) < len(said):
            continue  # halves of characters: other ids, but the same marks to a reader
        pieces: list[str] = []
        result = answer(session, tokenizer, prompt, greedy, on_text=pieces.append)
        assert (list(result.ids), [result.text], result.stop) == (said[winner][i], pieces, "length")
        compared += 1
    assert compared


def test_answers_that_read_the_same_are_the_same(backend: Backend, tiny: Path) -> None:
    plan = plan_of(tiny, "prompt-ensemble", prompt_members=3)
    session = backend.load(tiny, "fp32")
    session.attach("all", plan, 1, {ROWS: random_rows(plan)[ROWS] * 20})
    by_ids = greedy_batch(session, [TEXT], 8, set())[0]
    seen: list[tuple[int, ...]] = []
    greedy_batch(session, [TEXT], 8, set(), reading=lambda ids: seen.append(tuple(ids)))
    assert len(set(seen)) == 3 and tuple(by_ids) == seen[0]
    assert greedy_batch(session, [TEXT], 8, set(), reading=lambda ids: tuple(ids) != seen[0])[0] == list(seen[1])


def test_a_sampled_vote_follows_its_seed_and_an_interrupted_one_is_taken_on_what_was_said(
    backend: Backend, tiny: Path
) -> None:
    plan, tokenizer = plan_of(tiny, "prompt-ensemble", prompt_members=3), Tokenizer.load(tiny)
    session = backend.load(tiny, "fp32")
    session.attach("all", plan, 1)
    draws = [Sampling(temperature=1.0, seed=seed, max_tokens=6) for seed in (1, 1, 2)]
    first, again, other = [answer(session, tokenizer, TEXT, sampling).ids for sampling in draws]
    assert first == again != other
    asked = iter([False, False, True, True])
    stopped = answer(session, tokenizer, TEXT, GREEDY, interrupted=lambda: next(asked))
    assert (stopped.stop, stopped.tokens) == ("interrupted", 2)


def test_a_prompt_takes_its_positions_from_the_answer(backend: Backend, tiny: Path) -> None:
    tokenizer, session = Tokenizer.load(tiny), backend.load(tiny, "fp32")
    session.attach("a", plan_of(tiny), 1)
    context = ModelFolder.open(tiny).context_length
    long = [50] * (context - N - 3)
    assert len(greedy_batch(session, [long], 10, set(), context)[0]) == 3
    with pytest.raises(SpecError, match=rf"context is {context}, of which this adapter uses {N}"):
        answer(session, tokenizer, [50] * (context - N), GREEDY, context)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_an_encoder_learns_at_the_automatic_rate_and_folds_into_its_prompt(
    backend: Backend, tiny: Path, tmp_path: Path, kind: str
) -> None:
    spec = parse_spec({"method": {"key": "p-tuning", "prompt_encoder": kind}, "training": {"max_steps": 60}}, "test")
    rate = resolve(spec, Facts("cpu", 1 << 40, HIDDEN, 0, 1, 100, 100))[0].training.learning_rate
    plan, session = plan_of(tiny, "p-tuning", prompt_encoder=kind), backend.load(tiny, "fp32")
    losses = trained(session, plan, 60, rate or 0)
    assert np.mean(losses[-3:]) < 0.75 * losses[0], losses
    shown, tensors = session.logits(TEXT), session.tensors("a")
    folded, rows = tuner_of(plan).fold(plan, tensors)
    write_adapter(tmp_path, folded, rows, "tiny")
    assert rows.keys() == {ROWS}
    read, again = read_adapter(tmp_path)
    session.attach("b", read, 1, again)
    np.testing.assert_allclose(session.logits(TEXT), shown, atol=2e-5)
    write_adapter(tmp_path / "checkpoint", plan, tensors, "tiny")
    assert read_adapter(tmp_path / "checkpoint")[0] == plan


def test_the_lstms_gradients_are_the_slopes_of_the_loss(backend: Backend, tiny: Path) -> None:
    plan, session = (
        plan_of(tiny, "p-tuning", prompt_encoder="lstm", prompt_encoder_width=24),
        backend.load(tiny, "fp32"),
    )
    trained(session, plan, 10, 3e-3)
    tensors, gradients = session.tensors("a"), gradients_of(session, batch())
    session.attach("moved", plan, 1, tensors)

    def loss(move: dict[str, np.ndarray], sign: int) -> float:
        session.detach("moved")
        session.attach(
            "moved", plan, 1, {n: t + np.float32(sign) * move.get(n, np.float32(0)) for n, t in tensors.items()}
        )
        return -float(session.score(batch()).astype(np.float64).mean())

    for name, gradient in gradients.items():
        length = float(np.linalg.norm(gradient))
        assert length > 1e-5, name
        step = (gradient * (2e-2 / length)).astype(np.float32)
        slope = (loss({name: step}, 1) - loss({name: step}, -1)) / 4e-2
        assert slope == pytest.approx(length, rel=0.05, abs=3e-4), name


@both
def test_the_lstm_trains_alike_on_both_backends(tiny: Path) -> None:
    plan = plan_of(tiny, "p-tuning", prompt_encoder="lstm")
    curves = [trained(backends()[name].load(tiny, "fp32"), plan, 20, 1e-3) for name in ("torch", "mlx")]
    np.testing.assert_allclose(curves[1], curves[0], atol=1e-4)


def test_swapping_a_prompt_and_a_lora_is_exact(backend: Backend, tiny: Path) -> None:
    session = backend.load(tiny, "fp32")
    lora = make_plan(parse_spec({"method": {"key": "lora", "rank": 2}}, "test"), tiny)
    rng = np.random.default_rng(0)
    noise = {n: rng.normal(0, 0.2, s).astype(np.float32) for n, s in tuner_of(lora).shapes(lora).items()}
    shown = {None: session.logits(TEXT)}
    session.attach("lora", lora, 1, noise)
    shown["lora"] = session.logits(TEXT)
    for name, method in (("prompt", "prompt"), ("vote", "prompt-ensemble"), ("encoder", "p-tuning")):
        session.attach(name, plan_of(tiny, method), len(shown))
        shown[name] = session.logits(TEXT)
    session.prepare("prompt", TrainingSettings())
    for name in ("lora", "prompt", None, "encoder", "lora", "vote", "prompt", "lora", None):
        session.activate(name)
        np.testing.assert_array_equal(session.logits(TEXT), shown[name], err_msg=str(name))
        np.testing.assert_allclose(session.decoder().feed([TEXT])[0], shown[name][-1], atol=1e-4)
    assert len({value.tobytes() for value in shown.values()}) == len(shown)


@pytest.mark.parametrize("precision", ["bf16", "4-bit"])
def test_prompts_stand_before_other_bases_too(backend: Backend, tiny: Path, precision: Any) -> None:
    session = backend.load(tiny, precision)
    losses = trained(session, plan_of(tiny), 20, 3e-2)
    assert losses[-1] < 0.6 * losses[0]
    rows = batch()
    expected = [
        log_softmax(session.logits(row))[place - 1, row[place]]
        for row, mask in zip(TEXTS, rows.mask, strict=True)
        for place in np.flatnonzero(mask)
    ]
    np.testing.assert_allclose(session.score(rows), expected, atol=0.15 if precision == "bf16" else 2e-2)


@pytest.mark.parametrize(
    ("method", "settings", "said"),
    [
        ("prompt", {"prompt_length": 0}, "'prompt_length' is 0, but should be greater than or equal to 1"),
        ("prompt", {"prompt_init": "text"}, "--prompt-init text needs a text: add --prompt-text"),
        (
            "prompt",
            {"prompt_init": "random", "prompt_text": "a"},
            "--prompt-text cannot be combined with --prompt-init random",
        ),
        ("prompt", {"prompt_encoder_width": 8}, "add --prompt-encoder mlp or lstm"),
        ("prompt-ensemble", {"prompt_text": "a"}, "start from the same text stay identical"),
        ("prompt-ensemble", {"prompt_encoder": "mlp"}, "cannot be combined with --prompt-members"),
        ("p-tuning", {"prompt_text": "a"}, "starts from random values"),
    ],
)
def test_what_makes_no_sense_is_refused(method: str, settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=f"method '{method}': .*{said}"):
        parse_spec({"method": {"key": method, **settings}}, "test")


@pytest.mark.parametrize("method", ["prompt", "prompt-ensemble", "p-tuning"])
def test_a_prompt_longer_than_the_context_is_refused_before_loading(
    method: str, backend: Backend, home: Home, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = tmp_path / "a.jsonl"
    data.write_text(json.dumps({"prompt": "a", "completion": "b"}) + "\n", "utf-8")
    monkeypatch.setattr(type(backend), "load", lambda *_: pytest.fail("loaded"))
    for length in (504, 505):
        tables = {
            "backend": backend.name,
            "model": {"id": str(tiny)},
            "data": {"files": [str(data)]},
            "method": {"key": method, "prompt_length": length},
        }
        spec = parse_spec(tables, "test")
        if length == 504:
            check.check_before_loading(spec, home, lambda *_: None)
            continue
        with pytest.raises(SpecError, match=r"uses 505 positions.*reads at most 512.*Lower --prompt-length"):
            check.check_before_loading(spec, home, lambda *_: None)


def test_a_prompt_of_another_width_is_refused(backend: Backend, tiny: Path) -> None:
    session, plan = backend.load(tiny, "fp32"), AdapterPlan("prompt", "prompt", PromptSettings(), (Target("", 32, 0),))
    check_shapes(plan, ModelFolder.open(tiny))  # PEFT's file does not say where it goes
    before = session.logits(TEXT)
    with pytest.raises(AdapterError, match=r"vectors have 32 numbers, but this model's embeddings 64"):
        session.attach("a", plan, 1, {ROWS: np.zeros((20, 32), np.float32)})
    assert session.adapters() == []
    np.testing.assert_array_equal(session.logits(TEXT), before)


def test_a_model_without_a_known_embedding_is_refused() -> None:
    base = BaseInfo({"model.layers.0.mlp.weight": WeightInfo((4, 4), "F32")})
    with pytest.raises(SpecError, match=r"none with a known name \(embed_tokens.*Use --method lora"):
        tuners()["prompt"].plan("prompt", PromptSettings(), base)


def test_the_encoders_length_does_not_change_its_rows() -> None:
    """An MLP makes each row alone; an LSTM reads them as a sequence, so the last row reaches the first."""
    tuner, rng = tuners()["prompt"], generator(1, "rows")
    for kind, reaches in (("mlp", False), ("lstm", True)):
        plan = AdapterPlan("p", "prompt", PromptSettings(prompt_encoder=kind), (Target("e", 8, 10),))  # type: ignore[arg-type]
        tensors = dict(tuner.initial(plan, 1, Source(lambda _: np.zeros(0))))
        before = encode(NumpyFunctions(), tensors)
        tensors[EMBEDDING] = tensors[EMBEDDING].copy()
        tensors[EMBEDDING][-1] += rng.normal(size=8)
        moved = np.abs(encode(NumpyFunctions(), tensors) - before).max(axis=1) > 1e-7
        assert moved[-1] and moved[-2] == reaches
