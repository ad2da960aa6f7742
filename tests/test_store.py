"""Runs on disk: whole or not at all, also with kills and with several writers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from anatomist.arrays import as_floats
from anatomist.errors import BadArguments, CorruptFile, UnknownName
from anatomist.store import RunWriter, Store

FILES = ("arguments.json", "result.json", "provenance.json")
WRITE_MANY = f"""
import sys, torch
from pathlib import Path
from anatomist.store import Store
store = Store(Path(sys.argv[1]))
for i in range(int(sys.argv[2])):
    with store.writing() as run:
        for file in {FILES}:
            run.text(file, '{{"i": %d}}' % i)
        run.array("x", torch.full((64, 64), float(i)), axes=("row", "column"), unit="u")
    print(run.id, flush=True)
"""


def fill(run: RunWriter, value: int = 0) -> None:
    for file in FILES:
        run.text(file, json.dumps({"i": value}))


def fail(store: Store, error: type[BaseException]) -> None:
    with store.writing() as run:
        fill(run)
        run.stream("s", shape=(4, 2), dtype="float32", axes=("a", "b"), unit="u")
        raise error


def is_whole(store: Store, run_id: str) -> bool:
    run = store.get(run_id)
    (value,) = {run.json(file)["i"] for file in FILES}
    array, numbers = run.array("x")
    return array.shape == (64, 64) and bool((numbers == value).all())


def start(workspace: Path, n: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITE_MANY, str(workspace), str(n)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


@pytest.mark.positive_control
def test_a_run_appears_when_it_is_complete(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing() as run:
        fill(run)
        assert store.ids() == ()
    assert store.ids() == (run.id,) == ("r-0001",)
    assert store.get("r-0001").json("result.json") == {"i": 0}
    assert sorted(p.name for p in (tmp_path / "runs" / "r-0001").iterdir()) == sorted([*FILES, "arrays.json"])


@pytest.mark.negative_control
def test_a_run_that_raises_leaves_nothing(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for error in (ValueError, KeyboardInterrupt):
        with pytest.raises(error):
            fail(store, error)
    assert store.ids() == ()
    assert [p.name for p in (tmp_path / "runs").iterdir()] == [".lock"]


def test_every_listed_run_is_whole_after_a_kill_at_any_moment(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for pause in (0.0, 0.003, 0.011, 0.05):  # seconds after the first run was stored
        writer = start(tmp_path, 10_000)
        assert writer.stdout is not None
        writer.stdout.readline()
        until = time.monotonic() + pause
        while time.monotonic() < until:
            pass
        os.kill(writer.pid, signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        assert all(is_whole(store, run_id) for run_id in store.ids())
    before = store.ids()
    assert len(before) >= 4
    with store.writing() as run:
        fill(run)
    assert run.id not in before
    assert store.ids() == (*before, run.id)
    assert not list((tmp_path / "runs").glob(".r-*")), "what the killed writers left is still there"


def test_two_processes_writing_fifty_runs_each_make_a_hundred_whole_ones(tmp_path: Path) -> None:
    writers = [start(tmp_path, 50) for _ in range(2)]
    told = [line for w in writers for line in w.communicate(timeout=120)[0].split()]
    store = Store(tmp_path)
    assert [w.returncode for w in writers] == [0, 0]
    assert len(set(told)) == 100
    assert sorted(told) == sorted(store.ids())
    assert all(is_whole(store, run_id) for run_id in store.ids())


def test_a_living_writers_folder_is_left_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.writing() as slow:
        with store.writing() as quick:
            fill(quick)
        fill(slow)
    assert (slow.id, quick.id) == ("r-0001", "r-0002")
    assert store.ids() == ("r-0001", "r-0002")


def test_another_machines_folder_goes_only_when_it_is_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    left = tmp_path / "runs" / ".r-0007.writing"
    left.mkdir(parents=True)
    (left / "owner.json").write_text(json.dumps({"pid": 1, "started": 0.0, "machine": "elsewhere"}))
    with store.writing() as run:
        fill(run)
    assert left.exists()
    assert run.id == "r-0008"
    os.utime(left, (0, 0))
    with store.writing() as run:
        fill(run)
    assert not left.exists()


@pytest.mark.bad_input
def test_a_corrupt_run_is_an_error_that_names_the_file_and_the_others_are_read(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for value in range(3):
        with store.writing() as run:
            fill(run, value)
            run.array("x", torch.ones(64, 64), axes=("row", "column"), unit="u")
    broken = store.get("r-0002")
    (broken.folder / "result.json").write_text('{"i": ')
    (broken.folder / "arguments.json").write_text("[1]")
    (broken.folder / "provenance.json").unlink()
    array = broken.folder / "array-x.safetensors"
    array.write_bytes(array.read_bytes()[:-5])
    for file, said in (("result.json", "cannot be read"), ("arguments.json", "list"), ("provenance.json", "No such")):
        with pytest.raises(CorruptFile, match=rf"r-0002/{file}.*{said}"):
            broken.json(file)
    with pytest.raises(CorruptFile, match="does not hold array 'x'"):
        broken.array("x")
    assert store.ids() == ("r-0001", "r-0002", "r-0003")
    assert [store.get(i).json("result.json")["i"] for i in ("r-0001", "r-0003")] == [0, 2]


@pytest.mark.bad_input
@pytest.mark.parametrize("run_id", ["r-9999", "../runs/r-0001", "r-1/..", "", "r-0001\0"])
def test_an_unknown_run_lists_those_that_exist(tmp_path: Path, run_id: str) -> None:
    store = Store(tmp_path)
    with store.writing() as run:
        fill(run)
    with pytest.raises(UnknownName, match=r"Known: r-0001\. Call list_runs"):
        store.get(run_id)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool])
def test_arrays_come_back_as_they_were(tmp_path: Path, dtype: torch.dtype) -> None:
    tensor = (torch.arange(24).reshape(2, 3, 4) - 7).to(dtype)
    store = Store(tmp_path)
    with store.writing() as run:
        run.array("a b/c", tensor.transpose(0, 2), axes=("x", "y", "z"), unit="u")
    stored, numbers = store.get(run.id).array("a b/c")
    assert (stored.axes, stored.unit, stored.shape) == (("x", "y", "z"), "u", (4, 3, 2))
    assert isinstance(numbers, np.memmap)
    expected = tensor.transpose(0, 2).to(torch.float64).numpy()
    assert (as_floats(stored, numbers).astype(float) == expected).all()
    assert (as_floats(stored, numbers[1:, 2]).astype(float) == expected[1:, 2]).all()


def test_arrays_are_ordinary_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    with Store(tmp_path).writing() as run:
        run.array("x", torch.arange(6.0).reshape(2, 3), axes=("a", "b"), unit="u")
    loaded = load_file(tmp_path / "runs" / run.id / "array-x.safetensors")
    assert torch.equal(loaded["x"], torch.arange(6.0).reshape(2, 3))


def test_an_array_can_be_written_in_pieces(tmp_path: Path) -> None:
    whole = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0))
    store = Store(tmp_path)
    with store.writing() as run:
        stream = run.stream("big", shape=(10, 4, 3), dtype="float32", axes=("row", "a", "b"), unit="u")
        for piece in whole.split([3, 3, 4]):
            stream.append(piece)
    assert np.array_equal(store.get(run.id).array("big")[1], whole.numpy())


@pytest.mark.bad_input
def test_pieces_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(BadArguments, match="announced with 4 rows; 3 came"), store.writing() as run:
        run.stream("s", shape=(4, 2), dtype="float32", axes=("a", "b"), unit="u").append(torch.zeros(3, 2))
    with pytest.raises(BadArguments, match="announced with 4 rows; more came"), store.writing() as run:
        run.stream("s", shape=(4, 2), dtype="float32", axes=("a", "b"), unit="u").append(torch.zeros(5, 2))
    with pytest.raises(BadArguments, match=r"it needs \[n, 2\] float32"), store.writing() as run:
        run.stream("s", shape=(4, 2), dtype="float32", axes=("a", "b"), unit="u").append(torch.zeros(3, 3))
    assert store.ids() == ()
