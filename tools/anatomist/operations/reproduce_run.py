"""Run a stored run again from its record, in a fresh process, and compare every number.

Comes back: whether the numbers agree within tolerance, the new run's id, and what it depends on that has changed
(versions, device, weights, commit). The old run is not touched.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..comparing import Changed, Comparison, changed, compare_numbers
from ..errors import AnatomistError
from ..operation import Outcome, Where
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..technique import Progress

TITLE = "Reproduce a run"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False
TICK_SECONDS = 0.5


class NotReproduced(AnatomistError):
    """The run could not be made again; the text is what the fresh process said."""


class Arguments(Frozen):
    """Which run, and how close."""

    run: Annotated[str, Field(description="Id of a stored run.")]
    absolute: Annotated[float, Field(ge=0, description="Absolute tolerance, in each number's own unit.")] = 1e-4
    relative: Annotated[float, Field(ge=0, description="Relative tolerance.")] = 1e-4


class Reproduced(Outcome):
    """The run made again."""

    again: str = Field(description="Id of the new run.")
    same: bool = Field(description="Whether every number agrees within tolerance.")
    numbers: Comparison = Field(description="How the numbers compare.")
    depends: tuple[Changed, ...] = Field(description="What it depends on that differs: versions, device, weights.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> Reproduced:
    """Run the stored arguments again in a fresh process.

    Raises:
        UnknownName, CorruptFile: the record is not there or damaged.
        NotReproduced: the fresh process failed; its words are in the text.
    """
    stored = desk.store.get(arguments.run)
    about = stored.about()
    again = _run_afresh(desk, about.technique, _asked(stored.json("arguments.json")), progress)
    other = desk.store.get(again)
    numbers = compare_numbers(
        _result(stored.json("result.json")), _result(other.json("result.json")),
        absolute=arguments.absolute, relative=arguments.relative,
    )  # fmt: skip
    depends = tuple(changed(_depends(stored.json("provenance.json")), _depends(other.json("provenance.json"))))
    found = "every number agrees" if numbers.same else f"{numbers.beyond} of {numbers.compared} numbers differ"
    return Reproduced(
        summary=(
            f"{stored.id} was run again as {again} in a fresh process: {found} within {arguments.absolute:g} + "
            f"{arguments.relative:g} of the value (largest difference {numbers.largest:.3g}). "
            f"Changed since: {', '.join(c.where for c in depends) or 'nothing it depends on'}."
        ),
        again=again,
        same=numbers.same,
        numbers=numbers,
        depends=depends,
    )


def _asked(arguments: dict) -> str:
    """The stored arguments; the new run is evidence of nothing new, so that it stays out of the investigation."""
    return json.dumps({**arguments, "investigation": None})


def _run_afresh(desk: Desk, technique: str, arguments: str, progress: Progress) -> str:
    """The id of the new run; cancellation ends the process."""
    folders = [part for folder in desk.roots.folders for part in ("--allow", str(folder))]
    command = [
        sys.executable, "-P", "-m", "anatomist", "run", "--workspace", str(desk.workspace), *folders, technique, "-",
    ]  # fmt: skip
    scratch = tempfile.TemporaryFile
    with scratch("w+") as asked, scratch("w+") as out, scratch("w+") as said:
        asked.write(arguments)
        asked.seek(0)
        process = subprocess.Popen(command, stdin=asked, stdout=out, stderr=said, text=True)
        try:
            ticks = 0
            while process.poll() is None:
                progress(ticks, 0, f"running {technique} again in a fresh process")
                ticks += 1
                time.sleep(TICK_SECONDS)
        except BaseException:
            process.kill()
            process.wait()
            raise
        out.seek(0)
        said.seek(0)
        if process.returncode:
            raise NotReproduced(f"{technique} could not be run again: {said.read().strip()[-1500:]}")
        return str(json.load(out)["about"]["run"])


def _result(record: dict) -> dict:
    return dict(record)


def _depends(record: dict) -> dict:
    """Versions, device, dtype, model and its weights, prompts, commit: what may explain a difference."""
    about, model = dict(record["about"]), dict(record["model"])
    return {
        "versions": about["versions"],
        **{key: about[key] for key in ("backend", "dtype", "device", "bos")},
        "weights": model["weights_hash"],
        "prompts": (record.get("prompts") or {}).get("sha256"),
        "machine": record.get("machine"),
        "commit": (record.get("git") or {}).get("commit"),
    }
