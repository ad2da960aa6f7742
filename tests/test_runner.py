"""Running a technique: prompts, provenance, pictures, and what is kept when something goes wrong."""

from __future__ import annotations

from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
from anatomist.catalog import Catalog
from anatomist.desk import Answer
from anatomist.errors import (
    BadPrompts,
    CorruptFile,
    EditDidNotFire,
    NotFinite,
    OutsideRoots,
    Unavailable,
    UnknownName,
    WouldNotFit,
)
from anatomist.host import Host
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.result import About

PROMPTS = [{"clean": [1, 2, 3]}, {"clean": [4, 5]}]
Call = Callable[..., Answer]


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, catalog=Catalog(techniques=("tests.throwaway",)))


@pytest.fixture
def count(host: Host) -> Call:
    def call(**arguments: object) -> Answer:
        return host.call("count_tokens", {"model": "toy-induction", "prompts": PROMPTS, **arguments})

    return call


def about_of(answer: Answer) -> About:
    about = answer.result.about  # type: ignore[attr-defined]
    assert isinstance(about, About)
    return about


@pytest.mark.positive_control
def test_a_run_is_kept_with_all_its_parts(host: Host, count: Call) -> None:
    answer = count(seed=3)
    assert answer.run_id == "r-0001"
    run = host.store.get("r-0001")
    files = {p.name for p in run.folder.iterdir()}
    assert files == {
        "arguments.json", "result.json", "provenance.json", "arrays.json", "array-residual.safetensors",
        "array-rows.safetensors", "figure.json", "picture.png",
    }  # fmt: skip
    assert answer.png_path == run.picture
    assert run.picture is not None
    assert run.picture.read_bytes().startswith(b"\x89PNG")
    assert answer.result.model_dump(mode="json") == run.json("result.json")
    assert type(answer.result).model_validate(run.json("result.json")) == answer.result
    assert run.json("arguments.json")["seed"] == 3


def test_about_says_what_the_numbers_depend_on(count: Call) -> None:
    about = about_of(count(seed=3, bos=False))
    assert (about.run, about.technique, about.seed, about.n, about.bos) == ("r-0001", "count_tokens", 3, 2, False)
    assert about.model.startswith("toy-induction")
    assert (about.backend, about.dtype, about.device) == ("toy", "float32", "cpu")
    assert about.exploratory
    assert about.seconds > 0
    assert about.estimated_seconds is not None
    assert about.versions["torch"] == metadata.version("torch")


@pytest.mark.hand_worked
@pytest.mark.parametrize(("n", "exploratory"), [(31, True), (32, False)])
def test_fewer_than_32_prompts_are_exploratory(count: Call, n: int, exploratory: bool) -> None:
    about = about_of(count(prompts=[{"clean": [1, i % 20]} for i in range(n)]))
    assert (about.n, about.exploratory) == (n, exploratory)


def test_provenance_names_model_hash_prompts_machine_and_estimate(host: Host, count: Call) -> None:
    first, same = count(), count()
    other = count(prompts=[{"clean": [1, 2, 4]}, {"clean": [4, 5]}])
    notes = [host.store.get(a.run_id or "").json("provenance.json") for a in (first, same, other)]
    hashes = [note["prompts"]["sha256"] for note in notes]  # type: ignore[index, call-overload]
    assert hashes[0] == hashes[1] != hashes[2]
    for note in notes:
        assert {"about", "started", "model", "prompts", "text", "estimate", "machine", "git"} == note.keys()
    model = notes[0]["model"]
    assert isinstance(model, dict)
    assert len(model["weights_hash"]) >= 16


