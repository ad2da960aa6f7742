"""list_runs and get_run: pages, slices, pictures, damaged runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.desk import Answer, Desk
from anatomist.errors import BadArguments, CorruptFile, UnknownName
from anatomist.host import Host
from anatomist.operations import get_run, list_runs
from anatomist.store import StoredRun


def page(desk: Desk, **arguments: object) -> list_runs.RunsPage:
    result = desk.call("list_runs", arguments).result
    assert isinstance(result, list_runs.RunsPage)
    return result


def read(desk: Desk, **arguments: object) -> get_run.RunRead:
    result = desk.call("get_run", arguments).result
    assert isinstance(result, get_run.RunRead)
    return result


def stored(host: Host) -> StoredRun:
    return host.store.get("r-0001")


def test_runs_are_listed_newest_first_in_pages(host: Host) -> None:
    for n in range(5):
        host.call("count_tokens", {"model": "toy-induction", "prompts": [{"clean": [1] * (n + 1)}]})
    first = page(host, limit=2)
    assert [r.run for r in first.runs] == ["r-0005", "r-0004"]
    assert (first.total, first.next_offset) == (5, 2)
    assert first.summary == "2 of 5 runs; the next page starts at offset=2."
    last = page(host, limit=2, offset=4)
    assert [r.run for r in last.runs] == ["r-0001"]
    assert last.next_offset is None
    assert first.runs[0].found == "5 tokens."


def test_runs_are_filtered_by_technique_and_model(host: Host, kept: Answer) -> None:
    assert page(host, technique="count_tokens", model="toy").total == 1
    assert page(host, technique="logit_lens").total == 0
    assert page(host, model="gpt2").total == 0


@pytest.mark.bad_input
def test_a_damaged_run_is_named_and_the_others_are_listed(host: Host, kept: Answer) -> None:
    host.call("count_tokens", {"model": "toy-induction", "prompts": [{"clean": [1]}]})
    (stored(host).folder / "result.json").write_text("{")
    listed = page(host)
    assert [r.run for r in listed.runs] == ["r-0002"]
    assert "r-0001/result.json cannot be read" in listed.warnings[0]
    with pytest.raises(CorruptFile, match=r"r-0001/result\.json"):
        read(host, run="r-0001")


@pytest.mark.positive_control
def test_a_run_is_read_back_concise_and_whole(host: Host, kept: Answer) -> None:
    concise = read(host, run="r-0001")
    assert concise.result is None
    assert concise.about == kept.result.about  # type: ignore[attr-defined]
    assert concise.arguments["model"] == "toy-induction"
    assert "about" not in concise.provenance
    detailed = read(host, run="r-0001", detail="detailed")
    assert detailed.result == kept.result.model_dump(mode="json")
    assert sorted((a.name, a.axes) for a in detailed.arrays) == [
        ("residual", ("prompt", "position", "width")),
        ("rows", ("prompt", "position", "width")),
    ]


@pytest.mark.positive_control
def test_a_slice_of_an_array_is_what_the_array_holds(host: Host, kept: Answer) -> None:
    _, whole = stored(host).array("residual")
    numbers = read(host, run="r-0001", array="residual", slice="0, 1:3, -2:").numbers
    assert numbers is not None
    assert numbers.shape == (2, 2)
    assert list(numbers.values) == whole[0, 1:3, -2:].ravel().tolist()


def test_a_grid_of_the_result_can_be_sliced_too(host: Host, kept: Answer) -> None:
    from anatomist.result import grid

    table = grid("g", "u", [("a", "xy"), ("b", "123")], [1.0, 2.0, None, 4.0, 5.0, 6.0])
    path = stored(host).folder / "result.json"
    path.write_text('{"summary": "s", "inner": [{"table": ' + table.model_dump_json() + "}]}")
    numbers = read(host, run="r-0001", array="inner.0.table", slice=":, 1:").numbers
    assert numbers is not None
    assert numbers.values == (2.0, None, 5.0, 6.0)


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "error", "told"),
    [
        ({"run": "r-0077"}, UnknownName, "Known: r-0001"),
        ({"array": "residuum"}, UnknownName, "Did you mean 'residual'"),
        ({"array": "residual", "slice": "5"}, BadArguments, "does not fit axis 0 of 2"),
        ({"array": "residual", "slice": "0,0,0,0"}, BadArguments, "has 4 parts; the array has 3 axes"),
        ({"array": "residual", "slice": "a"}, BadArguments, "write an integer from -2 to 1"),
        ({"array": "residual", "slice": "::0"}, BadArguments, "does not fit axis 0"),
        ({"picture": "svg"}, BadArguments, "'picture' is 'svg'"),
    ],
)
def test_what_a_run_does_not_have_is_told(
    host: Host, kept: Answer, arguments: dict[str, object], error: type[Exception], told: str
) -> None:
    with pytest.raises(error, match=told):
        read(host, **{"run": "r-0001", **arguments})


@pytest.mark.bad_input
def test_too_many_numbers_at_a_time_are_refused_with_a_slice_that_fits(
    host: Host, kept: Answer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(get_run, "MOST_NUMBERS", 500)
    with pytest.raises(BadArguments, match=r"at most 500 are read at a time; take a smaller part, e\.g\. '0, :, :'"):
        read(host, run="r-0001", array="residual")
    assert read(host, run="r-0001", array="residual", slice="0, :, :").numbers is not None


def test_a_picture_is_redrawn_beside_the_run(host: Host, kept: Answer) -> None:
    before = sorted(p.name for p in stored(host).folder.iterdir())
    answer = host.call("get_run", {"run": "r-0001", "picture": "png"})
    assert answer.png_path == host.workspace / "pictures" / "r-0001.png"
    assert answer.png_path is not None
    assert answer.png_path.read_bytes().startswith(b"\x89PNG")
    page_path = host.call("get_run", {"run": "r-0001", "picture": "html"}).png_path
    assert page_path is not None
    assert "<html" in Path(page_path).read_text().lower()
    assert sorted(p.name for p in stored(host).folder.iterdir()) == before


@pytest.mark.bad_input
def test_a_picture_that_is_not_there_is_told(host: Host, kept: Answer) -> None:
    (stored(host).folder / "figure.json").write_text('{"title": 1}')
    with pytest.raises(CorruptFile, match=r"figure\.json is no figure"):
        read(host, run="r-0001", picture="png")
