"""Tells an MCP client of the server, and gives it the skill: `anatomist install CLIENT`."""
