"""Speaks the worker's protocol and does what each call's name says: what a model's code may do to its process."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time

STATE = {
    "models": [],
    "compute": {"torch": "none", "threads": 1, "devices": []},
    "pid": os.getpid(),
    "resident_bytes": 0,
}
cancelled = threading.Event()
calls: list[dict] = []
called = threading.Semaphore(0)


def send(**message: object) -> None:
    sys.stdout.write(json.dumps(message) + "\n")
    sys.stdout.flush()


def listen() -> None:
    for line in sys.stdin:
        message = json.loads(line)
        if message["type"] == "cancel":
            cancelled.set()
        else:
            calls.append(message)
            called.release()
    os._exit(0)


def error(call: dict, kind: str, text: str, *, deliberate: bool) -> None:
    send(type="error", id=call["id"], error=kind, text=text, deliberate=deliberate, state=STATE, waiting=[])


def answer(call: dict, **result: object) -> None:
    text = json.dumps({"summary": "done", **result})
    send(type="answer", id=call["id"], name=call["name"], result=text, run=None, png=None, state=STATE, waiting=[])


def work(call: dict) -> None:
    match call["name"]:
        case "quick":
            answer(call, pid=os.getpid())
        case "stuck" | "generate":  # inside compiled code that never looks up
            send(type="progress", id=call["id"], done=1, total=3, what="stuck")
            time.sleep(60)
        case "polite":
            send(type="progress", id=call["id"], done=1, total=3, what="polite")
            cancelled.wait()
            error(call, "Cancelled", "stopped", deliberate=True)
        case "last word":
            send(type="error", id=call["id"], error="WouldNotFit", text="too much", deliberate=True, last=True)
            os._exit(70)
        case "die":
            os.kill(os.getpid(), signal.SIGKILL)
        case "large":
            answer(call, text="x" * 1_000_000)
        case "deliberate":
            error(call, "BadSite", "no such site", deliberate=True)
        case "defect":
            error(call, "KeyError", "ab12", deliberate=False)
        case "held":
            state = {**STATE, "models": []}
            text = json.dumps({"summary": "done"})
            send(
                type="answer", id=call["id"], name="held", result=text, run=None, png=None, state=state,
                waiting=[{"handle": "kept"}],
            )  # fmt: skip


threading.Thread(target=listen, daemon=True).start()
send(type="ready", state=STATE, waiting=[])
restored = None
while True:
    called.acquire()
    message = calls.pop(0)
    if message["type"] == "restore":
        restored = message["models"]
    elif message["name"] == "what_was_restored":
        answer(message, restored=restored)
    else:
        work(message)