def test_the_commit_around_the_work_is_noted(
    count: Call, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import subprocess

    repository = tmp_path / "study"
    repository.mkdir()
    author = ["-c", "user.name=t", "-c", "user.email=t@t"]
    subprocess.run(["git", "init", "-q"], cwd=repository, check=True)
    subprocess.run(["git", *author, "commit", "-q", "--allow-empty", "-m", "x"], cwd=repository, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=repository, check=True, capture_output=True, text=True)
    monkeypatch.chdir(repository)
    count()
    assert host.store.get("r-0001").json("provenance.json")["git"] == {
        "commit": head.stdout.strip(),
        "changed_files": False,
    }
    monkeypatch.chdir("/")
    count()
    assert host.store.get("r-0002").json("provenance.json")["git"] is None


@pytest.mark.positive_control
def test_kept_and_streamed_arrays_are_the_same_numbers(host: Host, count: Call) -> None:
    run = host.store.get(count().run_id or "")
    kept, streamed = run.array("residual"), run.array("rows")
    assert kept[0].axes == ("prompt", "position", "width")
    assert kept[0].shape[:2] == (2, 3)
    assert np.array_equal(kept[1], streamed[1])


@pytest.mark.negative_control
@pytest.mark.parametrize(
    ("ends", "error", "told"),
    [
        ("nan", NotFinite, "count_tokens came to NaN or infinity at norm"),
        ("error", EditDidNotFire, "did not fire"),
        ("memory", WouldNotFit, "count_tokens ran out of memory"),
        ("interrupt", KeyboardInterrupt, None),
    ],
)
def test_nothing_is_kept_of_a_run_that_fails(
    host: Host, count: Call, ends: str, error: type[BaseException], told: str | None
) -> None:
    with pytest.raises(error, match=told):
        count(ends=ends)
    assert host.store.ids() == ()
    assert not list(host.store.folder.glob(".r-*"))
    assert count().run_id == "r-0001"


def test_numbers_whose_picture_cannot_be_drawn_are_kept_with_a_warning(host: Host, count: Call) -> None:
    answer = count(ends="no picture")
    assert answer.png_path is None
    (warning,) = answer.result.warnings  # type: ignore[attr-defined]
    assert warning == "The picture could not be drawn (ValueError: nothing to draw); the numbers are complete."
    assert host.store.get("r-0001").json("result.json")["counts"] == [3, 2]


def test_progress_can_stop_a_run(host: Host) -> None:
    from anatomist.errors import Cancelled

    def stop(done: float, total: float, what: str) -> None:
        if what == "counted":
            raise Cancelled("stopped")

    with pytest.raises(Cancelled):
        host.call("count_tokens", {"model": "toy-induction", "prompts": PROMPTS}, stop)
    assert host.store.ids() == ()


def test_prompts_come_from_a_handle_by_split(host: Host, count: Call) -> None:
    def part(split: str, *lengths: int) -> PromptSet:
        prompts = tuple(Prompt(clean=tuple(range(1, n + 1))) for n in lengths)
        return PromptSet(handle="", task="t", seed=0, split=split, prompts=prompts)  # type: ignore[arg-type]

    pair = host.shelf.put(part("discovery", 1, 2), part("held_out", 3), task="t", seed=0, model="toy-induction")
    assert pair.handle.startswith("t-")
    assert pair.discovery.handle == pair.handle
    assert count(prompts=pair.handle).result.counts == (1, 2)  # type: ignore[attr-defined]
    assert count(prompts=pair.handle, split="held_out").result.counts == (3,)  # type: ignore[attr-defined]
    other = host.shelf.put(part("discovery", 1), part("held_out", 1), task="t", seed=0, model="toy-induction")
    assert host.shelf.handles() == tuple(sorted((pair.handle, other.handle)))


def test_prompts_come_from_a_file_in_the_workspace(host: Host, count: Call) -> None:
    (host.workspace / "mine.jsonl").write_text('{"clean": [1, 2, 3, 4]}\n\n{"clean": "t1 t2"}\n')
    answer = count(prompts="mine.jsonl")
    assert answer.result.counts == (4, 2)  # type: ignore[attr-defined]
    prompts = host.store.get("r-0001").json("provenance.json")["prompts"]
    assert isinstance(prompts, dict)
    assert prompts["source"] == "mine.jsonl"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("prompts", "error", "told"),
    [
        ("ioi-0000", UnknownName, "unknown prompt set 'ioi-0000'"),
        ([], BadPrompts, "give at least one"),
        ("gone.jsonl", Unavailable, "does not exist"),
        ("/etc/passwd.jsonl", OutsideRoots, "outside the folders"),
        ("../outside.jsonl", OutsideRoots, "outside the folders"),
        ("link.jsonl", OutsideRoots, "outside the folders"),
        ("broken.jsonl", BadPrompts, "line 2"),
        ("binary.jsonl", CorruptFile, "not a UTF-8 text file"),
        ("empty.jsonl", BadPrompts, "no prompts"),
    ],
)
def test_prompts_that_cannot_be_used_are_told_why(
    host: Host,
    count: Call,
    tmp_path_factory: pytest.TempPathFactory,
    prompts: object,
    error: type[Exception],
    told: str,
) -> None:
    outside = tmp_path_factory.mktemp("elsewhere") / "secret.jsonl"
    outside.write_text('{"clean": [1]}\n')
    host.workspace.mkdir(exist_ok=True)
    (host.workspace / "link.jsonl").symlink_to(outside)
    (host.workspace / "broken.jsonl").write_text('{"clean": [1]}\n{"claen": [1]}\n')
    (host.workspace / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (host.workspace / "empty.jsonl").write_text("\n")
    with pytest.raises(error, match=told):
        count(prompts=prompts)
    assert host.store.ids() == ()


@pytest.mark.bad_input
def test_inline_prompts_have_no_held_out_part(count: Call) -> None:
    with pytest.raises(BadPrompts, match="no held-out part"):
        count(split="held_out")


@pytest.mark.bad_input
def test_a_corrupt_prompt_set_is_named(host: Host, count: Call) -> None:
    (host.workspace / "prompts").mkdir(parents=True)
    (host.workspace / "prompts" / "ioi-1234.json").write_text("{")
    with pytest.raises(CorruptFile, match=r"ioi-1234\.json is not a prompt set"):
        count(prompts="ioi-1234")
