"""Processes that outlive the programs that watch them: process folders, jobs, workers, and RPC to child processes."""
