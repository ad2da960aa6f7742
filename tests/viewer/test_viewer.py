"""The viewer: what it shows, what it refuses, and that a run in the making is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.errors import BadArguments
from anatomist.host import Host
from anatomist.investigation.ledger import Ledger
from anatomist.store import Store
from anatomist.viewer.app import serve, view_app
from starlette.testclient import TestClient

TOY = "toy-induction"


def browser(workspace: Path) -> TestClient:
    return TestClient(view_app(workspace), base_url="http://127.0.0.1")


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One investigation with one run."""
    folder = tmp_path_factory.mktemp("viewed")
    host = Host(folder)
    opened = host.call("open_investigation", {"question": "Which <heads> copy?", "model": TOY, "task": "induction"})
    made = host.call("make_prompts", {"task": "induction", "model": TOY, "n": 32})
    given = {"model": TOY, "prompts": made.result.model_dump()["handle"], "direction": "noising", "site": "head"}
    host.call("patch_activations", {**given, "investigation": opened.result.model_dump()["investigation"]})
    return folder


def test_the_overview_lists_investigations_and_runs(workspace: Path) -> None:
    page = browser(workspace).get("/")
    assert page.status_code == 200
    assert "Which &lt;heads&gt; copy?" in page.text
    assert "<heads>" not in page.text
    assert 'href="/runs/r-0001"' in page.text
    assert 'src="/pictures/r-0001"' in page.text
    assert 'href="/investigations/i-0001"' in page.text


def test_a_run_shows_its_picture_its_arguments_and_what_it_depends_on(workspace: Path) -> None:
    page = browser(workspace).get("/runs/r-0001").text
    for shown in ("patch_activations", "noising", "vega", "Versions: ", "All numbers of the result"):
        assert shown in page
    picture = browser(workspace).get("/pictures/r-0001")
    assert picture.headers["content-type"] == "image/png"
    assert picture.content[:4] == b"\x89PNG"


def test_an_investigation_is_its_report(workspace: Path) -> None:
    assert "No finding has been recorded" in browser(workspace).get("/investigations/i-0001").text


@pytest.mark.hand_worked
def test_a_run_in_the_making_is_seen_until_it_is_complete(tmp_path: Path) -> None:
    store, seen = Store(tmp_path), browser(tmp_path)
    assert seen.get("/live").json() == {"running": [], "runs": 0}
    with store.writing() as writer:
        assert seen.get("/live").json()["running"] == []  # it has said nothing yet
        writer.progress("ablate", 3, 12, "layer 1")
        (found,) = seen.get("/live").json()["running"]
        assert (found["id"], found["technique"], found["what"]) == ("r-0001", "ablate", "layer 1")
        assert found["done"] / found["total"] == 0.25
        for name in ("arguments", "result", "provenance"):
            writer.text(f"{name}.json", "{}")
    assert seen.get("/live").json() == {"running": [], "runs": 1}
    assert {f.name for f in (tmp_path / "runs" / "r-0001").iterdir()} == {
        "arguments.json", "arrays.json", "result.json", "provenance.json",
    }  # fmt: skip


def test_a_killed_writer_is_not_running(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / ".r-0001.writing"
    folder.mkdir(parents=True)
    (folder / "owner.json").write_text('{"pid": 1, "started": 0, "machine": "elsewhere"}')
    (folder / "progress.json").write_text('{"technique": "ablate", "done": 1, "total": 2, "what": "x"}')
    assert len(Store(tmp_path).running()) == 1  # another machine's: it cannot be asked
    import socket

    (folder / "owner.json").write_text(f'{{"pid": 1, "started": 0, "machine": "{socket.gethostname()}"}}')
    assert Store(tmp_path).running() == ()


@pytest.mark.bad_input
def test_what_is_not_there_or_damaged_is_said_and_nothing_else_is_lost(workspace: Path, tmp_path: Path) -> None:
    seen = browser(workspace)
    assert seen.get("/runs/r-9999").status_code == 404
    assert "r-0001" in seen.get("/runs/r-9999").text
    assert seen.get("/investigations/i-0099").status_code == 404
    assert seen.get("/pictures/r-9999").status_code == 404
    assert seen.get("/runs/..%2f..%2fetc").status_code == 404
    ledger = Ledger(tmp_path)
    ledger.open("What is damaged?", TOY, None)
    (ledger.folder / "i-0001" / "events.jsonl").write_text('{"not": "an event"}\n')
    (tmp_path / "runs" / "r-0001").mkdir(parents=True)
    page = browser(tmp_path).get("/")
    assert page.status_code == 200
    assert page.text.count("cannot be read") >= 2
    assert browser(tmp_path).get("/runs/r-0001").status_code == 500


@pytest.mark.bad_input
def test_other_machines_and_other_names_are_refused(workspace: Path) -> None:
    with pytest.raises(BadArguments, match="other machines"):
        serve(workspace, "0.0.0.0", 8750)
    assert TestClient(view_app(workspace), base_url="http://evil.example").get("/").status_code == 400
    assert browser(workspace).post("/").status_code == 405
    assert "connect-src 'self'" in browser(workspace).get("/").headers["content-security-policy"]
