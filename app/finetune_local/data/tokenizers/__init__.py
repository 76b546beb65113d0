"""A folder's tokenizer, with the ids transformers would give."""
