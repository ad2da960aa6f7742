"""Dictionaries of features: sparse autoencoders and transcoders, behind one protocol, with their loaders."""
