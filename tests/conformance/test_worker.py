"""The training process: started, followed, stopped, and killed at any moment."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from finetune_local.backend import Backend
from finetune_local.system.errors import WorkerDied
from finetune_local.system.paths import Home
from finetune_local.training.events import Checkpoint, Event, Finished, Started, Step, StoppedByUser
from finetune_local.training.run_folder import follow
from training import assert_same, losses, result


def test_a_worker_is_started_followed_and_stopped(make_run: Any, home: Home, backend: Backend) -> None:
    run = make_run("worker", max_steps=5000, checkpoint_every=1000, validate_every=5000)
    seen: list[Event] = []
    for event in follow.follow(run, follow.start(run, home)):
        seen.append(event)
        if isinstance(event, Step) and event.step == 3:
            assert run.status() == "running"
            run.stop_file.touch()
    last = seen[-1]
    assert isinstance(last, StoppedByUser), last
    assert isinstance([e for e in seen if isinstance(e, Checkpoint)][-1], Checkpoint)
    assert run.worker_pid() is None
    assert not run.stop_file.exists()
    assert not (run.folder / ".reserve").exists()


def test_two_that_start_it_at_once_get_one_worker(make_run: Any, home: Home) -> None:
    run = make_run("asked twice", max_steps=8)
    code = "import sys; from finetune_local.cli.main import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "resume", run.name, "--json", "--home", str(home.root)]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    told = [process.communicate(timeout=200)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert all(json.loads(text.splitlines()[-1])["steps"] == 8 for text in told)
    assert [len([e for e in run.history() if isinstance(e, kind)]) for kind in (Started, Finished)] == [1, 1]
    assert len(losses(run.history())) == 8


def test_a_failing_worker_says_why(make_run: Any, home: Home, data: Path) -> None:
    run = make_run("broken")
    data.write_text("not json\n", "utf-8")
    last = list(follow.follow(run, follow.start(run, home)))[-1]
    assert last.as_json()["error"] == "DataError"
    assert last.as_json()["exit_code"] == 2


KILLS = int(os.environ.get("FINETUNE_LOCAL_KILLS", "4"))
"""Kills in the test below; 20 were done by hand before a release (docs/results.md)."""


def test_kill_at_any_moment_loses_nothing(make_run: Any, home: Home) -> None:
    """SIGKILL at random moments, then resume: the adapter equals that of a run left in peace."""
    options = {"max_steps": max(60, 8 * KILLS), "checkpoint_every": 1, "validate_every": 20}
    peaceful = make_run("peaceful", **options)
    expected = losses(list(follow.follow(peaceful, follow.start(peaceful, home))))
    run = make_run("killed", **options)
    chance = random.Random(7)
    kills = 0
    while run.status() != "finished":
        follower = follow.follow(run, follow.start(run, home))
        wait, shot = chance.choice([0.0, chance.uniform(0, 0.4)]), False
        try:
            for event in follower:
                if isinstance(event, Step) and kills < KILLS and chance.random() < 0.3:
                    time.sleep(wait)
                    if (pid := run.worker_pid()) is not None:
                        os.kill(pid, signal.SIGKILL)
                        kills, shot = kills + 1, True
        except WorkerDied as died:
            assert shot, "a run that goes on after a kill is taken for dead itself"
            assert "resume killed" in str(died)
    assert kills == KILLS  # each worker was followed from its start, or fewer would have been seen and killed
    found = losses(run.history())
    assert found.keys() == expected.keys()
    assert max(abs(found[s] - expected[s]) for s in expected) <= 1e-6
    assert_same(result(run), result(peaceful))
