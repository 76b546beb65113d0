"""The lookup process, for quick requests of the window that need a tokenizer, a framework or an adapter's files."""
