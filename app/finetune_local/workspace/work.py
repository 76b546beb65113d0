"""All long work: training runs and jobs."""

from __future__ import annotations

from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.runs import Run


def running(home: Home) -> list[ProcessFolder]:
    """Runs and jobs whose worker is alive. Windows call this every second, so files of the others are not read."""
    return [*runs.running(home), *jobs.running(home)]


def restart(folder: ProcessFolder, home: Home) -> None:
    """Restart a run or a job that has ended. Raises SpecError if it no longer exists or is running."""
    if isinstance(folder, Run):
        follow.start(runs.find(home, folder.name), home)
    elif isinstance(folder, Job):
        jobs.restart(jobs.find(home, folder.name), home)
