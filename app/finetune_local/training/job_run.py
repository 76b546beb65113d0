"""Job kind: a training run. It has a worker and a folder format to itself: training/worker.py, training/run_folder/runs.py."""

from __future__ import annotations

from finetune_local.runtime.kinds import JobKind

KIND = JobKind("run", worker="finetune_local.training.worker", resumable=True, logs_restart=False, makes_adapter=True)
