"""Evaluations on disk: save, list, find, rename, remove and restore them, and choose rows of one by their gain.

Each is a folder in the home's evaluations/:

    result.json    what `evaluate --json` prints, plus model, adapter, choices, creation time and seconds; written last
    rows.jsonl     one row per line: question, reference answer, and each condition's answer with its metrics
    votes.jsonl    votes on pairs of answers, appended one by one (votes.py)
"""

from __future__ import annotations

import datetime
import json
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError

from finetune_local.evaluation.compare import Interval
from finetune_local.evaluation.metrics import Metric, loss_metric, metrics, text_metrics
from finetune_local.evaluation.report import Choices, Evaluation
from finetune_local.inference.engine import Opened
from finetune_local.system import trash
from finetune_local.system.errors import Damaged, SpecError
from finetune_local.system.fields import did_you_mean
from finetune_local.system.files import disk_full, remove, write_text
from finetune_local.system.messages import Message, carried, carrying, message_of, msg
from finetune_local.system.paths import Home
from finetune_local.system.trash import Removed
from finetune_local.system.untrusted.text import ForeignTextError, open_file, parse_json_object, read_json_object

RESULT, ROWS, VOTES = "result.json", "rows.jsonl", "votes.jsonl"
KIND = "evaluation"
"""The kind of evaluations in the trash."""

CONDITIONS = ("base", "few_shot", "tuned")
Which = Literal["better", "worse", "all"]
WHICH: tuple[Which, ...] = ("better", "worse", "all")
ADVICE = msg("The evaluation was not saved. Free some space on it and evaluate again.")
_LONGEST = 80


class _Verdict(BaseModel):
    text: str


class _Result(BaseModel):
    """The part of result.json that lists and pages need."""

    adapter: str | None = None
    created_time: Annotated[float, Field(ge=0, lt=1e11)]
    rows: int
    metric: str
    verdict: _Verdict


@dataclass(frozen=True)
class SavedAnswer:
    """One condition's answer to a row, with its metrics."""

    text: str
    values: Mapping[str, float]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SavedAnswer:
        """Read it from a line of rows.jsonl. Raises KeyError, TypeError, ValueError."""
        return cls(str(record["answer"]), {key: float(record[key]) for key in metrics() if key in record})


@dataclass(frozen=True)
class SavedRow:
    """A row with its reference and the answer of each condition. `prompt` has (role, text) of every turn."""

    file: str
    line: int
    prompt: tuple[tuple[str, str], ...]
    reference: str
    answers: Mapping[str, SavedAnswer]

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> SavedRow:
        """Read it from a line of rows.jsonl. Raises KeyError, TypeError, ValueError."""
        prompt = tuple((str(turn["role"]), str(turn["content"])) for turn in record["prompt"])
        answers = {name: SavedAnswer.from_json(record[name]) for name in CONDITIONS if name in record}
        return cls(str(record.get("file", "")), int(record.get("line", 0)), prompt, str(record["reference"]), answers)


@dataclass(frozen=True)
class Scores:
    """What an evaluation found, for lists. `metric` is the verdict's; `measured` has every metric of each condition that was run.

    `created_time` is in seconds since the epoch.
    """

    evaluation: str
    created_time: float
    rows: int
    metric: str
    verdict: str
    measured: Mapping[str, Mapping[str, Interval]]

    def as_json(self) -> dict[str, object]:
        """For `adapters --json` and lists; None for a condition that was not run."""
        return {
            "evaluation": self.evaluation,
            "created_time": self.created_time,
            "rows": self.rows,
            "metric": self.metric,
            "verdict": self.verdict,
            **{
                name: {key: one.as_json() for key, one in self.measured[name].items()}
                if name in self.measured
                else None
                for name in CONDITIONS
            },
        }


