"""The report of an investigation: a page that parses, whose every figure leads to its run."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import pytest
from anatomist.errors import OutsideRoots, UnknownName
from anatomist.figures import Bars, Figure
from anatomist.host import Host
from anatomist.report.page import Page

from tests.investigation.on_toys import TRUE_HEADS, ablated, claimed, opened, predicted, prompts, validated

VOID = {"meta", "link", "br", "img", "input", "hr"}
FIGURE = Figure(title="t", caption="c", panels=(Bars(title="b", value_title="v", labels=("x",), values=(1.0,)),))


class Read(HTMLParser):
    """Ids, links, text, sources from elsewhere, and whether every tag is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: list[str] = []
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.ids += [i] if (i := given.get("id")) else []
        self.links += [h[1:]] if (h := given.get("href")) and h.startswith("#") else []
        self.fetched += [s for s in (given.get("src"), given.get("href")) if s and s.startswith(("http", "//"))]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not set(self.open) & {"script", "style"}:
            self.text += data


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Host:
    """A workspace with one validated finding, one that was not checked, and a decision."""
    host = Host(tmp_path_factory.mktemp("report"))
    investigation, handle = opened(host), prompts(host)
    hypothesis = predicted(host, investigation, TRUE_HEADS, rivals=["<b>position</b> alone"])
    run = ablated(host, investigation, handle, TRUE_HEADS).run_id
    validated(host, investigation, claimed(host, investigation, hypothesis, run, TRUE_HEADS))
    claimed(host, investigation, hypothesis, run, TRUE_HEADS, "sufficient")
    host.call("log_decision", {"investigation": investigation, "text": "resample | not zero", "why": "far off"})
    return host


def report(host: Host) -> str:
    written = host.call("write_report", {"investigation": "i-0001"}).result.model_dump()
    return Path(written["html"]).read_text(encoding="utf-8")


def test_the_page_parses_and_fetches_nothing(host: Host) -> None:
    page = Read(report(host))
    assert page.open == []
    assert page.fetched == []
    assert len(page.ids) == len(set(page.ids))


@pytest.mark.positive_control
def test_every_link_leads_somewhere_and_every_run_has_its_row(host: Host) -> None:
    page, runs = Read(report(host)), {r.run for r in host.ledger.get("i-0001").runs}
    assert set(page.links) <= set(page.ids)
    assert runs <= set(page.ids)
    checks = host.ledger.get("i-0001").verdicts[-1].checks
    assert {c.runs[0] for c in checks} <= set(page.links)


def test_each_claim_is_worded_as_the_checks_allow(host: Host) -> None:
    page, verdict = Read(report(host)), host.ledger.get("i-0001").verdicts[-1]
    assert f"Validated: {verdict.wording}" in page.text
    assert "(claimed, not checked)" in page.text
    for check in verdict.checks:
        assert check.reason in page.text


def test_the_figures_of_the_checks_stand_on_the_page(host: Host) -> None:
    share = next(c.figures["share"] for c in host.ledger.get("i-0001").verdicts[-1].checks if c.name == "effect_size")
    assert f"{share:.2f}" in report(host)


@pytest.mark.negative_control
def test_words_of_the_record_are_never_markup(host: Host) -> None:
    text = report(host)
    assert "<b>position</b>" not in text
    assert "<b>position</b> alone" in Read(text).text


def test_the_markdown_holds_the_checks_as_a_table(host: Host) -> None:
    written = host.call("write_report", {"investigation": "i-0001"}).result.model_dump()
    text = Path(written["markdown"]).read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if line.startswith("| ") and " | pass | " in line]
    assert len(rows) == 7
    assert all(row.count("|") == 4 for row in rows)


def test_an_investigation_without_findings_is_called_an_exploration(tmp_path: Path) -> None:
    host = Host(tmp_path)
    opened(host)
    assert "this is an exploration so far" in Read(report(host)).text


@pytest.mark.bad_input
def test_an_unknown_investigation_and_a_place_outside_are_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="i-0001"):
        host.call("write_report", {"investigation": "i-0077"})
    with pytest.raises(OutsideRoots):
        host.call("write_report", {"investigation": "i-0001", "path": str(tmp_path / "elsewhere.html")})


def test_the_scripts_are_on_the_page_only_where_there_is_a_figure() -> None:
    page = Page(title="A & B", lede="l")
    section = page.section("First one")
    assert "<script></script>" in page.html()
    section.figure(FIGURE, run="r-0001")
    assert "<script></script>" not in page.html()
    assert "A &amp; B" in page.html()
    assert section.anchor == "first-one"
