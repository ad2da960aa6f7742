"""What a technique sees of a model, and nothing else."""
