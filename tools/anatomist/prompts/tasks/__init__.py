"""Generated tasks: each file makes prompts of one kind."""
