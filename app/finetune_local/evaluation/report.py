"""One evaluation, from the user's choices to the result: collect rows, draw examples, run the conditions, judge.

The verdict is a sentence on whether the fine-tune helped, by paired differences on the same rows.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune_local.adapters.companions import trained_raw
from finetune_local.adapters.library import run_folder, run_tables
from finetune_local.data.readers.read import reading
from finetune_local.evaluation import compare
from finetune_local.evaluation.compare import Comparison, Condition, Interval, difference
from finetune_local.evaluation.metrics import DEFAULT, Metric, loss_metric, metrics, text_metrics
from finetune_local.evaluation.rows import Row, Template, collect, draw, usable
from finetune_local.inference.engine import Opened
from finetune_local.models.folder import sha256_of
from finetune_local.spec.run import DataSettings
from finetune_local.system.errors import DataError, SpecError
from finetune_local.system.fields import parse
from finetune_local.system.messages import Message, join_messages, msg

FEW_ROWS = 20

RUN_ROWS = 100
"""Validation rows of a run that are evaluated by default: on a CPU a few hundred take long."""


@dataclass(frozen=True)
class Verdict:
    """The verdict's sentences, the main one first, and the tuned model's gain over base and few-shot base in the chosen metric."""

    sentences: tuple[str, ...]
    over_base: Interval | None
    over_few_shot: Interval | None

    @property
    def text(self) -> Message:
        """All sentences."""
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
    """Compare the tuned model with base and few-shot base in one metric, by a paired bootstrap over the rows."""
    tuned, rows = comparison.tuned, len(comparison.rows)
    if tuned is None:
        return Verdict((msg("No adapter was evaluated, so there is no verdict."),), None, None)
    over_base = _difference(comparison.base, tuned, metric, seed)
    sentences = [_sentence(over_base, metric, msg("the base"), lead=True)]
    over_few_shot = None
    if comparison.few_shot is not None:
        over_few_shot = _difference(comparison.few_shot, tuned, metric, seed)
        sentences.append(_sentence(over_few_shot, metric, msg("the base with examples"), lead=False))
        if over_base.low > 0 and over_few_shot.high < 0:
            sentences.append(msg("Showing examples in the prompt does better than this fine-tune."))
    if rows < FEW_ROWS:
        sentences.append(msg("With {rows} rows this is rough: evaluate on more.", rows=rows))
    return Verdict(tuple(sentences), over_base, over_few_shot)


def _difference(other: Condition, tuned: Condition, metric: Metric, seed: int) -> Interval:
    """The tuned model's gain; for the loss, its decrease."""
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
        msg("It is not clear whether the fine-tune helped")
        if lead
        else msg("Compared with examples in the prompt, it is not clear")
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


@dataclass(frozen=True)
class Choices:
    """The user's choices; None is automatic."""

    data: tuple[Path, ...] = ()
    data_format: str | None = None
    columns: tuple[str, ...] = ()
    assistant: str | None = None
    scrub: tuple[str, ...] = ()
    few_shot: int = 3
    examples: Path | None = None
    metric: str = DEFAULT
    limit: int | None = None
    max_tokens: int | None = None
    template: Template | None = None
    seed: int = 42


@dataclass(frozen=True)
class Evaluation:
    """The result. `examples` is their number in the few-shot prompt, `origin` their source, `rejected` the number of rejected rows."""

    comparison: compare.Comparison
    summaries: dict[str, dict[str, Interval]]
    verdict: Verdict
    examples: int
    origin: str
    rejected: int
    metric: str

    def as_json(self) -> dict[str, Any]:
        """What `evaluate --json` prints."""
        loss = loss_metric().key
        measured = {
            name: {loss: found[loss].mean, f"{loss}_interval": found[loss].as_json()}
            | {metric: found[metric].as_json() for metric in text_metrics()}
            for name, found in self.summaries.items()
        }
        return {
            "rows": len(self.comparison.rows),
            "base": measured["base"],
            "few_shot": measured.get("few_shot"),
            "tuned": measured.get("tuned"),
            "metric": self.metric,
            "verdict": self.verdict.as_json(),
            "examples": self.examples,
            "examples_origin": self.origin,
            "set_aside": self.rejected,
        }


