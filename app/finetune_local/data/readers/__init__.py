"""Files to rows: formats of files, encodings, columns, chat logs."""
