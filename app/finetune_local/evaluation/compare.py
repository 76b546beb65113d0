"""Compare base, few-shot base and tuned model on the same rows: losses, answers, confidence intervals.

Intervals are by the percentile bootstrap over rows (Efron 1979). With few rows they are rough, and if all rows are equal they have no
width, so the number of rows is shown beside them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from finetune_local.backend import Session
from finetune_local.data.dataset.batching import Rows, batches_for_scoring
from finetune_local.data.dataset.store import Row as StoredRow
from finetune_local.evaluation.metrics import Metric, compare_texts, loss_metric, text_metrics
from finetune_local.evaluation.rows import EXAMPLE_END, EncodedRow, Row, Template, encode_row
from finetune_local.inference.engine import Opened
from finetune_local.inference.generate import greedy_batch

Values = npt.NDArray[np.float64]

RESAMPLES = 4000
LEVEL = 0.95
SCORE_TOKENS = 2048  # per batch, padding included
MOST_ANSWER_TOKENS = 512


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % confidence interval."""

    mean: float
    low: float
    high: float

    @property
    def includes_zero(self) -> bool:
        """Whether the interval includes zero."""
        return self.low <= 0 <= self.high

    def as_json(self) -> dict[str, float]:
        """{"mean", "low", "high"}, rounded to six decimals."""
        return {"mean": round(self.mean, 6), "low": round(self.low, 6), "high": round(self.high, 6)}


def interval(values: Values, weights: Values | None = None, seed: int = 0) -> Interval:
    """The mean of `values` (rows,) and its bootstrap interval; deterministic given the seed.

    With `weights` (rows,) the mean is Σ value·weight / Σ weight; rows are resampled uniformly and keep their weights.
    """
    weight = np.ones(len(values)) if weights is None else weights
    total = values * weight
    means = np.concatenate([total[drawn].sum(1) / weight[drawn].sum(1) for drawn in _draws(len(values), seed)])
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(total.sum() / weight.sum()), float(low), float(high))


def difference(first: Values, second: Values, weights: Values | None = None, seed: int = 0) -> Interval:
    """The mean of `second` − `first` (rows,) and its interval. Paired, so the variance between rows cancels."""
    return interval(second - first, weights, seed)


