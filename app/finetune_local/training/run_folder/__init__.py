"""The run folder: create, list, follow, watch, compare, check and repair runs, and forecast new ones."""
