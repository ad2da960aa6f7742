"""Training dictionaries: activations cached on disk, SAELens's trainer driven over them, checkpoints, and the record."""
