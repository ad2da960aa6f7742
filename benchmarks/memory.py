"""Peak memory of each way beyond its loaded model, each in a process of its own.

`python -m benchmarks.memory FOLDER WAY GRID LENGTH PROMPTS` prints one line of JSON.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import torch

CASES = (("residual", 14, 8), ("head", 64, 1))
FEW = 3  # cells of the ways with one pass a cell: each pass takes the same


def measured(folder: Path, way: str, grid: str, length: int, prompts: int) -> dict[str, object]:
    """Run one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", str(folder), way, grid, str(length), str(prompts)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"way": way, "case": f"{grid}, {length} tokens, {prompts} prompts", "error": done.stderr[-300:]}
    return json.loads(done.stdout.splitlines()[-1])


class Peak:
    """Watches this process's memory; the kernel's own mark where it can be reset, else by looking every 2 ms."""

    def __init__(self) -> None:
        self.before = self.most = psutil.Process().memory_info().rss
        self.kernel = _reset_mark()
        self.done = threading.Event()
        self.watcher = threading.Thread(target=self._watch, daemon=True)
        self.watcher.start()

    def _watch(self) -> None:
        process = psutil.Process()
        while not self.done.is_set():
            self.most = max(self.most, process.memory_info().rss)
            time.sleep(0.002)

    def stop(self) -> int:
        """Bytes above the start."""
        self.done.set()
        self.watcher.join()
        return max(self.most, _mark() if self.kernel else 0) - self.before


def _reset_mark() -> bool:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def _mark() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _one(folder: str, way: str, grid: str, length: str, prompts: str) -> dict[str, object]:
    from anatomist.model.backends.architecture import anatomy_of

    from .tasks import make_task
    from .ways import WAYS, plain

    torch.set_grad_enabled(False)
    hf, tokenizer = plain(Path(folder))
    anatomy = anatomy_of(hf)
    task = make_task(grid, int(length), int(prompts), anatomy, tokenizer)  # type: ignore[arg-type]
    small = make_task(grid, 14, 1, anatomy, tokenizer).some([0])  # type: ignore[arg-type]
    del hf, anatomy
    chosen = WAYS[way](Path(folder))
    chosen.prepare(small)
    chosen.cells(small, small.cells)
    loaded = psutil.Process().memory_info().rss
    peak = Peak()
    part = task if chosen.at_once else task.some(range(FEW))
    chosen.prepare(task)
    chosen.cells(part, part.cells)
    return {"way": way, "case": task.name, "peak_bytes": peak.stop(), "loaded_bytes": loaded}


if __name__ == "__main__":
    print(json.dumps(_one(*sys.argv[1:])))
