"""All work that runs in process folders: training runs and jobs."""

from __future__ import annotations

from finetune_local.runtime import jobs
from finetune_local.runtime.job import Job
from finetune_local.runtime.process_folder import ProcessFolder
from finetune_local.system.paths import Home
from finetune_local.training.run_folder import follow, runs
from finetune_local.training.run_folder.runs import Run


def running(home: Home) -> list[ProcessFolder]:
    """Runs and jobs whose worker is alive. Windows ask every second, so nothing is read of the others."""
    return [*runs.running(home), *jobs.running(home)]


def restart(folder: ProcessFolder, home: Home) -> None:
    """Start the worker of a run or a job that has ended. Raises SpecError where it is gone, or running by now."""
    if isinstance(folder, Run):
        follow.start(runs.find(home, folder.name), home)
    elif isinstance(folder, Job):
        jobs.restart(jobs.find(home, folder.name), home)
