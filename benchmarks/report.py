"""The table that is printed, the JSON that is kept, and the same table in README.md."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PACKAGES = ("torch", "transformers", "transformer-lens", "nnsight", "nnterp", "mcp", "anatomist")
BEGIN, END = "<!-- last table -->", "<!-- end of last table -->"
Found = Mapping[str, Any]  # a section's rows, as they go to JSON


def machine() -> dict[str, object]:
    """What the numbers depend on."""
    return {
        "processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
        "system": platform.platform(), "python": platform.python_version(), "load_before": os.getloadavg()[0],
        "versions": {name: version(name) for name in PACKAGES},
    }  # fmt: skip


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")


def keep(found: Found, name: str) -> Path:
    """Write one run's JSON."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n")
    return path


def into_readme(text: str) -> None:
    """Put the last table where the README holds it."""
    readme = HERE / "README.md"
    before, _, rest = readme.read_text().partition(BEGIN)
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


def text_of(found: Found) -> str:
    """Every section that was run, as Markdown."""
    parts = [_head(found)]
    sections = (
        ("sweeps", _sweeps), ("memory", _memory), ("reading", _reading), ("dictionaries", _dictionaries),
        ("server", _server),
    )  # fmt: skip
    parts += [section(found[name]) for name, section in sections if found.get(name)]
    return "\n\n".join(parts)


def _head(found: Found) -> str:
    on, rates = found["machine"], sorted(found["rates"])
    versions = ", ".join(f"{name} {number}" for name, number in on["versions"].items())
    best, middle, least = (rates[i] / 1e9 for i in (-1, len(rates) // 2, 0))
    return (
        f"{found['date']}, {on['processor']}, {on['threads']} threads on {on['cores']} cores, {on['system']}; "
        f"{versions}. "
        f"Matrix products in this run: {best:.0f} GFLOP/s at best, {middle:.0f} median, {least:.0f} least, of "
        f"{len(rates)} measurements."
    )


def _sweeps(rows: Sequence[Found]) -> str:
    bridge = {row["case"]: row["seconds"] for row in rows if row["way"].startswith("TransformerLens")}
    lines = [
        (
            row["case"],
            row["way"],
            "all" if row["cells"] == row["grid"] else f"{row['cells']} of {row['grid']}",
            f"{row['seconds']:.2f}",
            "{:.2f} to {:.2f}".format(*row["spread"]),
            f"{row['floor']:.2f}",
            f"{row['times_the_floor']:.2f}",
            f"{bridge[row['case']] / row['seconds']:.1f}" if row["case"] in bridge else "",
            "" if row["max_difference"] is None else f"{row['max_difference']:.1e}",
        )
        for row in rows
    ]
    heads = (
        "sweep", "way", "cells", "seconds", "spread", "floor", "x floor", "x faster than TransformerLens",
        "difference from bare hooks",
    )  # fmt: skip
    return "### Sweeps\n\n" + table(heads, lines)


def _memory(rows: Sequence[Found]) -> str:
    lines = [
        (row["case"], row["way"], row.get("error") or f"{row['peak_bytes'] / 2**20:.0f}",
         "" if "error" in row else f"{row['loaded_bytes'] / 2**20:.0f}")
        for row in rows
    ]  # fmt: skip
    return "### Memory\n\n" + table(("sweep", "way", "peak above the loaded model, MiB", "loaded process, MiB"), lines)


def _reading(rows: Sequence[Found]) -> str:
    lines = [
        (row["case"], row["way"], f"{row['tokens_per_second']:.0f}", f"{row['max_difference']:.1e}") for row in rows
    ]
    return "### Reading activations\n\n" + table(("what", "way", "tokens a second", "difference"), lines)


def _dictionaries(rows: Sequence[Found]) -> str:
    lines = [
        (
            row["what"], f"{row['seconds']:.2f}", row["against"], f"{row['their_seconds']:.2f}",
            f"{row['ratio']:.2f}", row["n"],
        )
        for row in rows
    ]  # fmt: skip
    return "### Dictionaries\n\n" + table(("what", "seconds", "against", "its seconds", "ratio", "n"), lines)


def _server(rows: Sequence[Found]) -> str:
    lines = [
        (row["what"], f"{row['seconds']:.3f}", f"{row['most']:.3f}", str(row["n"]), row["aim"] or "") for row in rows
    ]
    return "### Server\n\n" + table(("what", "median, s", "most, s", "n", "aim, s"), lines)


def table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A Markdown table."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    return "\n".join([*lines, *(f"| {' | '.join(map(str, row))} |" for row in rows)])
