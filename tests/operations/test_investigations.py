"""The investigation's operations, by name, through a host."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from anatomist.errors import BadArguments, UnknownName
from anatomist.host import Host
from anatomist.operations.compare_runs import RunsCompared
from anatomist.operations.export_notebook import Exported
from anatomist.operations.investigation_status import Status
from anatomist.operations.reproduce_run import NotReproduced, Reproduced

from tests.investigation.on_toys import MODEL, TRUE_HEADS, ablated, claimed, opened, predicted, prompts, validated


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


@pytest.fixture
def investigation(host: Host) -> str:
    return opened(host)


def status(host: Host, investigation: str | None) -> Status:
    result = host.call("investigation_status", {"investigation": investigation}).result
    assert isinstance(result, Status)
    return result


def test_an_investigation_says_what_is_missing_and_what_to_call(host: Host, investigation: str) -> None:
    found = status(host, investigation)
    assert found.phase == 1
    assert "Missing: the model has been run at all (load_model, then make_prompts)" in found.summary
    assert status(host, None).investigations == (f"{investigation}: Which heads continue a repeated run?",)


def test_a_run_made_for_it_is_noted_with_its_label(host: Host, investigation: str) -> None:
    handle = prompts(host)
    ablated(host, investigation, handle, TRUE_HEADS, controls=0)
    predicted(host, investigation, TRUE_HEADS)
    ablated(host, investigation, handle, TRUE_HEADS, controls=0, split="held_out")
    noted = host.ledger.get(investigation).runs
    assert [(r.run, r.label, r.split) for r in noted] == [
        ("r-0001", "exploratory", "discovery"),
        ("r-0002", "confirmatory", "held_out"),
    ]


@pytest.mark.negative_control
def test_held_out_prompts_are_sealed_until_a_prediction_is_written(host: Host, investigation: str) -> None:
    handle = prompts(host)
    with pytest.raises(BadArguments, match=r"sealed until a prediction is written: call add_hypothesis"):
        ablated(host, investigation, handle, TRUE_HEADS, split="held_out")
    assert host.ledger.get(investigation).runs == ()
    with pytest.raises(UnknownName):
        host.store.get("r-0001")


@pytest.mark.bad_input
def test_a_run_of_an_unknown_investigation_is_refused_before_it_is_made(host: Host) -> None:
    with pytest.raises(UnknownName, match="i-0009"):
        ablated(host, "i-0009", prompts(host), TRUE_HEADS)


@pytest.mark.negative_control
def test_a_claim_rests_only_on_runs_of_its_own_investigation(host: Host, investigation: str) -> None:
    hypothesis, handle = predicted(host, investigation, TRUE_HEADS), prompts(host)
    elsewhere = host.call("ablate", {"model": MODEL, "prompts": handle, "heads": TRUE_HEADS, "controls": 0})
    for run in (elsewhere.run_id, "r-0999"):
        with pytest.raises(UnknownName, match="Evidence is a run made in this investigation"):
            claimed(host, investigation, hypothesis, run, TRUE_HEADS)


@pytest.mark.negative_control
def test_a_causal_claim_needs_a_run_that_intervenes(host: Host, investigation: str) -> None:
    hypothesis, handle = predicted(host, investigation, TRUE_HEADS), prompts(host)
    arguments = {"model": MODEL, "prompts": handle, "investigation": investigation}
    run = host.call("direct_logit_attribution", arguments).run_id
    with pytest.raises(BadArguments, match="needs a run that intervenes"):
        claimed(host, investigation, hypothesis, run, TRUE_HEADS)
    assert claimed(host, investigation, hypothesis, run, TRUE_HEADS, "direct") == "f1"


@pytest.mark.negative_control
def test_a_claim_about_other_heads_than_predicted_is_refused(host: Host, investigation: str) -> None:
    hypothesis = predicted(host, investigation, TRUE_HEADS)
    run = ablated(host, investigation, prompts(host), ["L0H2"], controls=0).run_id
    with pytest.raises(BadArguments, match=r"h1 predicts what L0H1, L1H2 do, the claim is about L0H2"):
        claimed(host, investigation, hypothesis, run, ["L0H2"])


@pytest.mark.bad_input
def test_a_claim_without_runs_cannot_be_recorded(host: Host, investigation: str) -> None:
    predicted(host, investigation, TRUE_HEADS)
    arguments = {
        "investigation": investigation, "claim": "needed for it", "hypothesis": "h1", "runs": [],
        "components": TRUE_HEADS, "kind": "necessary", "searched": 8,
    }  # fmt: skip
    with pytest.raises(BadArguments, match="runs"):
        host.call("record_finding", arguments)


def test_the_size_that_matters_comes_from_the_hypothesis(host: Host, investigation: str) -> None:
    hypothesis = predicted(host, investigation, TRUE_HEADS, minimum_effect=0.7, direction="increase")
    run = ablated(host, investigation, prompts(host), TRUE_HEADS, controls=0).run_id
    claimed(host, investigation, hypothesis, run, TRUE_HEADS)
    found = host.ledger.get(investigation).findings[0]
    assert (found.minimum_effect, found.direction) == (0.7, "increase")


def test_decisions_are_kept_with_their_reasons(host: Host, investigation: str) -> None:
    host.call("log_decision", {"investigation": investigation, "text": "resample, not zero", "why": "zero is far off"})
    decision = host.ledger.get(investigation).decisions[0]
    assert (decision.text, decision.why) == ("resample, not zero", "zero is far off")


def test_two_runs_are_compared_by_arguments_and_numbers(host: Host, investigation: str) -> None:
    handle = prompts(host)
    for ablation in ("resample", "resample", "zero"):
        ablated(host, investigation, handle, TRUE_HEADS, controls=0, ablation=ablation)
    same = host.call("compare_runs", {"first": "r-0001", "second": "r-0002"}).result
    other = host.call("compare_runs", {"first": "r-0001", "second": "r-0003"}).result
    assert isinstance(same, RunsCompared)
    assert isinstance(other, RunsCompared)
    assert (same.numbers.same, same.arguments, same.depends) == (True, (), ())
    assert [c.where for c in other.arguments] == ["ablation"]
    assert not other.numbers.same


@pytest.mark.positive_control
def test_a_run_made_again_in_a_fresh_process_gives_the_same_numbers(host: Host, investigation: str) -> None:
    run = ablated(host, investigation, prompts(host), TRUE_HEADS, ablation="resample").run_id
    made = host.call("reproduce_run", {"run": run, "absolute": 1e-6, "relative": 1e-6}).result
    assert isinstance(made, Reproduced)
    assert made.same, made.summary
    assert made.again != run
    assert made.numbers.compared > 20
    assert [c.where for c in made.depends] == []
    assert [r.run for r in host.ledger.get(investigation).runs] == [run]


@pytest.mark.bad_input
def test_a_run_that_cannot_be_made_again_says_what_the_fresh_process_said(host: Host, investigation: str) -> None:
    handle = prompts(host)
    run = ablated(host, investigation, handle, TRUE_HEADS, controls=0).run_id
    (host.shelf.folder / f"{handle}.json").unlink()
    with pytest.raises(NotReproduced, match=handle):
        host.call("reproduce_run", {"run": run})


def exported(host: Host, investigation: str) -> Exported:
    result = host.call("export_notebook", {"investigation": investigation}).result
    assert isinstance(result, Exported)
    return result


def executed(script: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, script], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.mark.positive_control
def test_the_script_runs_from_top_to_bottom_and_finds_every_stored_number(
    host: Host, investigation: str, tmp_path: Path
) -> None:
    """The runs of the checks and one on prompts of one's own among them; without the workspace they came from."""
    inline = [{"clean": [1, 2, 3, 1], "answer": 2, "wrong": 5}, {"clean": [4, 5, 6, 4], "answer": 5, "wrong": 2}]
    ablated(host, investigation, inline, TRUE_HEADS, controls=0)
    hypothesis, handle = predicted(host, investigation, TRUE_HEADS), prompts(host)
    run = ablated(host, investigation, handle, TRUE_HEADS, controls=0, ablation="resample").run_id
    finding = claimed(host, investigation, hypothesis, run, TRUE_HEADS)
    validated(host, investigation, finding, checks=["baseline", "causal", "held_out"])
    made = exported(host, investigation)
    assert made.runs == 6
    elsewhere = Path(made.folder).rename(tmp_path.parent / f"{tmp_path.name}-sent")
    done = executed(str(elsewhere / "investigation.py"), elsewhere)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.strip().endswith("all 6 runs gave the stored numbers")


