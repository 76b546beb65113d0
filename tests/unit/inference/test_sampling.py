"""The choice of a token against brute force, statistics and the definitions."""

import numpy as np
import pytest

from finetune_local.inference.sampling import GREEDY, Sampling, choose
from finetune_local.system.errors import SpecError
from finetune_local.system.fields import parse

LOGITS = np.array([2.0, 1.0, 0.5, -1.0, -3.0], np.float32)
OFF = {"temperature": 1.0, "top_p": 1.0}


def drawn(logits: np.ndarray, sampling: Sampling, count: int = 4000, history: tuple[int, ...] = ()) -> np.ndarray:
    """How often each token comes, as shares."""
    rng = np.random.default_rng(0)
    tokens = [choose(logits, history, sampling, rng) for _ in range(count)]
    return np.bincount(tokens, minlength=len(logits)) / count


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits.astype(np.float64))
    return weights / weights.sum()


def test_temperature_zero_takes_the_likeliest_whatever_else_is_set() -> None:
    sampling = Sampling(temperature=0, top_k=3, min_p=0.5)
    assert {choose(LOGITS, (), sampling, np.random.default_rng(seed)) for seed in range(20)} == {0}
    assert choose(np.array([1.0, 1.0], np.float32), (), GREEDY, np.random.default_rng(0)) == 0


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_shares_follow_the_softmax(temperature: float) -> None:
    shares = drawn(LOGITS, Sampling(temperature=temperature, top_p=1.0))
    assert shares == pytest.approx(softmax(LOGITS / temperature), abs=0.03)


def test_top_k_keeps_the_k_likeliest_with_their_ratio() -> None:
    shares = drawn(LOGITS, Sampling(**OFF, top_k=2))
    assert shares[2:].sum() == 0
    assert shares[:2] == pytest.approx(softmax(LOGITS[:2]), abs=0.03)


@pytest.mark.parametrize("top_p", [0.05, 0.3, 0.6, 0.66, 0.9, 0.97])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p: float) -> None:
    order = np.argsort(-softmax(LOGITS))
    kept, total = set(), 0.0
    for token in order:
        kept.add(int(token))
        total += softmax(LOGITS)[token]
        if total >= top_p:
            break
    shares = drawn(LOGITS, Sampling(temperature=1.0, top_p=top_p), 5000)
    assert set(np.flatnonzero(shares)) <= kept
    assert all(shares[token] > 0 for token in kept if softmax(LOGITS)[token] > 0.01)


def test_top_p_of_a_large_vocabulary_equals_sorting_everything() -> None:
    rng = np.random.default_rng(3)
    for _ in range(20):
        logits = rng.normal(0, rng.uniform(0.1, 4), 5000).astype(np.float32)
        top_p = float(rng.uniform(0.01, 0.999))
        chances = softmax(logits)
        order = np.argsort(-chances, kind="stable")
        nucleus = set(order[: int(np.searchsorted(chances[order].cumsum(), top_p)) + 1].tolist())
        tokens = {choose(logits, (), Sampling(temperature=1.0, top_p=top_p), rng) for _ in range(200)}
        assert tokens <= nucleus


def test_min_p_leaves_out_what_is_below_its_share_of_the_likeliest() -> None:
    chances = softmax(LOGITS)
    shares = drawn(LOGITS, Sampling(**OFF, min_p=0.2))
    kept = chances >= 0.2 * chances.max()
    assert np.array_equal(shares > 0, kept)
    assert shares[kept] == pytest.approx(chances[kept] / chances[kept].sum(), abs=0.03)


def test_the_penalty_divides_positive_and_multiplies_negative_logits_of_tokens_already_there() -> None:
    shares = drawn(LOGITS, Sampling(**OFF, repetition_penalty=2.0), history=(0, 3, 3))
    expected = LOGITS.copy()
    expected[0] /= 2
    expected[3] *= 2
    assert shares == pytest.approx(softmax(expected), abs=0.03)
    assert choose(LOGITS, (0,), Sampling(temperature=0, repetition_penalty=3.0), np.random.default_rng(0)) == 1


def test_the_temperature_comes_before_top_p() -> None:
    # Alone, 0.66 needs two tokens; at temperature 0.2 the first has 0.99 of the chance.
    assert set(np.flatnonzero(drawn(LOGITS, Sampling(temperature=0.2, top_p=0.66), 2000))) == {0}


def test_the_logits_given_are_not_changed() -> None:
    before = LOGITS.copy()
    choose(LOGITS, (0,), Sampling(repetition_penalty=2.0, top_k=2, min_p=0.1), np.random.default_rng(0))
    assert np.array_equal(before, LOGITS)


def test_the_seed_decides_and_the_last_digits_of_logits_hardly_ever() -> None:
    rng = np.random.default_rng(5)
    sampling = Sampling(seed=11)
    same = 0
    ours, theirs = sampling.generator(), sampling.generator()
    for _ in range(500):
        logits = rng.normal(0, 3, 1000).astype(np.float32)
        other = logits + rng.normal(0, 1e-5, 1000).astype(np.float32)
        same += choose(logits, (), sampling, ours) == choose(other, (), sampling, theirs)
    assert same >= 498
    first = [choose(LOGITS, (), sampling, sampling.generator()) for _ in range(5)]
    assert len(set(first)) == 1


@pytest.mark.parametrize(
    "wrong", [{"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": -1}, {"max_tokens": 0}, {"topp": 1}]
)
def test_settings_out_of_bounds_are_refused_by_name(wrong: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(wrong))):
        parse(Sampling, wrong, "command line")
