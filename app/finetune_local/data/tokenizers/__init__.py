"""A folder's tokenizer, with the same ids as transformers."""