@pytest.mark.negative_control
def test_the_script_fails_where_a_stored_number_was_another(host: Host, investigation: str) -> None:
    ablated(host, investigation, prompts(host), TRUE_HEADS, controls=0)
    made = exported(host, investigation)
    path = Path(made.folder) / "expected" / "r-0001.json"
    record = json.loads(path.read_text())
    record["joint"][0]["change"]["mean"] += 0.01
    path.write_text(json.dumps(record))
    done = executed(made.script, Path(made.folder))
    assert done.returncode == 1
    assert "r-0001: 1 of" in done.stderr


def test_the_notebook_holds_the_same_code_as_the_script(host: Host, investigation: str) -> None:
    ablated(host, investigation, prompts(host), TRUE_HEADS, controls=0)
    made = exported(host, investigation)
    book = json.loads(Path(made.notebook).read_text())
    assert (book["nbformat"], book["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in book["cells"]}) == len(book["cells"])
    code = "\n".join("".join(cell["source"]) for cell in book["cells"] if cell["cell_type"] == "code")
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(Path(made.script).read_text()))


@pytest.mark.slow
@pytest.mark.positive_control
def test_the_notebook_runs_in_jupyter_and_finds_every_stored_number(host: Host, investigation: str) -> None:
    import nbformat
    from nbclient import NotebookClient

    ablated(host, investigation, prompts(host), TRUE_HEADS, controls=0)
    made = exported(host, investigation)
    book = nbformat.read(made.notebook, as_version=4)
    NotebookClient(book, timeout=300, resources={"metadata": {"path": made.folder}}).execute()
    said = "".join(o.get("text", "") for cell in book.cells for o in cell.get("outputs", []))
    assert "all 1 runs gave the stored numbers" in said


@pytest.mark.bad_input
def test_an_investigation_without_runs_has_no_notebook(host: Host, investigation: str) -> None:
    with pytest.raises(BadArguments, match="holds no run yet"):
        exported(host, investigation)
