"""Whether an export reads, stops and answers as base + adapter do in the app."""
