"""Base, few-shot base and tuned model on the same held-out rows."""