def _draws(rows: int, seed: int) -> Iterator[npt.NDArray[np.int32]]:
    """Row indices of the resamples, (resamples, rows), in pieces that fit into memory."""
    rng = np.random.default_rng(seed)
    piece = max(1, min(RESAMPLES, 4_000_000 // max(1, rows)))
    for start in range(0, RESAMPLES, piece):
        yield rng.integers(0, rows, (min(piece, RESAMPLES - start), rows), dtype=np.int32)


@dataclass(frozen=True)
class Condition:
    """The results of one model on all rows.

    `nll` (rows,) is the summed −log p of each reference in nats, `counts` (rows,) its number of tokens, `scores` each text metric
    (rows,) of the answers; `seconds` is the time for scoring and answering.
    """

    name: str
    answers: list[str]
    nll: npt.NDArray[np.float64]
    counts: npt.NDArray[np.float64]
    scores: dict[str, npt.NDArray[np.float64]]
    seconds: float = 0.0

    @property
    def loss_per_row(self) -> npt.NDArray[np.float64]:
        """Mean −log p per token of each reference, in nats, (rows,)."""
        return self.nll / self.counts

    def values(self, metric: Metric) -> npt.NDArray[np.float64]:
        """A metric's value for each row, (rows,)."""
        return self.loss_per_row if metric.is_loss else self.scores[metric.key]

    def weights(self, metric: Metric) -> npt.NDArray[np.float64] | None:
        """Weights of the rows in a metric's mean, (rows,): number of tokens for the loss; None for equal weights."""
        return self.counts if metric.is_loss else None

    def summary(self, seed: int) -> dict[str, Interval]:
        """Every metric's mean with its interval; the loss is per supervised token."""
        order = [loss_metric(), *text_metrics().values()]
        return {one.key: interval(self.values(one), self.weights(one), seed) for one in order}

    def row_json(self, index: int) -> dict[str, object]:
        """The answer to one row and its metrics, as in rows.jsonl."""
        order = [loss_metric(), *text_metrics().values()]
        return {
            "answer": self.answers[index],
            **{one.key: round(float(self.values(one)[index]), 6) for one in order},
        }


@dataclass(frozen=True)
class Comparison:
    """All conditions on the same rows; `few_shot` and `tuned` are None if they were not run.

    `shortened` counts rows that got fewer examples than the others, so that prompt and answer fit into the context.
    """

    rows: list[Row]
    base: Condition
    few_shot: Condition | None
    tuned: Condition | None
    shortened: int

    def conditions(self) -> list[Condition]:
        """The conditions that were run, in order."""
        return [c for c in (self.base, self.few_shot, self.tuned) if c is not None]

    def row_json(self, index: int) -> dict[str, object]:
        """One row with every answer, as in rows.jsonl."""
        row = self.rows[index]
        return {
            "file": row.source.file,
            "line": row.source.line,
            "prompt": [{"role": m.role, "content": m.content} for m in row.prompt],
            "reference": row.reference,
            **{c.name: c.row_json(index) for c in self.conditions()},
        }


def run(
    opened: Opened,
    rows: Sequence[Row],
    examples: Sequence[Row],
    *,
    adapter: str | None,
    template: Template = "chat",
    max_tokens: int | None = None,
    progress: Callable[[str, float], None] = lambda _name, _done: None,
) -> Comparison:
    """Run every condition. `progress` receives a condition's name and the share of all work that is done.

    The tuned model is prompted and scored with its adapter's tokenizer and template, the base with its own. Without `max_tokens`
    answers are limited to twice the longest reference. Raises RowRejected, OutOfMemory.
    """
    opened.activate(adapter)
    # One limit for all conditions, so that all answer the same rows.
    context = opened.model.context_length - opened.session.virtual_tokens
    own, tokenizer = opened.tokenizer_of(adapter), opened.tokenizer_of(None)
    plain = [encode_row(row, (), tokenizer, template, context, 1) for row in rows]
    tuned = plain if own is tokenizer else [encode_row(row, (), own, template, context, 1) for row in rows]
    room = max_tokens or min(MOST_ANSWER_TOKENS, 16 + 2 * max(int(a.mask.sum()) for a in (*plain, *tuned)))
    prompted = [encode_row(row, examples, tokenizer, template, context, room) for row in rows] if examples else []
    planned: list[tuple[str, list[EncodedRow], str | None]] = [("base", plain, None)]
    if examples:
        planned.append(("few_shot", prompted, None))
    if adapter is not None:
        planned.append(("tuned", tuned, adapter))
    made: dict[str, Condition] = {}
    for number, (name, encoded, active) in enumerate(planned):
        opened.activate(active)
        at = number / len(planned)

        def report(done: float, name: str = name, at: float = at) -> None:
            progress(name, at + done / len(planned))

        made[name] = _condition(name, opened, rows, encoded, room, name == "few_shot" and template == "raw", report)
    return Comparison(
        rows=list(rows),
        base=made["base"],
        few_shot=made.get("few_shot"),
        tuned=made.get("tuned"),
        shortened=sum(a.examples < len(examples) for a in prompted),
    )


def _condition(
    name: str,
    opened: Opened,
    rows: Sequence[Row],
    encoded: Sequence[EncodedRow],
    room: int,
    cut: bool,
    report: Callable[[float], None],
) -> Condition:
    started = time.monotonic()
    count, scoring = len(rows), 0.25  # share of the work that is scoring; the rest is answering
    nll, done = np.zeros(count), 0
    for indices, values in score(opened.session, encoded):
        nll[indices] = values
        done += len(indices)
        report(scoring * done / count)
    answers = greedy_batch(
        opened.session,
        [a.prompt_ids for a in encoded],
        room,
        opened.tokenizer.stop_ids,
        opened.model.context_length,
        lambda answered: report(scoring + (1 - scoring) * answered / count),
        opened.tokenizer.text,
    )
    texts = [_bare(opened.tokenizer.text(ids), row, cut) for ids, row in zip(answers, rows, strict=True)]
    compared = [compare_texts(text, row.reference) for text, row in zip(texts, rows, strict=True)]
    scores = {metric: np.array([c[metric] for c in compared]) for metric in text_metrics()}
    counts = np.array([float(a.mask.sum()) for a in encoded])
    return Condition(name, texts, nll, counts, scores, time.monotonic() - started)


def _bare(text: str, row: Row, cut: bool) -> str:
    """An answer without its thinking and, with `cut`, without further examples that a base makes up after it."""
    if "</think>" not in row.reference:
        text = text.rpartition("</think>")[2]
    if cut and EXAMPLE_END not in row.reference:
        text = text.lstrip().partition(EXAMPLE_END)[0]
    return text


def score(session: Session, encoded: Sequence[EncodedRow]) -> Iterator[tuple[list[int], list[float]]]:
    """Yield row indices with their summed −log p over scored tokens, in nats, in batches of similar length."""
    rows = Rows([StoredRow(one.ids, one.mask) for one in encoded])
    for chosen, batch in batches_for_scoring(rows, list(range(len(encoded))), SCORE_TOKENS):
        sums = np.zeros(len(chosen))
        np.add.at(sums, batch.token_rows, -session.score(batch).astype(np.float64))
        yield chosen.tolist(), sums.tolist()
