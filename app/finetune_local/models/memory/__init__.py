"""How much memory a model and a method need."""
