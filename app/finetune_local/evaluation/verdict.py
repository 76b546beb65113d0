"""Whether the fine-tune helped, in a plain sentence, by paired differences on the same rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from finetune_local.evaluation.bootstrap import Interval, difference
from finetune_local.evaluation.compare import Comparison, Condition
from finetune_local.evaluation.metrics import Metric
from finetune_local.system.messages import Message, join_messages, msg

FEW_ROWS = 20


@dataclass(frozen=True)
class Verdict:
    """The verdict in sentences, the main one first, and how much better tuned is than base and few-shot base in the chosen metric."""

    sentences: tuple[str, ...]
    over_base: Interval | None
    over_few_shot: Interval | None

    @property
    def text(self) -> Message:
        """All sentences as one text."""
        return join_messages(" ", self.sentences)

    def as_json(self) -> dict[str, Any]:
        """For `evaluate --json`."""
        return {
            "text": self.text,
            "sentences": list(self.sentences),
            "over_base": self.over_base.as_json() if self.over_base else None,
            "over_few_shot": self.over_few_shot.as_json() if self.over_few_shot else None,
        }


def judge(comparison: Comparison, metric: Metric, seed: int) -> Verdict:
    """Compare tuned with base and few-shot base in one metric, by paired bootstrap over the rows."""
    tuned, rows = comparison.tuned, len(comparison.rows)
    if tuned is None:
        return Verdict((msg("No adapter was given, so there is nothing to judge."),), None, None)
    over_base = _difference(comparison.base, tuned, metric, seed)
    sentences = [_sentence(over_base, metric, msg("the base"), lead=True)]
    over_few_shot = None
    if comparison.few_shot is not None:
        over_few_shot = _difference(comparison.few_shot, tuned, metric, seed)
        sentences.append(_sentence(over_few_shot, metric, msg("the base that is shown examples"), lead=False))
        if over_base.low > 0 and over_few_shot.high < 0:
            sentences.append(msg("Showing examples in the prompt does better than this fine-tune."))
    if rows < FEW_ROWS:
        sentences.append(msg("With {rows} rows this is rough: evaluate on more.", rows=rows))
    return Verdict(tuple(sentences), over_base, over_few_shot)


def _difference(other: Condition, tuned: Condition, metric: Metric, seed: int) -> Interval:
    """How much better tuned is: for the loss, how much lower."""
    sign = -1.0 if metric.is_loss else 1.0
    return difference(sign * other.values(metric), sign * tuned.values(metric), tuned.weights(metric), seed)


def _sentence(gain: Interval, metric: Metric, other: str, *, lead: bool) -> Message:
    shown = msg(
        "{names} {size} against {other} (95 % interval {range})",
        names=metric.phrase,
        size=_size(gain.mean, metric),
        other=other,
        range=_range(gain, metric),
    )
    if gain.low > 0:
        return (
            msg("The fine-tune helped: {shown}.", shown=shown)
            if lead
            else msg("It also beats examples in the prompt: {shown}.", shown=shown)
        )
    if gain.high < 0:
        return (
            msg("The fine-tune made it worse: {shown}.", shown=shown)
            if lead
            else msg("It does worse than examples in the prompt: {shown}.", shown=shown)
        )
    if gain.low == gain.high == 0:
        return (
            msg("The fine-tune changed nothing: {shown}.", shown=shown)
            if lead
            else msg("It does as well as examples in the prompt: {shown}.", shown=shown)
        )
    start = (
        msg("Whether the fine-tune helped cannot be told")
        if lead
        else msg("Against examples in the prompt it cannot be told")
    )
    return msg("{start}: {shown}, which includes 0.", start=start, shown=shown)


def _size(gain: float, metric: Metric) -> Message:
    if metric.is_loss:
        amount = f"{abs(gain):.3f}"
        return msg("lower by {amount}", amount=amount) if gain >= 0 else msg("higher by {amount}", amount=amount)
    points = f"{abs(gain) * 100:.1f}"
    return msg("up {points} points", points=points) if gain >= 0 else msg("down {points} points", points=points)


def _range(gain: Interval, metric: Metric) -> Message:
    if metric.is_loss:
        return msg("{low} to {high}", low=f"{-gain.high:+.3f}", high=f"{-gain.low:+.3f}")
    return msg("{low} to {high}", low=f"{gain.low * 100:+.1f}", high=f"{gain.high * 100:+.1f}")
