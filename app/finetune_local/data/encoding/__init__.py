"""Conversations to token ids and supervision masks, by a chat template."""
