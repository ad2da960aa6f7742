"""An investigation as a page of Markdown: what a person reads under version control."""

from __future__ import annotations

from collections.abc import Iterable

from .record import Finding, Hypothesis, Investigation, Verdict


def as_markdown(state: Investigation) -> str:
    """Question, hypotheses, decisions, runs, findings with their checks, in the order they were written."""
    opened = state.opened
    lines = [f"# {opened.question}", "", f"Investigation {state.id}, opened {opened.at}, model `{opened.model}`."]
    lines += _section("Hypotheses", (line for h in state.hypotheses for line in _hypothesis(h)))
    lines += _section("Decisions", (f"- {d.at}: {d.text} Why: {d.why}" for d in state.decisions))
    lines += _section("Runs", (f"- `{r.run}` {r.technique} ({r.label}): {_one_line(r.summary)}" for r in state.runs))
    lines += _section("Findings", (line for f in state.findings for line in _finding(f, state.last_verdict(f.id))))
    return "\n".join(lines) + "\n"


def _section(title: str, body: Iterable[str]) -> list[str]:
    lines = list(body)
    return ["", f"## {title}", "", *lines] if lines else []


def _hypothesis(h: Hypothesis) -> list[str]:
    rivals = h.rivals_in_words or "none written"
    return [
        f"- **{h.id}** {h.statement}",
        f"  - predicted ({h.at}): {h.prediction}",
        f"  - false if: {h.falsified_by}",
        f"  - rivals: {rivals}",
    ]


def _finding(f: Finding, verdict: Verdict | None) -> list[str]:
    lines = [f"### {f.id}: {f.claim}", "", f"{f.kind}, components {', '.join(f.components)}, runs {', '.join(f.runs)}."]
    if verdict is None:
        return [*lines, "", "Not checked yet.", ""]
    rows = [f"| {c.name} | {c.outcome} | {_one_line(c.reason)} |" for c in verdict.checks]
    head = ["", f"**{verdict.verdict}**: {verdict.wording}", "", "| check | outcome | why |", "|---|---|---|"]
    return [*lines, *head, *rows, ""]


def _one_line(text: str) -> str:
    return " ".join(text.split()).replace("|", "/")
