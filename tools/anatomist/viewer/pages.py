"""What the viewer shows: the overview, and one run."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from ..errors import AnatomistError
from ..figures import Figure
from ..investigation.ledger import Ledger
from ..investigation.record import Investigation
from ..report.page import Page, Section
from ..store import Store, StoredRun

MOST_CARDS = 60  # newest runs that the overview shows with their pictures
_LEADING = ("summary", "warnings", "about")  # of a result: shown by themselves


def overview(workspace: Path, store: Store, ledger: Ledger) -> Page:
    """Investigations, runs, and what is running now."""
    ids = store.ids()
    page = Page(
        title=workspace.name.lstrip(".").capitalize() or "Workspace", kicker="Anatomist · workspace",
        lede=f"{workspace}: {len(ledger.ids())} investigations, {len(ids)} runs.",
        foot="Read-only, and served to this machine alone.",
    )  # fmt: skip
    script = files("anatomist.viewer").joinpath("live.js").read_text(encoding="utf-8")
    page.section("Running now").live("Nothing is running.", script)
    _investigations(page.section("Investigations"), ledger)
    runs = page.section("Runs")
    cards = [_card(store.get(run_id)) for run_id in reversed(ids[-MOST_CARDS:])]
    runs.cards([card for card in cards if card])
    if not ids:
        runs.text("None yet: every technique that is called in this workspace keeps its run here.")
    if len(ids) > MOST_CARDS:
        runs.note(f"The newest {MOST_CARDS} of {len(ids)}; list_runs finds the others.")
    return page


def run_page(run: StoredRun) -> Page:
    """One run: picture, summary, what it warns of, numbers, and what they depend on."""
    about, result = run.about(), run.json("result.json")
    page = Page(
        title=f"{about.technique} · {run.id}", kicker="Anatomist · run",
        lede=str(result.get("summary", "")), foot="Read-only, and served to this machine alone.",
    )  # fmt: skip
    _drawn(page.section("Result"), run, result)
    page.section("Arguments").code(json.dumps(run.json("arguments.json"), indent=1, ensure_ascii=False))
    _depends(page.section("What it depends on"), run)
    page.section("Back").link("All investigations and runs", "/")
    return page


def _investigations(section: Section, ledger: Ledger) -> None:
    rows = [_row(ledger, name) for name in reversed(ledger.ids())]
    if not rows:
        section.text("None yet: open_investigation begins one.")
        return
    section.link_table(["", "question", "model", "runs", "findings", "verdicts"], rows)


def _row(ledger: Ledger, name: str) -> tuple[str, list[str]]:
    """Where it leads, and its cells; a damaged record says so."""
    try:
        state = ledger.get(name)
    except AnatomistError as error:
        return f"/investigations/{name}", [name, f"cannot be read: {error}", "", "", "", ""]
    opened = state.opened
    return f"/investigations/{name}", [
        name, opened.question, opened.model, str(len(state.runs)), str(len(state.findings)), _verdicts(state),
    ]  # fmt: skip


def _verdicts(state: Investigation) -> str:
    found = [v.verdict if (v := state.last_verdict(f.id)) else "not checked" for f in state.findings]
    return ", ".join(found)


def _card(run: StoredRun) -> tuple[str, str | None, str, str] | None:
    """Where it leads, its picture, title and words; None for a run that has just been deleted."""
    try:
        about, summary = run.about(), str(run.json("result.json").get("summary", ""))
    except AnatomistError as error:
        return f"/runs/{run.id}", None, run.id, f"cannot be read: {error}"
    picture = f"/pictures/{run.id}" if run.picture else None
    return f"/runs/{run.id}", picture, f"{run.id} · {about.technique}", f"{about.model}. {summary}"


def _drawn(section: Section, run: StoredRun, result: dict[str, object]) -> None:
    if run.picture:
        section.figure(Figure.model_validate(run.json("figure.json")), run=run.id)
    warnings = result.get("warnings")
    for warning in warnings if isinstance(warnings, list) else []:
        section.note(str(warning))
    numbers = {name: value for name, value in result.items() if name not in _LEADING}
    section.code(json.dumps(numbers, indent=1, ensure_ascii=False), "All numbers of the result")


def _depends(section: Section, run: StoredRun) -> None:
    about = run.about()
    rows = [[name, str(value)] for name, value in about.model_dump(exclude={"versions"}).items()]
    section.table(["", ""], rows)
    section.text("Versions: " + ", ".join(f"{k} {v}" for k, v in about.versions.items()) + ".")
    arrays = run.arrays()
    if arrays:
        rows = [[a.name, " x ".join(map(str, a.shape)), ", ".join(a.axes), a.dtype, a.unit] for a in arrays.values()]
        section.heading("Arrays").table(["name", "shape", "axes", "dtype", "unit"], rows)
    section.code(json.dumps(run.json("provenance.json"), indent=1, ensure_ascii=False), "The whole provenance")
