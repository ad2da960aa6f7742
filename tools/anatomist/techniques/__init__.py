"""One file a technique: docstring, Arguments, Result, maths, run, plot."""
