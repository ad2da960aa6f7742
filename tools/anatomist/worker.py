"""The process that holds models: `python -m anatomist.worker`, started and ended by a server's session.

It can be cancelled, killed and started again without the conversation noticing more than an error text. One thread
works (the frameworks below are not thread-safe, even across two models); a second one reads messages; a third watches
memory.

Protocol: one JSON object a line, over the stdin and stdout the process was started with. Both are set aside before
anything heavy is imported and stdout is pointed at stderr, so that what a library prints cannot be mistaken for an
answer. Arrays never travel: they go to the store, and answers name them.

To the worker:

| message | fields |
|---|---|
| restore | models: what an earlier worker held; each is loaded again when a call names its handle |
| call | id, name (of a technique or operation), arguments |
| cancel | id: stop that call at its next progress report |

From the worker:

| message | fields |
|---|---|
| ready | state: the imports are done |
| progress | id, done, total, what; at most five a second |
| answer | id, name, result (the technique's own, as JSON text), run (id or null), png (path or null), state, waiting |
| error | id, error (class name), text, deliberate, state, waiting; or last instead of these two: the process ends |

`state` is a WorkerState; `waiting` lists the models of `restore` not loaded again so far. A deliberate error is an
AnatomistError, whose text is meant for the caller; any other exception is logged with its traceback under a short id on
stderr, and only its class and that id travel. The process ends when its stdin closes or its parent dies.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import logging
import os
import queue
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

import psutil

from .devices import memory_available
from .errors import AnatomistError, Cancelled

if TYPE_CHECKING:
    from .desk import Answer, LoadedModel
    from .host import Host
    from .technique import Progress

PROGRESS_EVERY = 0.2  # seconds between progress messages
WATCH_EVERY = 0.2  # seconds between looks at memory
OUT_OF_MEMORY = 70  # exit status of a worker that ended itself before the machine ran out of memory
_LEAST_LEFT = 256 * 1024**2  # bytes that must stay available on the machine
log = logging.getLogger("anatomist.worker")


class Pipes(NamedTuple):
    """The two ends that belong to the protocol alone."""

    read: BinaryIO
    write: BinaryIO


class Channel:
    """Messages in and out; sending is safe from several threads."""

    def __init__(self, pipes: Pipes) -> None:
        self._pipes = pipes
        self._lock = threading.Lock()

    def send(self, **message: object) -> None:
        """Write one message; a parent that no longer listens ends the process."""
        line = json.dumps(message, allow_nan=False).encode() + b"\n"
        try:
            with self._lock:
                self._pipes.write.write(line)
                self._pipes.write.flush()
        except (BrokenPipeError, ValueError):
            os._exit(0)

    def messages(self) -> Callable[[], bytes]:
        """A reader of one line; empty when the parent closed its end."""
        return self._pipes.read.readline


class Calls:
    """Calls waiting for the working thread, and what was cancelled in the meantime."""

    def __init__(self) -> None:
        self.waiting: queue.SimpleQueue[Mapping[str, object]] = queue.SimpleQueue()
        self.current: int | None = None
        self._cancelled: set[int] = set()

    def cancel(self, call: int) -> None:
        self._cancelled.add(call)

    def cancelled(self, call: int) -> bool:
        return call in self._cancelled

    def done(self, call: int) -> None:
        self.current = None
        self._cancelled.discard(call)


class Worker:
    """Answers calls one after another from a host."""

    def __init__(self, host: Host, channel: Channel, calls: Calls) -> None:
        self._host = host
        self._channel = channel
        self._calls = calls
        self._to_restore: dict[str, LoadedModel] = {}

    def serve(self) -> None:
        """Work until the process is ended from outside."""
        self._channel.send(type="ready", **self._standing())
        while True:
            message = self._calls.waiting.get()
            if message["type"] == "restore":
                self._remember(message["models"])
            else:
                self._answer(message)

    def _answer(self, message: Mapping[str, object]) -> None:
        call, name, arguments = message["id"], message["name"], message["arguments"]
        assert isinstance(call, int)
        assert isinstance(name, str)
        assert isinstance(arguments, dict)
        self._calls.current = call
        try:
            progress = self._progress(call)
            self._restore(arguments.get("model"), progress)
            sent = _answer_message(self._host.call(name, arguments, progress))
        except AnatomistError as error:
            sent = {"type": "error", "error": type(error).__name__, "text": str(error), "deliberate": True}
        except Exception as error:
            log_id = uuid.uuid4().hex[:8]
            log.exception("call %s of %s failed (log id %s)", call, name, log_id)
            sent = {"type": "error", "error": type(error).__name__, "text": log_id, "deliberate": False}
        self._calls.done(call)
        self._channel.send(id=call, **sent, **self._standing())

    def _progress(self, call: int) -> Progress:
        """A progress function that stops the call when it was cancelled and speaks at most five times a second."""
        last = float("-inf")

        def progress(done: float, total: float, what: str) -> None:
            nonlocal last
            if self._calls.cancelled(call):
                raise Cancelled("the call was cancelled by the caller; nothing was stored. Call again to start anew.")
            if time.monotonic() - last >= PROGRESS_EVERY:
                last = time.monotonic()
                self._channel.send(type="progress", id=call, done=float(done), total=float(total), what=what)

        return progress

    def _remember(self, models: object) -> None:
        from .desk import LoadedModel

        assert isinstance(models, list)
        self._to_restore = {m["handle"]: LoadedModel.model_validate(m) for m in models}

    def _restore(self, handle: object, progress: Progress) -> None:
        """Load the named model again where an earlier worker held it."""
        if isinstance(handle, str) and (held := self._to_restore.get(handle)):
            progress(0, 1, f"loading {handle} again")
            self._host.restore([held], progress)
            del self._to_restore[handle]

    def _standing(self) -> dict[str, object]:
        loaded = {m.handle for m in self._host.loaded()}
        waiting = [m.model_dump(mode="json") for h, m in self._to_restore.items() if h not in loaded]
        return {"state": self._host.state().model_dump(mode="json"), "waiting": waiting}


def _answer_message(answer: Answer) -> dict[str, object]:
    return {
        "type": "answer",
        "name": answer.name,
        "result": answer.result.model_dump_json(),
        "run": answer.run_id,
        "png": str(answer.png_path) if answer.png_path else None,
    }


def take_pipes() -> Pipes:
    """Set stdin and stdout aside for the protocol; whatever prints from now on prints to stderr."""
    pipes = Pipes(os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb"))
    nowhere = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nowhere, 0)
    os.dup2(2, 1)
    os.close(nowhere)
    sys.stdout = sys.stderr
    return pipes


def listen(channel: Channel, calls: Calls) -> None:
    """Hand calls to the working thread and note cancellations; end the process when the parent closes its end.

    The exit is immediate: the working thread may be inside a computation, and the store is atomic.
    """
    for line in iter(channel.messages(), b""):
        message = json.loads(line)
        if message["type"] == "cancel":
            calls.cancel(message["id"])
        else:
            calls.waiting.put(message)
    os._exit(0)


def watch_memory(channel: Channel, calls: Calls, limit: int | None) -> None:
    """End the process with an error that says so before the machine itself runs out of memory."""
    process = psutil.Process()
    while True:
        held = process.memory_info().rss
        left = memory_available()
        over_limit = limit is not None and held > limit
        if over_limit or (left < _LEAST_LEFT and held > _LEAST_LEFT):
            bound = f"its limit is {limit / 1e9:.2f} GB" if over_limit and limit else f"{left / 1e9:.2f} GB were left"
            text = (
                f"the process that holds the models took {held / 1e9:.2f} GB and {bound}, so it was ended. Use fewer "
                "or shorter prompts, fewer places, or dtype='bfloat16'; estimate_compute gives the figures. The next "
                "call starts a new process and loads the model again; nothing stored is lost."
            )
            if calls.current is not None:
                channel.send(
                    type="error", id=calls.current, error="WouldNotFit", text=text, deliberate=True, last=True
                )
            log.error("%s", text)
            os._exit(OUT_OF_MEMORY)
        time.sleep(WATCH_EVERY)


def tie_to_parent() -> None:
    """Die with the parent even while a computation holds the interpreter; be the first to go when memory is out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupt at the terminal is the server's to handle
    if sys.platform != "linux":
        return
    import contextlib
    import ctypes

    set_death_signal = 1
    ctypes.CDLL(None, use_errno=True).prctl(set_death_signal, signal.SIGTERM, 0, 0, 0)
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def main() -> None:
    """Run the worker; called by the server's session, not by people."""
    parser = argparse.ArgumentParser(prog="anatomist.worker", description="The process that holds models.")
    parser.add_argument("--workspace", type=Path, required=True)
    parser.add_argument("--allow", action="append", default=[], type=Path)
    parser.add_argument("--memory-bytes", type=int, default=None)
    options = parser.parse_args()
    channel, calls = Channel(take_pipes()), Calls()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(name)s %(levelname)s: %(message)s")
    faulthandler.enable()
    tie_to_parent()
    threading.Thread(target=listen, args=(channel, calls), daemon=True).start()
    threading.Thread(target=watch_memory, args=(channel, calls, options.memory_bytes), daemon=True).start()

    from .host import Host

    host = Host(options.workspace, allow=options.allow)
    _import_frameworks()
    Worker(host, channel, calls).serve()


def _import_frameworks() -> None:
    """Import what the first call will need, while nobody waits for it."""
    import torch  # noqa: F401

    from .model import loading  # noqa: F401


if __name__ == "__main__":
    main()
