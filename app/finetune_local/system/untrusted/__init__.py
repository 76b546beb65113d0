"""Reading what others wrote: bounded JSON and TOML, parsers in a guarded child process, tensor headers."""
