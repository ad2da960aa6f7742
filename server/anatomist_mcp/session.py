"""The worker process, seen from the server: started in the background, one call at a time, cancelled, killed, replaced.

A call that is cancelled asks the worker to stop; if it does not within `PATIENCE` seconds, it is killed and replaced. A
worker that ended by itself is replaced at the next call. Models are loaded again by the calls that name them.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import PIPE

import anyio
from anatomist import errors
from anatomist.desk import WorkerState
from anatomist.errors import AnatomistError, WorkerDied
from anyio.abc import Process

PATIENCE = 1.5  # seconds a cancelled call may take to stop before its process is killed
HEARTBEAT = 2.0  # seconds without a word from the worker after which the caller is told that it still works
THREADS_VARIABLE = "ANATOMIST_THREADS"
log = logging.getLogger(__name__)

Report = Callable[[float, float, str], Awaitable[None]]  # done, total (0 = unknown), what


class InternalError(AnatomistError):
    """A defect: its text names the kind of error and the log entry, and nothing of the machine."""

    @classmethod
    def of(cls, what: str, kind: str, log_id: str) -> InternalError:
        return cls(
            f"{what} failed with an internal error ({kind}, log id {log_id}); nothing was stored. This is a defect and "
            "not your input's fault as far as we know: the server's stderr has the details under that id. Next: try "
            "other arguments, or report it with the id; the server goes on."
        )


@dataclass(frozen=True)
class WorkerOptions:
    """How the worker is started."""

    workspace: Path
    allow: tuple[Path, ...] = ()
    threads: int | None = None
    memory_bytes: int | None = None

    def command(self) -> list[str]:
        allowed = [part for folder in self.allow for part in ("--allow", str(folder))]
        memory = [] if self.memory_bytes is None else ["--memory-bytes", str(self.memory_bytes)]
        return [sys.executable, "-P", "-m", "anatomist.worker", "--workspace", str(self.workspace), *allowed, *memory]

    def environment(self) -> dict[str, str]:
        return {**os.environ, **({} if self.threads is None else {THREADS_VARIABLE: str(self.threads)})}


@dataclass(frozen=True)
class WorkerAnswer:
    """What the worker answered: the result as JSON text, and where its run and picture are."""

    name: str
    result: str
    run_id: str | None
    png_path: Path | None


@dataclass
class Session:
    """One worker process and the queue before it."""

    options: WorkerOptions
    note: Callable[[WorkerState | None], None] = lambda state: None
    state: WorkerState | None = None
    _process: Process | None = None
    _buffer: bytearray = field(default_factory=bytearray)
    _held: list[object] = field(default_factory=list)  # models to load again after a restart, as JSON
    _turn: anyio.Lock = field(default_factory=anyio.Lock)
    _waiting: int = 0
    _last_id: int = 0

    async def prestart(self) -> None:
        """Start the process, so that its imports are done when the first call comes."""
        async with self._turn:
            await self._ensure()

    async def call(self, name: str, arguments: dict[str, object], report: Report) -> WorkerAnswer:
        """One call, after those before it.

        Raises:
            WorkerDied: the process ended during the call.
            AnatomistError: the worker's deliberate error, of its own class.
            InternalError: any other exception in the worker.
        """
        await self._take_turn(report)
        try:
            await self._ensure()
            self._last_id += 1
            call = self._last_id
            try:
                await self._send({"type": "call", "id": call, "name": name, "arguments": arguments})
                return await self._hear_out(call, name, report)
            except AnatomistError:  # the worker's last word on this call
                raise
            except BaseException:  # cancelled, or the caller cannot be reached any more
                with anyio.CancelScope(shield=True):
                    await self._stop_call(call)
                raise
        finally:
            self._turn.release()

    async def close(self) -> None:
        """End the process; what is stored stays."""
        if self._process is not None:
            await self._kill()

    @property
    def pid(self) -> int | None:
        return None if self._process is None else self._process.pid

    async def _take_turn(self, report: Report) -> None:
        self._waiting += 1
        try:
            if self._waiting > 1 or self._turn.locked():
                await report(0, 0, f"waiting: {self._waiting} call(s) in the queue")
            await self._turn.acquire()
        finally:
            self._waiting -= 1

    async def _ensure(self) -> None:
        """A living process, new where the last one ended."""
        if self._process is not None and self._process.returncode is not None:
            await self._bury()
        if self._process is None:
            with anyio.CancelScope(shield=True):  # a start cut in the middle would leave a process nobody knows
                self._process = await anyio.open_process(
                    self.options.command(), stdin=PIPE, stdout=PIPE, stderr=None, env=self.options.environment()
                )
            if self._held:
                await self._send({"type": "restore", "models": self._held})

    async def _send(self, message: dict[str, object]) -> None:
        assert self._process is not None
        assert self._process.stdin is not None
        try:
            await self._process.stdin.send(json.dumps(message).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            raise await self._died("before it took the call") from None

    async def _hear_out(self, call: int, name: str, report: Report) -> WorkerAnswer:
        """Pass progress on until the call's answer or error comes."""
        started = time.monotonic()
        while True:
            message = None
            with anyio.move_on_after(HEARTBEAT):
                message = await self._receive(name)
            if message is None:
                await report(0, 0, f"{name}: {time.monotonic() - started:.0f} s")
                continue
            self._take_note(message)
            if message.get("id") != call:
                continue
            if message["type"] == "progress":
                await report(message["done"], message["total"], message["what"])
            elif message["type"] == "answer":
                png = message["png"]
                return WorkerAnswer(message["name"], message["result"], message["run"], Path(png) if png else None)
            else:
                if message.get("last"):
                    await self._bury()
                raise _error_of(name, message)

    async def _receive(self, doing: str) -> dict:  # pyright: ignore[reportMissingTypeArgument]  # JSON
        """The next message; a cancelled wait loses none."""
        assert self._process is not None
        assert self._process.stdout is not None
        while (end := self._buffer.find(b"\n")) < 0:
            try:
                self._buffer += await self._process.stdout.receive(1 << 16)
            except (anyio.EndOfStream, anyio.BrokenResourceError, anyio.ClosedResourceError):
                raise await self._died(f"during {doing}") from None
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return json.loads(line)

    def _take_note(self, message: dict) -> None:  # pyright: ignore[reportMissingTypeArgument]
        if "state" in message:
            self.state = WorkerState.model_validate(message["state"])
            self._held = [*message["state"]["models"], *message["waiting"]]
            self.note(self.state)

    async def _stop_call(self, call: int) -> None:
        """Ask the worker to leave a call; kill it when it does not in time."""
        try:
            with anyio.fail_after(PATIENCE):
                await self._send({"type": "cancel", "id": call})
                while True:
                    message = await self._receive("a cancelled call")
                    self._take_note(message)
                    if message.get("id") == call and message["type"] in ("answer", "error"):
                        return
        except TimeoutError:
            log.warning("the worker did not stop within %.1f s and was killed", PATIENCE)
            await self._kill()
            await self._ensure()  # its imports run while the caller thinks
        except WorkerDied:
            pass

    async def _kill(self) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.kill()
        with anyio.CancelScope(shield=True):
            await self._bury()

    async def _bury(self) -> int | None:
        """Wait for the process that ended and forget it; return its status."""
        assert self._process is not None
        status = await self._process.wait()
        await self._process.aclose()
        self._process = None
        self._buffer.clear()
        self.state = None
        self.note(None)
        return status

    async def _died(self, when: str) -> WorkerDied:
        status = None
        with anyio.move_on_after(PATIENCE):
            status = await self._bury()
        if self._process is not None:  # its pipe is closed but it lives: not of use any more
            await self._kill()
        how = {-9: "killed by signal 9, perhaps for memory", -11: "a crash in compiled code", None: "its pipe closed"}
        return WorkerDied(
            f"the process that holds the models ended {when} ({how.get(status, f'status {status}')}). Nothing stored "
            "is lost. Call again: a new process is started and loads the model again; if it ends again, use fewer "
            "prompts or a smaller dtype (estimate_compute gives the figures)."
        )


def _error_of(name: str, message: dict) -> AnatomistError:  # pyright: ignore[reportMissingTypeArgument]
    if not message["deliberate"]:
        return InternalError.of(name, message["error"], message["text"])
    kind = getattr(errors, message["error"], AnatomistError)
    return kind(message["text"])
