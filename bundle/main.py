"""What the desktop bundle starts."""

from anatomist_mcp.__main__ import main

main()
