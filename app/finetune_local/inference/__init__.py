"""Inference: a model in memory with its adapters, generation and sampling."""
