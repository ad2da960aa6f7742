"""The MCP server of Anatomist."""
