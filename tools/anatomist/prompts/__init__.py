"""Task generators, prompt sets, and their encoding for a model."""
