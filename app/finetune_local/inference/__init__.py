"""A model in memory with its adapters: opened, asked, sampled from."""
