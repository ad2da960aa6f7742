"""Techniques that exist only to test the catalog, the runner and the host."""
