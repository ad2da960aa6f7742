"""Metrics of behaviour and the statistics around them."""
