"""What a base model's folder declares: its config, its weight files, its tokenizer files."""
