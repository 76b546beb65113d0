"""From files to batches: read, encode, split, batch."""
