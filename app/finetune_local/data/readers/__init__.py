"""Files to rows: containers, encodings, columns, chat logs."""
