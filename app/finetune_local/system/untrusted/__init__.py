"""Reading what others wrote: text within limits, parsers in a guarded child process, headers of tensor files."""
