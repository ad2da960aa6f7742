"""One investigation end to end, through the real server: how SmolLM2 finds the indirect object of a sentence."""
