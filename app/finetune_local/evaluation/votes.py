"""Blind votes on pairs of answers to the same question, and their tally.

Order and sides of the pairs follow from a seed, so that voting can be continued later. Each vote is a line of votes.jsonl, written
before the next pair is shown, so a crash loses no vote; a half-written last line is ignored.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from finetune_local.evaluation.metrics import normalise
from finetune_local.evaluation.store import Saved
from finetune_local.system.errors import SpecError
from finetune_local.system.files import disk_full
from finetune_local.system.messages import Message, msg
from finetune_local.system.untrusted.text import ForeignTextError, parse_json_object

Side = Literal["a", "b", "tie", "skip"]
Other = Literal["base", "few_shot"]
SIDES: tuple[Side, ...] = ("a", "b", "tie", "skip")
NAMES = {"base": msg("the base"), "few_shot": msg("the base with examples")}
_Z = 1.959964  # quantile of the standard normal distribution for a 95 % interval


@dataclass(frozen=True)
class Pair:
    """Two answers to one row. `tuned_is_a` must not be shown to the voter."""

    row: int
    prompt: tuple[tuple[str, str], ...]
    a: str
    b: str
    tuned_is_a: bool


@dataclass(frozen=True)
class Tally:
    """The counts. `share` is the share of decided pairs that the tuned model won, `low` and `high` its 95 % Wilson interval."""

    tuned: int
    other: int
    ties: int
    skipped: int
    share: float | None
    low: float
    high: float
    text: str


class Ballot:
    """The votes on an evaluation: the tuned model against one other condition."""

    def __init__(self, saved: Saved, against: Other) -> None:
        """Raises SpecError if the evaluation lacks one of the two conditions."""
        ran = saved.conditions()
        if "tuned" not in ran or against not in ran:
            raise SpecError(
                msg(
                    "'{name}' has no answers of {value}, so there is nothing to vote on. Evaluate an adapter with "
                    "examples first.",
                    name=saved.name,
                    value=(msg("an adapter") if "tuned" not in ran else NAMES[against]),
                )
            )
        self._saved, self.against = saved, against
        self.pairs, self.equal = _pairs(saved, against)
        """The pairs in order, and the number of rows omitted because both answers are equal."""

    def votes(self) -> list[tuple[int, str]]:
        """The valid votes in the order they were cast: the row, and "tuned", "other", "tie" or "skip"."""
        cast: list[tuple[int, str]] = []
        for line in _lines(self._saved):
            if line.get("against") == self.against:
                if line.get("undo"):
                    cast = cast[:-1]
                else:
                    cast = [(row, vote) for row, vote in cast if row != line["row"]]
                    cast.append((int(line["row"]), str(line["vote"])))
        return cast

    def waiting(self) -> list[Pair]:
        """Pairs without a vote."""
        done = {row for row, _ in self.votes()}
        return [pair for pair in self.pairs if pair.row not in done]

    def vote(self, pair: Pair, side: Side) -> None:
        """Cast a vote, replacing an earlier one on the same pair. Raises DiskFull."""
        chosen: str = side
        if side in ("a", "b"):
            chosen = "tuned" if (side == "a") == pair.tuned_is_a else "other"
        _append(self._saved, {"row": pair.row, "against": self.against, "vote": chosen, "time": time.time()})

    def undo(self) -> None:
        """Withdraw the last vote, if there is one."""
        if self.votes():
            _append(self._saved, {"undo": True, "against": self.against, "time": time.time()})

    def tally(self) -> Tally:
        """The counts, the share with its interval, and a sentence."""
        cast = [vote for _, vote in self.votes()]
        tuned, other, ties, skipped = (cast.count(kind) for kind in ("tuned", "other", "tie", "skip"))
        decided = tuned + other
        low, high = wilson(tuned, decided)
        text = _sentence(tuned, decided, low, high, NAMES[self.against])
        return Tally(tuned, other, ties, skipped, tuned / decided if decided else None, low, high, text)


def wilson(wins: int, count: int) -> tuple[float, float]:
    """The 95 % score interval of `wins` / `count` (Wilson 1927, Probable inference, J. Am. Stat. Assoc. 22); (0, 1) if `count` is 0."""
    if count == 0:
        return 0.0, 1.0
    share, z2 = wins / count, _Z**2
    middle = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = _Z * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2)) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def _pairs(saved: Saved, against: Other) -> tuple[list[Pair], int]:
    seed = int(saved.result.get("choices", {}).get("seed", 0))
    rng = np.random.default_rng([seed, sorted(NAMES).index(against)])
    found, equal = [], 0
    for index in rng.permutation(len(saved.rows)):
        row = saved.rows[int(index)]
        tuned, other = row.answers["tuned"].text, row.answers[against].text
        tuned_is_a = bool(rng.integers(2))
        if normalise(tuned) == normalise(other):
            equal += 1
            continue
        found.append(Pair(int(index), row.prompt, *((tuned, other) if tuned_is_a else (other, tuned)), tuned_is_a))
    return found, equal


def _sentence(tuned: int, decided: int, low: float, high: float, other: str) -> Message:
    if not decided:
        return msg("No pair is decided yet.")
    range_ = msg("{low} to {value} %", low=f"{100 * low:.0f}", value=f"{100 * high:.0f}")
    result = msg(
        "the fine-tuned answer won {tuned} of {decided} decided pairs against {other} (95 % interval {range})",
        tuned=tuned,
        decided=decided,
        other=other,
        range=range_,
    )
    if low > 0.5:
        return msg("The fine-tune is preferred: {result}.", result=result)
    if high < 0.5:
        return msg("The fine-tune is not preferred: {result}.", result=result)
    return msg("It is not clear yet which is preferred: {result}.", result=result)


def _lines(saved: Saved) -> Sequence[dict[str, Any]]:
    try:
        data = saved.votes_file.read_bytes()
    except FileNotFoundError:
        return []
    found = []
    for line in data.split(b"\n")[:-1]:  # the last line is incomplete
        try:
            value = parse_json_object(line)
        except ForeignTextError:
            continue
        if "undo" in value or {"row", "vote"} <= value.keys():
            found.append(value)
    return found


def _append(saved: Saved, facts: dict[str, Any]) -> None:
    line = json.dumps(facts, ensure_ascii=False).encode() + b"\n"
    with (
        disk_full(saved.votes_file, msg("The vote was not counted. Free some space on it.")),
        saved.votes_file.open("ab") as file,
    ):
        if file.tell() and not _ends_whole(saved):
            line = b"\n" + line
        file.write(line)
        file.flush()
        os.fsync(file.fileno())


def _ends_whole(saved: Saved) -> bool:
    """Whether the file ends with a newline. After a crash it may not, and the next vote must start a new line."""
    with saved.votes_file.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
