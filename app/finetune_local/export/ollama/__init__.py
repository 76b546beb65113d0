"""Ollama's own chat templates: worked out, rendered, compared."""
