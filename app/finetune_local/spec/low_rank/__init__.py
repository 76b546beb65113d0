"""Low-rank updates: settings, initial values, PEFT format, per-layer patterns, full copies. The tuner is tuners/low_rank.py."""
