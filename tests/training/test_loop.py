"""A training that is cancelled or killed goes on where it was and comes to the same numbers, bit for bit."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from anatomist.errors import Cancelled, CorruptFile, NotFinite, Unavailable
from anatomist.model.trained import checkpoints
from anatomist.training.induction import InductionSettings, InductionTask
from anatomist.training.loop import STATE, Recipe, Trained, train
from filelock import FileLock

SMALL = {"vocabulary": 12, "context": 16, "width": 16}


def task(steps: int = 40) -> InductionTask:
    return InductionTask(InductionSettings("small", steps=steps, **SMALL), keep=3)


def silent(done: float, total: float, what: str) -> None: ...


def same(a: Trained, b: Trained) -> bool:
    return a.curves == b.curves and all(torch.equal(a.weights[name], b.weights[name]) for name in a.weights)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(task(), tmp_path_factory.mktemp("whole"), silent)


@pytest.mark.positive_control
def test_cancelled_it_goes_on_to_the_same_numbers(tmp_path: Path, whole: Trained) -> None:
    def stop_at_17(done: float, total: float, what: str) -> None:
        if done == 17:
            raise Cancelled("stop")

    with pytest.raises(Cancelled, match="was stopped at step 17 of 40"):
        train(task(), tmp_path, stop_at_17)
    again = train(task(), tmp_path, silent)
    assert again.resumed_from == 17
    assert same(again, whole)
    assert list(checkpoints(tmp_path)) == [0, 20, 40]


@pytest.mark.positive_control
def test_killed_it_goes_on_to_the_same_numbers(tmp_path: Path, whole: Trained) -> None:
    """A process that saves at every step is killed (SIGKILL) while it trains."""
    code = (
        "import sys, time, torch; from pathlib import Path; from anatomist.training import loop, induction as i\n"
        "loop.SAVE_EVERY = 0.0; torch.set_num_threads(1)\n"
        f"task = i.InductionTask(i.InductionSettings('small', steps=40, **{SMALL!r}), keep=3)\n"
        "def slow(done, total, what):\n"
        "    time.sleep(0.02)\n"
        "loop.train(task, Path(sys.argv[1]), slow)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    deadline = time.monotonic() + 60
    while not (tmp_path / STATE).is_file() and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = train(task(), tmp_path, silent)
    assert again.resumed_from
    assert again.resumed_from < 40
    assert same(again, whole)


@pytest.mark.negative_control
def test_another_seed_comes_to_other_numbers(tmp_path: Path, whole: Trained) -> None:
    other = InductionTask(InductionSettings("small", seed=1, steps=40, **SMALL), keep=3)
    assert not same(train(other, tmp_path, silent), whole)


@pytest.mark.bad_input
def test_a_folder_in_use_or_damaged_and_a_loss_that_is_no_number_are_errors(tmp_path: Path) -> None:
    with FileLock(tmp_path / ".lock"), pytest.raises(Unavailable, match="is being trained by another process"):
        train(task(), tmp_path, silent)
    (tmp_path / STATE).write_bytes(b"nothing")
    with pytest.raises(CorruptFile, match="cannot be read"):
        train(task(), tmp_path, silent)
    wild = InductionTask(InductionSettings("wild", steps=40, learning_rate=1e30, **SMALL))
    with pytest.raises(NotFinite, match="use a smaller learning rate"):
        train(wild, tmp_path / "wild", silent)


@pytest.mark.hand_worked
def test_the_learning_rate_rises_over_ten_steps_and_falls_as_a_cosine() -> None:
    recipe = Recipe(100, 0.5, cosine=True)
    assert recipe.rate(0) == pytest.approx(0.05)
    assert recipe.rate(50) == pytest.approx(0.25)
    assert Recipe(100, 0.5).rate(99) == 0.5
    assert sorted(Recipe(100, 0.5, keep=5).kept()) == [0, 25, 50, 75, 100]
