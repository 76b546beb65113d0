"""What everything else stands on: reading text that others made, and what the machine offers. Imports only the errors and files."""
