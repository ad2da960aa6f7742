"""Write an investigation as a Jupyter notebook and a plain script that make every run again and assert its numbers.

Comes back: a folder with both, the prompts of every run as JSON lines, and the stored results they are held against.
It can be sent on as it is: it needs this library and the models, not the workspace.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from ..errors import BadArguments
from ..investigation.notebook import RunAgain, as_notebook, as_script, cells
from ..operation import Outcome, Where
from ..result import Frozen

if TYPE_CHECKING:
    from ..host import Host
    from ..investigation.record import NotedRun
    from ..technique import Progress

TITLE = "Export a notebook"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    """Which investigation, and where to."""

    investigation: Annotated[str, Field(description="Id from open_investigation.")]
    folder: Annotated[
        str | None, Field(description="Folder in the workspace or an allowed one; absent: beside the record.")
    ] = None
    absolute: Annotated[float, Field(ge=0, description="Absolute tolerance that is asserted.")] = 1e-4
    relative: Annotated[float, Field(ge=0, description="Relative tolerance that is asserted.")] = 1e-4


class Exported(Outcome):
    """The files."""

    notebook: str = Field(description="The Jupyter notebook.")
    script: str = Field(description="The same as a plain script.")
    folder: str = Field(description="Holds both, their prompts and the stored results.")
    runs: int = Field(description="Runs they make again.")


def run(host: Host, arguments: Arguments, progress: Progress) -> Exported:
    """Write the folder.

    Raises:
        UnknownName: no such investigation, or a run of it is no longer in the workspace.
        BadArguments: it holds no run. OutsideRoots: a folder that may not be written.
    """
    state = host.ledger.get(arguments.investigation)
    if not state.runs:
        raise BadArguments(f"{state.id} holds no run yet: pass investigation={state.id!r} to a technique first.")
    default = host.ledger.folder / state.id / "notebook"
    folder = host.roots.check(arguments.folder) if arguments.folder else default
    for part in ("prompts", "expected"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    runs = []
    for done, noted in enumerate(state.runs):
        progress(done, len(state.runs), f"writing {noted.run}")
        runs.append(_run_again(host, noted, folder))
    models = {str(r.arguments["model"]): _request(host, r) for r in runs}
    found = cells(state, runs, models, absolute=arguments.absolute, relative=arguments.relative)
    notebook, script = folder / "investigation.ipynb", folder / "investigation.py"
    notebook.write_text(as_notebook(found), encoding="utf-8")
    script.write_text(as_script(found), encoding="utf-8")
    return Exported(
        summary=f"{state.id} is at {folder} as a notebook and a script; they make {len(runs)} runs again.",
        notebook=str(notebook), script=str(script), folder=str(folder), runs=len(runs),
    )  # fmt: skip


def _run_again(host: Host, noted: NotedRun, folder: Path) -> RunAgain:
    """The arguments of a run, its prompts and its result, the last two written as files."""
    stored = host.store.get(noted.run)
    (folder / "expected" / f"{noted.run}.json").write_text(_text(stored.json("result.json")), encoding="utf-8")
    asked: dict[str, object] = {k: v for k, v in dict(stored.json("arguments.json")).items() if v is not None}
    asked.pop("investigation", None)
    split, prompts = str(asked.pop("split", "discovery")), asked.pop("prompts", None)
    if prompts is None:
        return RunAgain(noted, asked, None)
    chosen = host.resolve(_as_given(prompts), split).chosen
    lines = "".join(f"{p.model_dump_json()}\n" for p in chosen.prompts)
    shared = isinstance(prompts, str) and not prompts.endswith(".jsonl")
    name = f"{prompts}-{split}.jsonl" if shared else f"{noted.run}.jsonl"
    (folder / "prompts" / name).write_text(lines, encoding="utf-8")
    return RunAgain(noted, asked, name)


def _as_given(prompts: object) -> object:
    from ..prompts.prompt_set import Prompt

    return [Prompt.model_validate(p) for p in prompts] if isinstance(prompts, list) else prompts


def _request(host: Host, run: RunAgain) -> Mapping[str, str]:
    """How the run's model is loaded; toys have one backend and one dtype."""
    provenance = host.store.get(run.noted.run).json("provenance.json")
    model: dict[str, str] = dict(provenance["model"])  # type: ignore[call-overload, index]
    request = {"name": str(run.arguments["model"])}
    return request if model["backend"] == "toy" else {**request, "backend": model["backend"], "dtype": model["dtype"]}


def _text(record: object) -> str:
    import json

    return json.dumps(record)
