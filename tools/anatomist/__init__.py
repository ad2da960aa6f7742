"""Anatomist: mechanistic interpretability that is right, fast and honest."""

__version__ = "0.1.0"
