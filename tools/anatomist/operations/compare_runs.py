"""Compare two stored runs: what was asked differently, what they depend on, and which numbers differ.

Comes back: changed arguments and provenance, how many numbers agree within tolerance, and the largest gaps. It computes
nothing anew: reproduce_run does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..comparing import Changed, Comparison, changed, compare_numbers
from ..operation import Outcome, Where
from ..result import Frozen

if TYPE_CHECKING:
    from ..desk import Desk
    from ..store import StoredRun
    from ..technique import Progress

TITLE = "Compare runs"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False
DEPENDS_ON = ("model", "prompts", "machine", "git")


class Arguments(Frozen):
    """Two runs and how close their numbers must be."""

    first: Annotated[str, Field(description="Id of a run.")]
    second: Annotated[str, Field(description="Id of another run.")]
    absolute: Annotated[float, Field(ge=0, description="Absolute tolerance, in each number's own unit.")] = 1e-4
    relative: Annotated[float, Field(ge=0, description="Relative tolerance.")] = 1e-4


class RunsCompared(Outcome):
    """The two runs side by side."""

    arguments: tuple[Changed, ...] = Field(description="Arguments that differ.")
    depends: tuple[Changed, ...] = Field(description="Model, prompts, machine or commit that differ.")
    numbers: Comparison = Field(description="How their numbers compare.")


def run(desk: Desk, arguments: Arguments, progress: Progress) -> RunsCompared:
    first, second = desk.store.get(arguments.first), desk.store.get(arguments.second)
    asked = tuple(changed(_read(first, "arguments.json"), _read(second, "arguments.json")))
    sides = [{k: v for k, v in _read(r, "provenance.json").items() if k in DEPENDS_ON} for r in (first, second)]
    depends = tuple(c for c in changed(sides[0], sides[1]) if not c.where.endswith("load_seconds"))
    numbers = compare_numbers(
        _read(first, "result.json"), _read(second, "result.json"),
        absolute=arguments.absolute, relative=arguments.relative,
    )  # fmt: skip
    said = "agree within tolerance" if numbers.same else f"differ: {numbers.beyond} beyond tolerance"
    alone = f" {numbers.only_one} numbers stand in one run only." if numbers.only_one else ""
    return RunsCompared(
        summary=(
            f"{first.id} and {second.id}: {numbers.compared} numbers {said} "
            f"(largest difference {numbers.largest:.3g}).{alone} "
            f"Arguments that differ: {', '.join(c.where for c in asked) or 'none'}; "
            f"dependencies that differ: {', '.join(c.where for c in depends) or 'none'}."
        ),
        arguments=asked,
        depends=depends,
        numbers=numbers,
    )


def _read(stored: StoredRun, file: str) -> dict:
    return dict(stored.json(file))
