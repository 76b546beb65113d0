"""The Adapters page."""
