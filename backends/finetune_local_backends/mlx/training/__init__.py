"""A training step: optimizer, undoing it, shifted attention."""
