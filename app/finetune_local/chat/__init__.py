"""Generation, conversations and comparison."""