@dataclass(frozen=True)
class Saved:
    """A saved evaluation, by its folder."""

    folder: Path

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @cached_property
    def result(self) -> dict[str, Any]:
        """The content of result.json. Raises SpecError if it is damaged."""
        file = self.folder / RESULT
        try:
            return carried(read_json_object(file))
        except (OSError, ForeignTextError) as error:
            raise SpecError(
                msg("{file}: cannot be read ({error}). Remove it and evaluate again.", file=file, error=error)
            ) from None

    @cached_property
    def rows(self) -> list[SavedRow]:
        """The content of rows.jsonl. Raises SpecError if it is damaged."""
        try:
            with open_file(self.folder / ROWS) as file:
                return [SavedRow.from_json(parse_json_object(line)) for line in file]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise SpecError(
                msg(
                    "{path}: cannot be read ({error}). Remove it and evaluate again.",
                    path=self.folder / ROWS,
                    error=error,
                )
            ) from None

    @cached_property
    def problem(self) -> Message | None:
        """Why it cannot be shown, as a sentence; None if it can."""
        try:
            _Result.model_validate(self.result)
            for condition in self.conditions():
                self.intervals(condition)[self.result["metric"]]
            self.scores()
        except SpecError as error:
            return message_of(error)
        except ValidationError as error:
            name = ".".join(map(str, error.errors()[0]["loc"]))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            name = message_of(error)
        else:
            return None
        return msg(
            "{file}: '{name}' is missing or invalid. Remove it and evaluate again.",
            file=self.folder / RESULT,
            name=name,
        )

    @property
    def adapter(self) -> str | None:
        """The adapter's name, None for a bare base."""
        return self.result.get("adapter")

    @property
    def created(self) -> float:
        """Seconds since the epoch."""
        return float(self.result["created_time"])

    @property
    def votes_file(self) -> Path:
        """The file that votes are appended to."""
        return self.folder / VOTES

    def conditions(self) -> list[str]:
        """The conditions that were run, in order: "base", "few_shot", "tuned"."""
        return [name for name in CONDITIONS if self.result.get(name)]

    def intervals(self, condition: str) -> dict[str, Interval]:
        """The metrics of a condition, by key. Raises KeyError, TypeError, ValueError if the file is damaged."""
        measured, loss = self.result[condition], loss_metric().key
        found = {loss: measured[f"{loss}_interval"]} | {key: measured[key] for key in text_metrics() if key in measured}
        return {key: Interval(*(float(one[end]) for end in ("mean", "low", "high"))) for key, one in found.items()}

    def scores(self) -> Scores:
        """What the evaluation found. Raises SpecError, KeyError, TypeError, ValueError if it is damaged."""
        result = self.result
        measured = {name: self.intervals(name) for name in self.conditions()}
        return Scores(self.name, self.created, result["rows"], result["metric"], result["verdict"]["text"], measured)

    def metrics(self) -> list[Metric]:
        """The metrics that were measured; an older version may not have had all of them."""
        ran = [self.intervals(condition) for condition in self.conditions()]
        return [metric for key, metric in metrics().items() if all(key in measured for measured in ran)]


def save(opened: Opened, choices: Choices, evaluation: Evaluation, loading_seconds: float = 0.0) -> Saved:
    """Save an evaluation of the opened model, completely or not at all. Raises DiskFull."""
    home, adapter = opened.home, opened.active
    now = time.time()
    chosen = {k: str(v) if isinstance(v, Path) else v for k, v in asdict(choices).items()}
    seconds = {c.name: round(c.seconds, 2) for c in evaluation.comparison.conditions()}
    result = {
        **evaluation.as_json(),
        "model": opened.model.name,
        "adapter": adapter,
        "adapter_folder": str(opened.adapters[adapter]) if adapter else None,
        "backend": opened.backend,
        "choices": {**chosen, "data": [str(path) for path in choices.data]},
        "created": datetime.datetime.fromtimestamp(now, datetime.UTC).isoformat(timespec="seconds"),
        "created_time": now,
        "seconds": {"loading": round(loading_seconds, 2), **seconds},
    }
    rows = (evaluation.comparison.row_json(index) for index in range(len(evaluation.comparison.rows)))
    with disk_full(home.evaluations, ADVICE):
        folder = _new_folder(home, adapter or opened.model.name)
    try:
        write_text(folder / ROWS, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), ADVICE)
        write_text(folder / RESULT, json.dumps(carrying(result), indent=1, ensure_ascii=False) + "\n", ADVICE)
    except BaseException:
        remove(folder)
        raise
    return Saved(folder)


