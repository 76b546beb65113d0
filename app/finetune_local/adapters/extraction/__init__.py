"""A low-rank adapter out of a full fine-tune, by singular value decomposition."""
