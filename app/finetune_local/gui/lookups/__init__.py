"""A process that answers the window's quick questions that take a tokenizer or a look at the devices."""
