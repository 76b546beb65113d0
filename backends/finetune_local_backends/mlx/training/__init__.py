"""A training step: optimizer, undo, noise in embeddings, shifted attention."""
