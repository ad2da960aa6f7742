"""One self-contained HTML page out of text, numbers, tables and figures."""
