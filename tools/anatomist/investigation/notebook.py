"""An investigation as code: the same cells as a Jupyter notebook and as a plain script that run from top to bottom."""

from __future__ import annotations

import hashlib
import json
import pprint
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from .record import Investigation, NotedRun


@dataclass(frozen=True)
class Cell:
    """A cell, as Markdown or as code."""

    kind: Literal["markdown", "code"]
    text: str


@dataclass(frozen=True)
class RunAgain:
    """A stored run as the notebook makes it: its arguments, with the prompts as a file beside the notebook."""

    noted: NotedRun
    arguments: Mapping[str, object]
    prompts: str | None  # file name


SET_UP = """\
import json
from pathlib import Path

from anatomist.comparing import compare_numbers
from anatomist.desk import LoadRequest
from anatomist.host import Host

HERE = Path(__file__).resolve().parent if "__file__" in globals() else Path.cwd()
host = Host(HERE / "workspace", allow=[HERE])


def again(run, technique, arguments, prompts=None):
    \"\"\"Run it once more; every number must be the stored one.\"\"\"
    given = {{**arguments, "model": MODELS[arguments["model"]]}}
    if prompts is not None:
        given["prompts"] = str(HERE / "prompts" / prompts)
    answer = host.call(technique, given)
    stored = json.loads((HERE / "expected" / f"{{run}}.json").read_text(encoding="utf-8"))
    found = answer.result.model_dump(mode="json")
    numbers = compare_numbers(stored, found, absolute={absolute!r}, relative={relative!r})
    assert numbers.same, f"{{run}}: {{numbers.beyond}} of {{numbers.compared}} numbers differ: {{numbers.gaps}}"
    print(f"{{run}}: {{numbers.compared}} numbers as stored, largest difference {{numbers.largest:.2g}}")
    return answer.result"""


def cells(
    state: Investigation, runs: Sequence[RunAgain], models: Mapping[str, Mapping[str, str]], *, absolute: float,
    relative: float,
) -> tuple[Cell, ...]:  # fmt: skip
    """Question, predictions, every run with its numbers asserted, and what the checks came to."""
    found = [Cell("markdown", f"# {state.opened.question}\n\nInvestigation {state.id}, opened {state.opened.at}.")]
    found += [Cell("code", SET_UP.format(absolute=absolute, relative=relative)), Cell("code", _models(models))]
    for h in state.hypotheses:
        found.append(
            Cell("markdown", f"**{h.id}** {h.statement}\n\nPredicted: {h.prediction}\n\nFalse if: {h.falsified_by}")
        )
    for run in runs:
        found += [Cell("markdown", _about(run.noted)), Cell("code", _call(run))]
    for f in state.findings:
        verdict = state.last_verdict(f.id)
        became = "Not checked." if verdict is None else f"**{verdict.verdict}**: {verdict.wording}"
        found.append(Cell("markdown", f"## {f.id}: {f.claim}\n\n{became}"))
    found.append(Cell("code", f'print("all {len(runs)} runs gave the stored numbers")'))
    return tuple(found)


def _models(models: Mapping[str, Mapping[str, str]]) -> str:
    rows = [
        f"    {name!r}: host.load(LoadRequest({', '.join(f'{k}={v!r}' for k, v in request.items())})).handle,"
        for name, request in models.items()
    ]
    return "\n".join(["MODELS = {", *rows, "}"])


def _about(noted: NotedRun) -> str:
    purpose = f", {noted.purpose}" if noted.purpose else ""
    return f"### {noted.run}: {noted.technique} ({noted.label}{purpose})\n\n{noted.summary}"


def _call(run: RunAgain) -> str:
    written = pprint.pformat(dict(run.arguments), indent=1, width=100, sort_dicts=False)
    prompts = "" if run.prompts is None else f", prompts={run.prompts!r}"
    name = run.noted.run.replace("-", "_")
    return f"{name} = again({run.noted.run!r}, {run.noted.technique!r}, {written}{prompts})"


def as_script(found: Sequence[Cell]) -> str:
    """Cells of text become comments; editors that know '# %%' show them as cells."""
    parts = []
    for cell in found:
        if cell.kind == "code":
            parts.append(f"# %%\n{cell.text}\n")
        else:
            lines = "\n".join(f"# {line}".rstrip() for line in cell.text.splitlines())
            parts.append(f"# %% [markdown]\n{lines}\n")
    return "\n".join(parts)


def as_notebook(found: Sequence[Cell]) -> str:
    """Jupyter's own format, version 4.5."""
    written = [_cell(number, cell) for number, cell in enumerate(found)]
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return json.dumps({"cells": written, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}, indent=1)


def _cell(number: int, cell: Cell) -> dict[str, object]:
    name = hashlib.sha256(f"{number}/{cell.text}".encode()).hexdigest()[:12]
    common = {"id": name, "cell_type": cell.kind, "metadata": {}, "source": cell.text.splitlines(keepends=True)}
    return common | ({"execution_count": None, "outputs": []} if cell.kind == "code" else {})
