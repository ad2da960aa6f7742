"""One file an operation: docstring, TITLE, WHERE, READ_ONLY, DESTRUCTIVE, Arguments, Outcome, run."""
