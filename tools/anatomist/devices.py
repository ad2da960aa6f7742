"""The machine: memory, processors, and what torch sees of accelerators. Only `probe` imports torch."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil
from pydantic import Field

from .result import Frozen

_CGROUP = Path("/sys/fs/cgroup")


class Device(Frozen):
    """One place where a model can live."""

    name: str = Field(description="Name to pass as `device`: cpu, cuda:0, mps.")
    kind: str = Field(description="What it is, in the maker's words.")
    total_bytes: int = Field(description="Memory in bytes.")
    free_bytes: int = Field(description="Memory free now, in bytes.")


class Compute(Frozen):
    """What the process that holds the models computes with."""

    torch: str = Field(description="Version of torch.")
    threads: int = Field(description="Compute threads torch uses on the CPU.")
    devices: tuple[Device, ...]
    warnings: tuple[str, ...] = Field(default=(), description="Known faults of these devices with this torch.")


def memory_total() -> int:
    """Bytes this process may ever use: physical memory, or the container's limit where that is lower."""
    limit = _cgroup_number("memory.max")
    total = psutil.virtual_memory().total
    return total if limit is None else min(total, limit)


def memory_available() -> int:
    """Bytes that can be used now without swapping, within the container's limit."""
    free = psutil.virtual_memory().available
    limit, used = _cgroup_number("memory.max"), _cgroup_number("memory.current")
    if limit is None or used is None:
        return free
    return min(free, max(0, limit - used + _reclaimable()))


def existing(folder: Path) -> Path:
    """The folder, or the nearest above it that exists: what a disk is asked about."""
    return next(p for p in (folder, *folder.parents) if p.exists())


def processors() -> int:
    """Processors this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def operating_system() -> str:
    return f"{platform.system()} {platform.release()} ({platform.machine()})"


def probe() -> Compute:
    """What torch sees; for the process that holds models, since it imports torch."""
    import torch

    return Compute(
        torch=metadata.version("torch"),
        threads=torch.get_num_threads(),
        devices=(
            Device(
                name="cpu",
                kind=platform.processor() or platform.machine(),
                total_bytes=memory_total(),
                free_bytes=memory_available(),
            ),
            *_accelerators(),
        ),
        warnings=_faults(),
    )


def free_bytes(device: str) -> int:
    """Bytes free on a device now; a device that is no accelerator has the machine's memory."""
    found = {d.name: d.free_bytes for d in _accelerators()} if device != "cpu" else {}
    return found.get(device if ":" in device else f"{device}:0", memory_available())


def _accelerators() -> list[Device]:
    import torch

    found = []
    for i in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        free, total = torch.cuda.mem_get_info(i)
        found.append(
            Device(name=f"cuda:{i}", kind=torch.cuda.get_device_name(i), total_bytes=total, free_bytes=free)
        )
    if torch.backends.mps.is_available():
        found.append(
            Device(name="mps", kind="Apple GPU", total_bytes=memory_total(), free_bytes=memory_available())
        )
    return found


def _faults() -> tuple[str, ...]:
    import torch

    if torch.backends.mps.is_available() and metadata.version("torch").startswith("2.8."):
        return (
            "torch 2.8 on MPS gives inverted IOI logit differences without any error (TransformerLens #1178): "
            "load with device='cpu', or upgrade torch.",
        )
    return ()


def _cgroup_number(name: str) -> int | None:
    try:
        text = (_CGROUP / name).read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _reclaimable() -> int:
    """File cache counted in the container's use that the kernel gives back on demand."""
    try:
        lines = (_CGROUP / "memory.stat").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "active_file"))