def every(home: Home, adapter: str | None = None) -> list[Saved]:
    """All readable evaluations (of an adapter), newest first; damaged() lists the others."""
    stem = f"{_stem(adapter)}-" if adapter is not None else ""
    found: list[tuple[float, Saved]] = []
    for folder in home.evaluations.iterdir():
        if folder.name.startswith(stem) and (folder / RESULT).is_file():
            saved = Saved(folder)
            if saved.problem is None and adapter in (None, saved.adapter):
                found.append((saved.created, saved))
    return [saved for _, saved in sorted(found, key=lambda pair: pair[0], reverse=True)]


def damaged(home: Home) -> list[Damaged]:
    """Evaluations that cannot be shown; throw_away() removes them."""
    found = [Saved(folder) for folder in home.evaluations.iterdir() if (folder / RESULT).exists()]
    problems = [(saved, saved.problem) for saved in found]
    return sorted(
        (Damaged(one.name, one.folder, why) for one, why in problems if why is not None), key=lambda one: one.name
    )


def find(home: Home, name: str) -> Saved:
    """An evaluation by its name. Raises SpecError, which suggests similar names."""
    folder = home.evaluations / name
    if Path(name).name == name and (folder / RESULT).exists():
        return Saved(folder)
    near = did_you_mean(name, [saved.name for saved in every(home)])
    raise SpecError(msg("evaluation '{name}' no longer exists.{near}", name=name, near=near))


def throw_away(home: Home, name: str) -> Removed:
    """Move an evaluation to the trash. Raises SpecError if there is none, RunError if the system refuses."""
    return trash.throw(home, KIND, name, find(home, name).folder)


def put_back(removed: Removed, home: Home) -> Saved:
    """Restore an evaluation from the trash, under its name or the next free one."""
    target, number = removed.source, 1
    while target.exists():
        number += 1
        target = home.evaluations / f"{removed.name}-{number}"
    return Saved(trash.put_back(removed, target))


def follow_rename(home: Home, old: str, new: str, adapter_folder: Path) -> None:
    """Rename the evaluations of a renamed adapter. Raises RunError, DiskFull."""
    for saved in every(home, old):
        result = {**saved.result, "adapter": new, "adapter_folder": str(adapter_folder)}
        write_text(saved.folder / RESULT, json.dumps(carrying(result), indent=1, ensure_ascii=False) + "\n", ADVICE)
        target = _new_folder(home, new)
        target.rmdir()
        trash.moved(saved.folder, target)


def _new_folder(home: Home, name: str) -> Path:
    """Create the folder `name`-N with the next free N; two processes never get the same one."""
    number = 1
    while True:
        folder = home.evaluations / f"{_stem(name)}-{number}"
        try:
            folder.mkdir()
            return folder
        except FileExistsError:
            number += 1


def _stem(name: str) -> str:
    """A name as a valid folder name on every system."""
    return re.sub(r'[\x00-\x1f/\\:*?"<>|]+', "-", name).strip(" .")[:_LONGEST] or "model"


def gains(saved: Saved, metric: Metric) -> list[float]:
    """The tuned answer's gain over the base's in each row; for the loss, the decrease; 0 without an adapter."""
    sign, key = -1.0 if metric.is_loss else 1.0, metric.key
    found = []
    for row in saved.rows:
        tuned, base = row.answers.get("tuned"), row.answers["base"]
        found.append(sign * (tuned.values[key] - base.values[key]) if tuned is not None else 0.0)
    return found


def chosen(saved: Saved, metric: Metric, which: Which) -> list[int]:
    """Indices of the rows to show: those that got better or worse, largest change first; all rows in their order for "all"."""
    found = gains(saved, metric)
    if which == "all":
        return list(range(len(found)))
    kept = [i for i, gain in enumerate(found) if (gain > 0 if which == "better" else gain < 0)]
    return sorted(kept, key=lambda i: -abs(found[i]))


def counts(saved: Saved, metric: Metric) -> dict[Which, int]:
    """The number of rows that got better, that got worse, and in total."""
    found = gains(saved, metric)
    return {"better": sum(g > 0 for g in found), "worse": sum(g < 0 for g in found), "all": len(found)}
