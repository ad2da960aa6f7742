"""An MCP client that says on the console what it asks, what comes back, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from anatomist.errors import AnatomistError
from anatomist.result import Frozen
from mcp import Client
from mcp.types import TextContent
from rich.console import Console

R = TypeVar("R", bound=Frozen)
SHOWN = 300  # characters of a summary on the console


class DemoFailed(AnatomistError):
    """A call of the demo came back as an error."""


@dataclass
class Caller:
    """Calls tools, shows progress, keeps what was called."""

    client: Client
    console: Console = field(default_factory=lambda: Console(stderr=True, highlight=False))
    seconds: dict[str, float] = field(default_factory=dict)
    number: int = 0

    async def call(self, tool: str, arguments: Mapping[str, object], expected: type[R]) -> R:
        """Call a tool and read its structured result as the tool's own type.

        Raises:
            DemoFailed: the tool answered with an error; its text is kept.
        """
        self.number += 1
        name = f"{self.number:2d}. {tool}"
        started = time.monotonic()
        with self.console.status(f"[bold]{name}[/bold]") as status:

            async def shown(progress: float, total: float | None, message: str | None) -> None:
                share = f" {progress / total:.0%}" if total else ""
                status.update(f"[bold]{name}[/bold]{share} {message or ''}")

            answer = await self.client.call_tool(tool, dict(arguments), progress_callback=shown)
        took = time.monotonic() - started
        self.seconds[name] = took
        text = " ".join(part.text for part in answer.content if isinstance(part, TextContent))
        if answer.is_error or answer.structured_content is None:
            raise DemoFailed(f"{tool} failed: {text}")
        result = expected.model_validate(answer.structured_content)
        told = str(getattr(result, "summary", text))
        self.console.print(f"[green]✓[/green] [bold]{name}[/bold] [dim]{took:.1f} s[/dim]")
        self.console.print(f"   [dim]{told[:SHOWN]}{'…' if len(told) > SHOWN else ''}[/dim]", soft_wrap=False)
        return result
