"""Blind voting: hidden sides in a fixed order, votes that survive a crash, and what they add up to."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune_local.evaluation.store import Saved
from finetune_local.evaluation.votes import Ballot, Pair, wilson
from finetune_local.system.errors import SpecError


@pytest.fixture
def saved(tmp_path: Path) -> Saved:
    """Forty rows; every tenth answer is the same of both."""
    folder = tmp_path / "mine-1"
    folder.mkdir()
    rows = [
        {
            "prompt": [{"role": "user", "content": f"问 {i}"}],
            "reference": "x",
            "base": {"answer": f" tuned {i}\n" if i % 10 == 0 else f"base {i}"},
            "tuned": {"answer": f"tuned {i}"},
        }
        for i in range(40)
    ]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    result = {"base": {}, "few_shot": None, "tuned": {"loss": 1}, "choices": {"seed": 3}} | {"base": {"loss": 2}}
    (folder / "result.json").write_text(json.dumps(result), "utf-8")
    return Saved(folder)


def best(pair: Pair) -> str:
    return "a" if pair.tuned_is_a else "b"


def test_pairs_are_the_same_each_time_and_tell_nothing_by_their_side(saved: Saved) -> None:
    ballot = Ballot(saved, "base")
    assert ballot.pairs == Ballot(Saved(saved.folder), "base").pairs
    assert len(ballot.pairs) == 36 and ballot.equal == 4
    assert [pair.row for pair in ballot.pairs] != sorted(pair.row for pair in ballot.pairs)
    assert 8 < sum(pair.tuned_is_a for pair in ballot.pairs) < 28
    for pair in ballot.pairs:
        tuned, other = (pair.a, pair.b) if pair.tuned_is_a else (pair.b, pair.a)
        assert (tuned, other) == (f"tuned {pair.row}", f"base {pair.row}") and pair.prompt == (
            ("user", f"问 {pair.row}"),
        )


def test_votes_add_up_and_the_last_can_be_taken_back(saved: Saved) -> None:
    ballot = Ballot(saved, "base")
    assert ballot.tally().text == "No pair is decided yet." and ballot.tally().share is None
    for pair in ballot.pairs[:12]:
        ballot.vote(pair, best(pair))  # type: ignore[arg-type]
    worse = ballot.pairs[12]
    ballot.vote(worse, "b" if worse.tuned_is_a else "a")
    ballot.vote(ballot.pairs[13], "tie")
    ballot.vote(ballot.pairs[14], "skip")
    tally = Ballot(Saved(saved.folder), "base").tally()
    assert (tally.tuned, tally.other, tally.ties, tally.skipped) == (12, 1, 1, 1)
    assert tally.share == pytest.approx(12 / 13) and tally.low > 0.5
    assert tally.text == (
        "The fine-tune is preferred: the fine-tuned answer won 12 of 13 decided pairs against the base "
        "(95 % interval 67 to 99 %)."
    )
    assert len(ballot.waiting()) == 36 - 15 and ballot.waiting()[0] == ballot.pairs[15]
    for _ in range(3):
        ballot.undo()
    assert ballot.waiting()[0] == ballot.pairs[12] and ballot.tally().other == 0
    ballot.vote(ballot.pairs[0], "tie")  # another vote on the same pair replaces the first
    assert (ballot.tally().tuned, ballot.tally().ties) == (11, 1)


def test_what_cannot_be_told_is_said(saved: Saved) -> None:
    ballot = Ballot(saved, "base")
    for i, pair in enumerate(ballot.pairs[:6]):
        right = pair.tuned_is_a == (i % 2 == 0)
        ballot.vote(pair, "a" if right else "b")
    assert ballot.tally().text.startswith("It is not clear yet which is preferred: the fine-tuned answer won 3 of 6")
    for pair in ballot.pairs[6:30]:
        ballot.vote(pair, "b" if pair.tuned_is_a else "a")
    assert ballot.tally().text.startswith("The fine-tune is not preferred")


def test_a_crash_in_the_middle_of_a_vote_costs_that_vote_alone(saved: Saved) -> None:
    ballot = Ballot(saved, "base")
    for pair in ballot.pairs[:3]:
        ballot.vote(pair, "a")
    with saved.votes_file.open("ab") as file:
        file.write(b'{"row": 7, "against": "ba')
    assert len(ballot.votes()) == 3
    ballot.vote(ballot.pairs[3], "b")
    assert [row for row, _ in ballot.votes()] == [pair.row for pair in ballot.pairs[:4]]


def test_there_must_be_two_to_choose_from(saved: Saved) -> None:
    with pytest.raises(SpecError, match="no answers of the base with examples"):
        Ballot(saved, "few_shot")
    bare = saved.result | {"tuned": None}
    (saved.folder / "result.json").write_text(json.dumps(bare), "utf-8")
    with pytest.raises(SpecError, match="no answers of an adapter"):
        Ballot(Saved(saved.folder), "base")


@pytest.mark.parametrize(
    ("wins", "count", "low", "high"),
    [(0, 0, 0.0, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)],
)
def test_wilson(wins: int, count: int, low: float, high: float) -> None:
    """The last one is Newcombe's (1998, Statistics in Medicine 17, table I) example."""
    assert wilson(wins, count) == pytest.approx((low, high), abs=1e-4)
