"""Training: the loop, its events, checkpoints, the run folder and the worker process."""
