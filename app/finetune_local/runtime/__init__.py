"""Processes that outlive whoever looks at them: folders a process works in, jobs, workers, and calls to a worker."""
