"""The only code that knows a framework: one file a backend."""
