"""A base model loaded: its weights, its modules, its attention."""
