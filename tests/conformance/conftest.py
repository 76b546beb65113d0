"""The fixtures of tests that train."""

from __future__ import annotations

from training import data, make_run

__all__ = ["data", "make_run"]
