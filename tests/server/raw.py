"""A server started as a client starts it, spoken to line by line, so that a test sees every byte and every process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

HANDSHAKE = {
    "protocolVersion": "2025-11-25",
    "capabilities": {},
    "clientInfo": {"name": "raw", "version": "0"},
}


class RawServer:
    """`python -m anatomist_mcp` over pipes."""

    def __init__(self, workspace: Path, *options: str) -> None:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        command = [sys.executable, "-m", "anatomist_mcp", "--workspace", str(workspace), "--threads", "1", *options]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  # a pipe that nobody reads would fill up
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, env=environment
        )
        self.lines: list[bytes] = []  # everything it wrote to stdout
        self._last = 0

    def __enter__(self) -> RawServer:
        self.request("initialize", HANDSHAKE)
        self.send({"method": "notifications/initialized"})
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(20)
        finally:
            self.process.kill()
            assert self.process.stdout is not None
            self.process.stdout.close()
            self._log.close()

    def send(self, message: dict) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")
        self.process.stdin.flush()

    def begin(self, method: str, params: dict) -> int:
        """Send a request; its id."""
        self._last += 1
        self.send({"id": self._last, "method": method, "params": params})
        return self._last

    def begin_call(self, tool: str, **arguments: object) -> int:
        """Begin a tool call that reports progress."""
        return self.begin(
            "tools/call", {"name": tool, "arguments": arguments, "_meta": {"progressToken": self._last + 1}}
        )

    def messages(self) -> Iterator[dict]:
        """Messages as they come, until the server ends."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)
            yield json.loads(line)

    def answer_to(self, request: int) -> dict:
        """The answer to a request, or its error."""
        for message in self.messages():
            if message.get("id") == request:
                return message.get("result") or message["error"]
        raise AssertionError(f"the server ended: {self.log()}")

    def request(self, method: str, params: dict) -> dict:
        return self.answer_to(self.begin(method, params))

    def call(self, tool: str, **arguments: object) -> dict:
        return self.request("tools/call", {"name": tool, "arguments": arguments})

    def wait_for_progress(self, words: str = "") -> None:
        """Until a call says that it has begun, in words that contain these."""
        for message in self.messages():
            if message.get("method") == "notifications/progress" and words in message["params"].get("message", ""):
                return
        raise AssertionError(f"the server ended without a word: {self.log()}")

    def log(self) -> str:
        """What it wrote to stderr."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")

    def worker(self) -> psutil.Process:
        """The process that holds the models."""
        (child,) = psutil.Process(self.process.pid).children()
        return child


def text(result: dict) -> str:
    return result["content"][0]["text"]
