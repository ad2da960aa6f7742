"""Training of small models, in steps that survive a kill, and what is measured of what they learned."""
