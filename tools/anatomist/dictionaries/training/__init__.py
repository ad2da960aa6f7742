"""Training dictionaries: activations cached on disk, SAELens's trainer over them, checkpoints, and the record."""
