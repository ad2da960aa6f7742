"""What an operation takes, in bytes and seconds, before it is run: formulas, sizes, and the measured rate."""
