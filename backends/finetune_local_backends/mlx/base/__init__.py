"""Loading a base model: its weights, its modules, its attention."""
