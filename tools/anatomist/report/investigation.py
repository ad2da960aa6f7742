"""An investigation as a page: question, what became of each hypothesis, figures, checks, limits, reproduction."""

from __future__ import annotations

from ..errors import AnatomistError
from ..figures import Figure
from ..investigation.record import Check, Finding, Investigation, NotedRun
from ..result import About
from ..store import Store
from .page import Page, Section, Tone

TONES: dict[str, Tone] = {"validated": "", "supported": "weak", "inconclusive": "weak", "refuted": "against"}
EXPLAINED = {
    "validated": "every required check passed",
    "supported": "nothing failed, but not every required check could be made",
    "inconclusive": "the checks do not decide",
    "refuted": "the effect is shown to be too small, or of the wrong sign",
}


def investigation_page(state: Investigation, store: Store) -> Page:
    """The whole report."""
    opened = state.opened
    page = Page(
        title=opened.question,
        kicker=f"Investigation {state.id}",
        lede=f"Model {opened.model}; opened {opened.at}; runs: {len(state.runs)}; findings: {len(state.findings)}.",
        foot="Every figure on this page was computed in the runs listed under Reproduction. Made with Anatomist.",
    )
    _answer(page.section("In short"), state)
    _hypotheses(page.section("Hypotheses"), state)
    for finding in state.findings:
        _finding(page.section(f"Finding {finding.id}"), state, finding)
    _pictures(page.section("What was run"), state, store)
    _limits(page.section("Limits"), state)
    _reproduction(page.section("Reproduction"), state, store)
    return page


def _answer(section: Section, state: Investigation) -> None:
    if not state.findings:
        section.verdict("No finding has been recorded: this is an exploration so far.", "weak")
    for finding in state.findings:
        verdict = state.last_verdict(finding.id)
        if verdict is None:
            section.verdict(f"{finding.claim} (claimed, not checked)", "weak")
        else:
            section.verdict(f"{verdict.verdict.capitalize()}: {verdict.wording}", TONES[verdict.verdict])


def _hypotheses(section: Section, state: Investigation) -> None:
    if not state.hypotheses:
        section.text("None was written down.")
    rows = []
    for h in state.hypotheses:
        found = [v.verdict for f in state.findings if f.hypothesis == h.id and (v := state.last_verdict(f.id))]
        rows.append([h.id, h.statement, h.prediction, h.falsified_by, h.rivals_in_words or "none", ", ".join(found)])
    section.table(["", "statement", "prediction", "false if", "rivals", "what became of it"], rows)
    if state.decisions:
        section.heading("Decisions").table(["when", "what", "why"], [[d.at, d.text, d.why] for d in state.decisions])


def _finding(section: Section, state: Investigation, finding: Finding) -> None:
    verdict = state.last_verdict(finding.id)
    section.text(
        f"{finding.claim} Claimed as {finding.kind}, of {', '.join(finding.components)}, chosen among "
        f"{finding.searched} searched; smallest effect that matters: {finding.minimum_effect:.0%}."
    )
    section.table(["rests on run"], [[run] for run in finding.runs])
    if verdict is None:
        section.note("Not checked yet: validate_finding runs the checks.")
        return
    section.verdict(verdict.wording, TONES[verdict.verdict])
    section.tiles([_tile(c) for c in verdict.checks if c.figures.get("share") is not None][:4])
    rows = [[c.name, _outcome(c), c.reason, *_first_run(c)] for c in verdict.checks]
    section.table(["check", "outcome", "why", "run"], rows)
    section.text(f"{verdict.verdict}: {EXPLAINED[verdict.verdict]}. Attempt {verdict.attempt}, seed {verdict.seed}.")


def _tile(check: Check) -> tuple[str, str, str | None]:
    low, high = check.figures.get("low"), check.figures.get("high")
    interval = "" if low is None or high is None else f" [{low:.2f}, {high:.2f}]"
    return f"{check.figures['share']:.2f}", f"share, {check.name.replace('_', ' ')}{interval}", _run_of(check)


def _run_of(check: Check) -> str | None:
    return check.runs[0] if check.runs else None


def _first_run(check: Check) -> list[str]:
    return [check.runs[0] if check.runs else ""]


def _outcome(check: Check) -> str:
    return check.outcome.replace("_", " ")


def _pictures(section: Section, state: Investigation, store: Store) -> None:
    for run in state.runs:
        if run.purpose:
            continue  # runs that a check made are in its table
        section.heading(f"{run.technique} ({run.label})").text(run.summary)
        figure = _figure(run, store)
        if figure is not None:
            section.figure(figure, run=run.run)
        for warning in _warnings(run, store):
            section.note(warning)


def _warnings(run: NotedRun, store: Store) -> list[str]:
    """What a run warns of; a careful reader must see it beside the numbers."""
    try:
        found = store.get(run.run).json("result.json").get("warnings")
    except AnatomistError:
        return []
    return [str(w) for w in found] if isinstance(found, list) else []


def _figure(run: NotedRun, store: Store) -> Figure | None:
    try:
        return Figure.model_validate(store.get(run.run).json("figure.json"))
    except AnatomistError:
        return None  # a run without a picture, or no longer in the workspace: the reproduction table says so


def _limits(section: Section, state: Investigation) -> None:
    verdicts = [v for f in state.findings if (v := state.last_verdict(f.id))]
    section.text(*[reason for v in verdicts if v.verdict != "validated" for reason in v.reasons])
    section.text(
        "Other sets of components may do the same; a validated set is a circuit, not the circuit. What was shown holds "
        "for this model, these templates and this metric.",
        f"{sum(r.label == 'exploratory' for r in state.runs)} of {len(state.runs)} runs are exploratory: made before a "
        "prediction was written, or on prompts that were not held out.",
    )


def _reproduction(section: Section, state: Investigation, store: Store) -> None:
    section.text("reproduce_run makes any of these again in a fresh process and compares every number.")
    rows = [(r.run, _run_row(r, store)) for r in state.runs]
    section.anchor_table(["run", "technique", "label", "split", "for", "model", "seed", "n", "seconds"], rows)
    first = _about(state.runs[0], store) if state.runs else None
    if first is not None:
        section.text("Versions: " + ", ".join(f"{k} {v}" for k, v in first.versions.items()) + ".")


def _run_row(run: NotedRun, store: Store) -> list[str]:
    about = _about(run, store)
    if about is None:
        return [run.run, run.technique, run.label, run.split or "", run.purpose, "not in the workspace", "", "", ""]
    return [
        run.run, run.technique, run.label, run.split or "", run.purpose, about.model, str(about.seed),
        str(about.n or ""), f"{about.seconds:.1f}",
    ]  # fmt: skip


def _about(run: NotedRun, store: Store) -> About | None:
    try:
        return store.get(run.run).about()
    except AnatomistError:
        return None

