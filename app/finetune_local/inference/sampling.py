"""Sample the next token from logits. One implementation in numpy, so that both backends agree for the same seed.

Order: repetition penalty → temperature → top-k → top-p → min-p, each applied to the result of the one before.
Top-p: Holtzman et al. 2020, arXiv:1904.09751, section 3.1. Min-p: Nguyen et al. 2024, arXiv:2407.01082, section 3.
Repetition penalty: Keskar et al. 2019, arXiv:1909.05858, section 4.1, except that negative logits are multiplied, so that they fall.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from finetune_local.system.fields import Settings, setting


class Sampling(Settings):
    """Settings of sampling."""

    temperature: float = setting(
        0.7,
        help="0 always picks the most likely token; higher values give more varied answers.",
        group="sampling",
        ge=0,
        le=10,
    )
    top_p: float = setting(
        0.95,
        help="Sample from the most likely tokens whose probabilities add up to this; 1 turns it off.",
        group="sampling",
        gt=0,
        le=1,
    )
    top_k: int = setting(0, help="Sample from this many most likely tokens; 0 turns it off.", group="sampling", ge=0)
    min_p: float = setting(
        0.0,
        help="Exclude tokens less likely than this share of the most likely one; 0 turns it off.",
        group="sampling",
        ge=0,
        le=1,
    )
    repetition_penalty: float = setting(
        1.0,
        help="Values above 1 make tokens already in the text less likely; 1 turns it off.",
        group="sampling",
        gt=0,
        le=10,
    )
    seed: int | None = setting(
        None, help="The same seed gives the same answer. Automatic: a new one each time.", group="sampling", ge=0
    )
    max_tokens: int = setting(512, help="Maximum length of an answer in tokens.", group="sampling", ge=1)

    def generator(self) -> np.random.Generator:
        """The random number generator for one answer."""
        return np.random.Generator(np.random.PCG64(self.seed))


GREEDY = Sampling(temperature=0.0)


def choose(
    logits: npt.NDArray[np.float32], history: Sequence[int], sampling: Sampling, rng: np.random.Generator
) -> int:
    """Sample the next token's id from logits (vocabulary,), given the ids so far, prompt included.

    Draws one random number per call. Cumulative probabilities run over tokens by id, not by probability, so that backends whose
    logits differ in the last digits agree even if two tokens are almost equally likely.
    """
    scores = logits.astype(np.float64)
    if sampling.repetition_penalty != 1.0 and history:
        seen = np.unique(np.asarray(history))
        kept = scores[seen]
        scores[seen] = np.where(kept > 0, kept / sampling.repetition_penalty, kept * sampling.repetition_penalty)
    if sampling.temperature == 0:
        return int(scores.argmax())
    scores /= sampling.temperature
    if 0 < sampling.top_k < scores.size:
        threshold = np.partition(scores, -sampling.top_k)[-sampling.top_k]
        scores[scores < threshold] = -np.inf
    probabilities = np.exp(scores - scores.max())
    probabilities /= probabilities.sum()
    if sampling.top_p < 1:
        probabilities = _nucleus(probabilities, sampling.top_p)
    if sampling.min_p > 0:
        probabilities[probabilities < sampling.min_p * probabilities.max()] = 0.0
    cumulative = probabilities.cumsum()
    drawn = int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right"))
    return min(drawn, int(probabilities.nonzero()[0][-1]))


def _nucleus(probabilities: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.float64]:
    """Zero all but the smallest set of most likely tokens whose probabilities sum to `top_p`."""
    # Tokens below (1 - top_p)/n sum to less than 1 - top_p, so only the others need sorting.
    candidates = np.flatnonzero(probabilities >= (1 - top_p) / probabilities.size)
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    count = int(np.searchsorted(probabilities[order].cumsum(), top_p)) + 1
    kept = np.zeros_like(probabilities)
    kept[order[:count]] = probabilities[order[:count]]
    return kept
