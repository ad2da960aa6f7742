"""Run the benchmarks: `python -m benchmarks` (under 20 minutes on two quiet cores), `--full` for every grid whole."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Set before a framework is imported: no progress bars between the lines of the table.
os.environ.setdefault("TQDM_DISABLE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

SECTIONS = ("sweeps", "memory", "reading", "dictionaries", "server")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, keep."""
    options = _parser().parse_args(arguments)
    warnings.filterwarnings("ignore", module=r"torch|transformers|transformer_lens|nnsight|nnterp")
    import torch

    torch.set_grad_enabled(False)
    from anatomist.model.offline import offline_folder
    from anatomist.model.threads import available

    from .report import into_readme, keep, text_of

    torch.set_num_threads(options.threads or available())
    started = time.perf_counter()

    def say(what: str) -> None:
        print(f"[{time.perf_counter() - started:5.0f} s] {what}", file=sys.stderr, flush=True)

    folder = options.folder or offline_folder("smollm2-135m")
    found = measure(folder, options.only or SECTIONS, options.full, say)
    name = ("full" if options.full else "latest") if not options.only else "partial"
    path = keep(found, name)
    text = text_of(found)
    if not options.only:
        into_readme(text)
    print(text)
    say(f"written to {path}")


def measure(folder: Path, sections: Sequence[str], full: bool, say: Callable[[str], None]) -> dict[str, Any]:
    """The sections asked for; what goes to JSON."""
    import torch

    from . import memory, reading, serving, sweeps
    from .clock import Rate
    from .report import machine
    from .ways import WAYS, Bare, Ours

    rate = Rate(torch.float32, torch.device("cpu"))
    rate.measure()
    found: dict[str, Any] = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    if {"sweeps", "reading"} & set(sections):
        say("loading every way's model")
        ways = [make(folder) for make in WAYS.values()]
        ours = next(way for way in ways if isinstance(way, Ours))
        bare = next(way for way in ways if isinstance(way, Bare))
        anatomy = ours.model.anatomy  # type: ignore[attr-defined]
        if "sweeps" in sections:
            found["sweeps"] = []
            for case in sweeps.FULL if full else [*sweeps.WHOLE, *sweeps.SAMPLED]:
                rows = sweeps.run_case(case, ways, anatomy, bare.tokenizer, rate, say)
                found["sweeps"] += rows
            # The floor is taken at the best rate of the whole run, which is known only now.
            found["sweeps"] = [sweeps.at_rate(row, rate.best).as_dict() for row in found["sweeps"]]
        if "reading" in sections:
            say("reading activations")
            found["reading"] = reading.measured(ways, anatomy.sizes.d_vocab)
        del ways, ours, bare, anatomy
        gc.collect()
    if "dictionaries" in sections:
        from anatomist.model.loading import load_model

        from . import dictionaries

        say("dictionaries: encoding and training")
        found["dictionaries"] = dictionaries.measured(load_model(str(folder), check_parity=False))
    if "memory" in sections:
        found["memory"] = []
        for case in memory.CASES:
            for way in WAYS:
                say(f"memory: {case[0]}, {case[1]} tokens, {case[2]} prompts: {way}")
                found["memory"].append(memory.measured(folder, way, *case))
    if "server" in sections:
        say("the server: start, load, calls")
        found["server"] = serving.measured()
    rate.measure()
    return {**found, "rates": rate.found}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="benchmarks", description=__doc__)
    parser.add_argument("--full", action="store_true", help="every grid whole: hours")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="some sections; README and latest.json stay")
    parser.add_argument("--threads", type=int, help="compute threads (default: the cores this process may use)")
    parser.add_argument("--folder", type=Path, help="folder of SmolLM2-135M (default: the offline model)")
    return parser


if __name__ == "__main__":
    main()
