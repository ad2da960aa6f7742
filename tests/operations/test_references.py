"""open_reference, list_techniques, describe_technique."""

from __future__ import annotations

import pytest
from anatomist import pack
from anatomist.desk import Desk
from anatomist.errors import BadArguments, UnknownName
from anatomist.host import Host
from anatomist.operations import describe_technique, list_techniques, open_reference
from anatomist.ranking import Ranking, words


def opened(desk: Desk, **arguments: object) -> open_reference.Reference:
    result = desk.call("open_reference", arguments).result
    assert isinstance(result, open_reference.Reference)
    return result


def found(desk: Desk, **arguments: object) -> list_techniques.Techniques:
    result = desk.call("list_techniques", arguments).result
    assert isinstance(result, list_techniques.Techniques)
    return result


def test_references_are_listed_when_none_is_named(host: Host) -> None:
    listed = opened(host)
    assert listed.text is None
    names = [k.name for k in listed.known]
    assert names == list(pack.references())
    assert "SKILL" in names
    assert all(k.title for k in listed.known)


@pytest.mark.positive_control
def test_a_text_comes_in_parts_that_add_up(host: Host) -> None:
    whole = (pack.folder() / "SKILL.md").read_text()
    part = opened(host, name="SKILL", limit=500)
    text = part.text or ""
    assert part.total == len(whole)
    while part.next_offset is not None:
        part = opened(host, name="SKILL", offset=part.next_offset, limit=500)
        text += part.text or ""
    assert text == whole
    assert opened(host, name="SKILL.md").text == whole[:12000]


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["pitfals", "../../etc/passwd", "/etc/passwd", ""])
def test_an_unknown_text_lists_those_there_are(host: Host, name: str) -> None:
    with pytest.raises(UnknownName, match=r"Known: SKILL, "):
        opened(host, name=name)


@pytest.mark.positive_control
def test_a_technique_is_found_by_a_question(host: Host) -> None:
    assert [t.name for t in found(host).techniques] == ["count_tokens", "hold_much"]
    assert [t.name for t in found(host, question="How many tokens are there?").techniques] == ["count_tokens"]
    assert found(host, question="How many tokens are there?").total == 1


@pytest.mark.negative_control
def test_a_question_about_nothing_finds_nothing_and_says_so(host: Host) -> None:
    nothing = found(host, question="zebra?")
    assert nothing.techniques == ()
    assert nothing.summary == "No technique shares a word with 'zebra?'; leave `question` out to list all."


def test_techniques_come_in_pages(host: Host) -> None:
    first = found(host, limit=1)
    assert (first.total, first.next_offset) == (2, 1)
    assert found(host, limit=1, offset=1).next_offset is None


@pytest.mark.hand_worked
def test_rare_words_count_more_and_endings_do_not() -> None:
    ranking = Ranking({"a": ((1.0, "patching heads"),), "b": ((1.0, "heads attend"),), "c": ((2.0, "heads"),)})
    assert words("Which heads are patched?") == ["head", "patch"]
    # "head" is in all three (log 2 each, doubled in c), "patch" in one (log 4)
    assert ranking.score("a", "patch a head") == pytest.approx(3 * ranking.score("b", "patch a head"))
    assert ranking.best("patch a head", ["b", "c", "a"], str) == ["a", "c", "b"]


@pytest.mark.positive_control
def test_a_technique_is_described_with_both_schemas(host: Host) -> None:
    told = host.call("describe_technique", {"name": "count_tokens"}).result
    assert isinstance(told, describe_technique.Description)
    assert told.summary.endswith("Needs: model, prompts.")
    assert "layer" in told.arguments["properties"]  # type: ignore[operator]
    assert "norm" in told.result["properties"]  # type: ignore[operator]
    assert told.page is None
    assert host.call("describe_technique", {"name": "get_run"}).result.summary.startswith("get_run: Read")  # type: ignore[attr-defined]


@pytest.mark.bad_input
def test_an_unknown_technique_is_told_the_nearest(host: Host) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'count_tokens'"):
        host.call("describe_technique", {"name": "count_token"})
    with pytest.raises(BadArguments, match="'name' is missing"):
        host.call("describe_technique", {})
