"""Maths that several causal techniques share."""