def evaluate(
    opened: Opened, choices: Choices, progress: Callable[[str, float], None], note: Callable[[str], None]
) -> Evaluation:
    """Evaluate the active adapter of an opened model. Raises SpecError, DataError, OutOfMemory."""
    if choices.metric not in metrics():
        raise SpecError(
            msg("there is no metric '{metric}'. Known: {names}.", metric=choices.metric, names=", ".join(metrics()))
        )
    adapter = opened.active
    folder = opened.adapters[adapter] if adapter else None
    template = choices.template or ("raw" if folder is not None and trained_raw(folder) else "chat")
    rows, rejected = _rows(opened, choices, folder, template, note)
    examples = draw(rows, choices.few_shot, choices.seed, choices.examples, folder)
    scored = examples.scored[: choices.limit]
    comparison = compare.run(
        opened,
        scored,
        examples.shown,
        adapter=adapter,
        template=template,
        max_tokens=choices.max_tokens,
        progress=progress,
    )
    if comparison.shortened:
        note(
            msg(
                "{number} rows were shown fewer examples, so that prompt and answer fit into the context.",
                number=comparison.shortened,
            )
        )
    return Evaluation(
        comparison,
        {c.name: c.summary(choices.seed) for c in comparison.conditions()},
        judge(comparison, metrics()[choices.metric], choices.seed),
        len(examples.shown),
        examples.origin,
        rejected,
        choices.metric,
    )


def _rows(
    opened: Opened, choices: Choices, adapter: Path | None, template: Template, note: Callable[[str], None]
) -> tuple[list[Row], int]:
    """Rows to score (and a few more, in case the examples come from them), and the number of rejected ones."""
    from finetune_local.data.dataset.prepare import conversations
    from finetune_local.data.readers.read import read

    most = None if choices.limit is None else choices.limit + choices.few_shot
    run = run_folder(adapter) if adapter is not None else None
    if choices.data:
        for path in choices.data:
            if not path.is_file():
                raise DataError(msg("--data {path}: file not found.", path=path))
        if run is not None and (same := _trained_on(run, choices.data)):
            note(
                msg(
                    "{file} is the file the adapter was trained on: this measures memorisation, not generalisation.",
                    file=same,
                )
            )
        rows, rejected = collect(read(choices.data, _reading(choices, adapter)), most)
        where = ", ".join(str(path) for path in choices.data)
    elif run is not None and (run / "data").is_dir():
        kept = conversations(run / "data")
        rows, rejected = collect(kept, most or RUN_ROWS)
        where = msg("the validation rows of run '{name}'", name=run.name)
        if most is None and len(kept) > RUN_ROWS:
            note(
                msg(
                    "the first {number} of {count} validation rows are evaluated; --limit {count} evaluates all.",
                    number=RUN_ROWS,
                    count=len(kept),
                )
            )
    else:
        raise SpecError(msg("no rows to evaluate on: choose a file with --data FILE."))
    room = opened.model.context_length - opened.session.virtual_tokens
    for tokenizer in {id(found): found for found in (opened.tokenizer_of(None), opened.tokenizer)}.values():
        rows, refused = usable(rows, tokenizer, template, room)
        rejected += refused
    for item in rejected[:3]:
        note(
            msg(
                "rejected: {file}, line {line}: {reason}",
                file=item.source.file,
                line=item.source.line,
                reason=item.reason,
            )
        )
    if len(rejected) > 3:
        note(msg("… and {number} more rows were rejected", number=len(rejected) - 3))
    if not rows:
        raise DataError(msg("{where}: no row has a question and an answer to compare with.", where=where))
    return rows, len(rejected)


def _reading(choices: Choices, adapter: Path | None) -> DataSettings:
    """How to read the files: by the user's choices, else as the adapter's run read its data."""
    chosen = {
        "format": choices.data_format,
        "columns": choices.columns,
        "assistant": choices.assistant,
        "scrub": choices.scrub,
    }
    known = reading(run_tables(adapter).get("data", {}) if adapter is not None else {}).model_dump()
    return parse(DataSettings, known | {name: value for name, value in chosen.items() if value}, msg("command line"))


def _trained_on(run: Path, files: tuple[Path, ...]) -> Path | None:
    """The first of the files, compared by content, that the run was trained on; None if there is none."""
    from finetune_local.data.dataset.prepare import open_prepared

    if not (run / "data" / "data.json").is_file():
        return None
    own = run_tables(run / "adapter").get("data", {}).get("validation_files", ())
    known = {file.sha256 for file in open_prepared(run / "data").report.files if file.name not in own}
    return next((path for path in files if sha256_of(path) in known), None)
