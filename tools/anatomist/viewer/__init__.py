"""A local page over a workspace: investigations, runs with their pictures, and what is running now. It only reads."""
