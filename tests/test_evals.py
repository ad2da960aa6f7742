"""The evaluation: its answers are what the models do, reciting them is wrong, and the grader takes no near misses."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from anatomist.host import Host
from anatomist.model.loading import load_model
from anatomist.model.protocol import Model
from anatomist.techniques.ablate import AblationResult
from anatomist.techniques.direct_logit_attribution import DirectLogitAttributionResult

from evals import grade as grading
from evals import truth_smollm2
from evals.grade import grade, grade_triggers, is_right
from evals.models import Circuit, build_models, specs
from evals.prepare import TASKS, prepare, recorded
from evals.questions import is_smollm2, smollm2_tasks, toy_tasks

ROOT = Path(__file__).parent.parent
QUERIES: list[dict[str, Any]] = json.loads((ROOT / "evals" / "triggers.json").read_text())
RECORDED = {task["id"]: task for task in recorded()}
TOY = [task for task in RECORDED.values() if not is_smollm2(task)]
COUNT: dict[str, Any] = {
    "id": "task-99", "answer": {"kind": "number", "value": 3, "tolerance": 0}, "recited": {"value": 1, "source": "none"}
}  # fmt: skip
EVERY = pytest.mark.parametrize("task", RECORDED.values(), ids=RECORDED)
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module", params=SEEDS)
def seeded(request: pytest.FixtureRequest) -> tuple[int, dict[str, dict[str, Any]]]:
    return request.param, {task["id"]: task for task in toy_tasks(request.param)}


def same(found: dict[str, Any], kept: dict[str, Any]) -> None:
    """All of a task: its numbers as near as another machine's arithmetic is, the rest exactly."""
    assert is_right(found["answer"]["value"], kept["answer"]), (found["answer"], kept["answer"])
    if kept["answer"]["kind"] == "number":
        assert found["answer"]["value"] == pytest.approx(kept["answer"]["value"], abs=2e-3)
    assert {**found, "answer": 0} == {**kept, "answer": 0}
    assert {**found["answer"], "value": 0} == {**kept["answer"], "value": 0}


def transcript(answer: object, *, said: str = "I ran it.") -> str:
    messages = [
        {"role": "user", "text": "a question"},
        {"role": "assistant", "text": "", "tool_calls": [{"name": "load_model", "arguments": {}}]},
        {"role": "tool", "text": "loaded"},
        {"role": "assistant", "text": f"{said}\n```json\n{json.dumps({'answer': answer})}\n```\n"},
    ]
    return "\n".join(json.dumps(message, ensure_ascii=False) for message in messages)


def off(task: dict[str, Any]) -> object:
    """A near miss of a task's answer."""
    value = task["answer"]["value"]
    match task["answer"]["kind"]:
        case "number":
            return value + 2 * task["answer"]["tolerance"] + 0.01
        case "text":
            return value + "x"
        case "ordering":
            return [*value[1:], value[0]]
        case _:
            return [*value, "L9H9"]


# The tasks ---------------------------------------------------------------------------------------------------------


def test_there_are_twenty_tasks_of_every_kind() -> None:
    assert list(RECORDED) == [f"task-{n:02d}" for n in range(1, 21)]
    assert len(TOY) == 15
    assert {task["answer"]["kind"] for task in RECORDED.values()} == {"set", "number", "ordering", "text"}
    assert all(task["answer"].get("tolerance", 0) >= 0 for task in RECORDED.values())
    assert all(("tolerance" in t["answer"]) == (t["answer"]["kind"] == "number") for t in RECORDED.values())


def test_every_kept_answer_about_a_built_model_is_what_the_model_gives() -> None:
    for found, kept in zip(toy_tasks(0), TOY, strict=True):
        same(found, kept)


@pytest.mark.slow
def test_every_kept_answer_about_smollm2_is_what_the_model_gives(smollm2: Model) -> None:
    kept = [task for task in RECORDED.values() if is_smollm2(task)]
    for found, task in zip(smollm2_tasks(smollm2), kept, strict=True):
        same(found, task)


@pytest.mark.positive_control
def test_what_is_measured_is_what_was_built(seeded: tuple[int, dict[str, dict[str, Any]]]) -> None:
    """The answers are measured from runs alone; how the circuit was built is another road to them."""
    seed, tasks = seeded
    offset, shares = (spec for what, spec in specs(seed).items() if what in ("offset", "shares"))
    assert isinstance(offset, Circuit)
    assert isinstance(shares, Circuit)
    built = build_models(seed)
    truth = {what: made.truth for what, made in built.items() if made.truth}
    answers = {name: task["answer"]["value"] for name, task in tasks.items()}
    plain = truth["plain"]
    assert set(answers["task-01"]) == {plain.previous, plain.inducer}
    assert answers["task-02"] == [plain.previous, plain.inducer, "k"]
    assert answers["task-03"] == offset.offset
    assert answers["task-04"] == [truth["look-alike"].inducer]
    assert answers["task-05"] == [truth["shares"].inducer, *truth["shares"].copies]
    assert answers["task-06"] == pytest.approx(10 * shares.copies[1], abs=1e-3)  # of the logit of 10
    assert answers["task-09"] == list(truth["negative"].copies)
    assert answers["task-10"] == []
    strings = built["cipher"].form.strings
    assert answers["task-08"] == strings[truth["cipher"].cipher[4]]  # the word after the repeated one is number 4
    assert answers["task-11"] == ["L0", "L3"]
    assert answers["task-12"] == ["L3"]
    assert answers["task-13"] == list(built["sort"].form.strings[1:])  # '1' to '5' before they were renamed
    assert answers["task-15"] == [built[what].form.name for what in ("reverse", "sort", "hist", "fraction")]


@pytest.mark.positive_control
def test_the_packs_own_ablation_answers_a_task(tmp_path: Path) -> None:
    """The road an assistant goes: a folder that is allowed, prompts in the model's words, the technique's result."""
    given = prepare(tmp_path / "out", seed=1)
    task = json.loads((tmp_path / "out" / "answers" / "task-01.json").read_text())
    words = build_models(1)["plain"].form.strings
    drawn, prompts = random.Random(0), []
    for number in range(24):
        half = drawn.sample(words, 10)
        row = [*half, *half]
        prompts.append({"clean": " ".join(row), "answer": half[0], "wrong": half[4], "cluster": str(number)})
    host = Host(tmp_path / "workspace", allow=[given])
    handle = host.call("load_model", {"name": str(given / "models" / task["model"])}).result.model_dump()["handle"]
    found = host.call("ablate", {"model": handle, "prompts": prompts, "ablation": "zero"}).result
    assert isinstance(found, AblationResult)
    assert {part.cell for part in found.stand_out} == set(task["answer"]["value"])


@pytest.mark.slow
def test_the_packs_own_attribution_answers_a_task_about_smollm2(tmp_path: Path) -> None:
    prompts = [{"clean": prompt, "answer": right, "wrong": wrong} for prompt, right, wrong in truth_smollm2.PAIRS]
    host = Host(tmp_path)
    host.call("load_model", {"name": "smollm2-135m"})
    arguments = {"model": "smollm2-135m", "prompts": prompts, "top": 50}
    found = host.call("direct_logit_attribution", arguments).result
    assert isinstance(found, DirectLogitAttributionResult)
    assert found.total.mean == pytest.approx(RECORDED["task-16"]["answer"]["value"], abs=2e-3)
    heads = [part for part in found.all_components if part.name.startswith("L") and "H" in part.name]
    strongest = sorted(heads, key=lambda part: -part.effect.mean)[:3]
    assert [part.name for part in strongest] == RECORDED["task-17"]["answer"]["value"]


@pytest.mark.negative_control
def test_only_four_answers_about_built_models_are_the_same_for_every_seed() -> None:
    """No head at all, and layers or parts of whole programs; the others are drawn, and may meet now and then."""
    found = [{t["id"]: json.dumps(t["answer"]["value"]) for t in toy_tasks(seed)} for seed in range(6)]
    the_same = {name for name in found[0] if len({answers[name] for answers in found}) == 1}
    assert the_same == {"task-10", "task-11", "task-12", "task-14"}


@pytest.mark.negative_control
@EVERY
def test_reciting_is_wrong(task: dict[str, Any]) -> None:
    found = grade(task, transcript(task["recited"]["value"]))
    assert (found.verdict, found.recited) == ("wrong", True)
    assert task["recited"]["source"]


def test_what_is_given_holds_models_that_load_and_no_answers(tmp_path: Path) -> None:
    given = prepare(tmp_path, seed=3)
    tasks = [json.loads(file.read_text()) for file in sorted((tmp_path / "answers").iterdir())]
    assert len(tasks) == 20
    assert sorted(given.rglob("*.json")) == []
    for task in tasks:
        assert (given / "questions" / f"{task['id']}.md").read_text() == task["question"] + "\n"
        for name in [task["model"]] if isinstance(task["model"], str) else task["model"]:
            if not is_smollm2(task):
                info = load_model(str(given / "models" / name)).info
                assert (info.name, info.source) == (name, "evaluation model")
    built = build_models(3)["cipher"]
    loaded = load_model(str(given / "models" / built.form.name))
    assert loaded.info.weights_hash == built.form.model(built.tensors).info.weights_hash


# The grader --------------------------------------------------------------------------------------------------------


@pytest.mark.positive_control
@EVERY
def test_the_right_answer_passes_and_its_near_miss_fails(task: dict[str, Any]) -> None:
    right = grade(task, transcript(task["answer"]["value"]))
    assert (right.verdict, right.calls) == ("right", 1)
    assert grade(task, transcript(off(task))).verdict == "wrong"


@pytest.mark.hand_worked
@pytest.mark.parametrize(
    ("expected", "right", "wrong"),
    [
        (
            {"kind": "set", "value": ["L0", "L3"]},
            [["L3", "L0"], [" L0", "L3 "]],
            [["L0"], ["L0", "L3", "L3"], ["L0", "L3", "L1"], "L0 L3", {"L0": 1, "L3": 1}, None, [], [["L0"], "L3"]],
        ),
        ({"kind": "set", "value": []}, [[]], [None, "", "none", 0, ["L0"], {}, False]),
        ({"kind": "ordering", "value": ["b", "a"]}, [["b", "a"]], [["a", "b"], ["b"], ["b", "a", "a"], "ba"]),
        (
            {"kind": "number", "value": 2.0, "tolerance": 0.5},
            [2, 1.5, 2.5],
            [1.49, 2.51, "2", True, None, [2], float("nan"), float("inf"), 10**400],
        ),
        ({"kind": "number", "value": 1, "tolerance": 0}, [1, 1.0], [True, 1.01]),
        ({"kind": "text", "value": "rul"}, ["rul", " rul "], ["Rul", "ru", "rul or fat", ["rul"], "", None]),
    ],
)
def test_what_counts_as_right(expected: dict[str, Any], right: list[object], wrong: list[object]) -> None:
    assert all(is_right(answer, expected) for answer in right)
    assert not [answer for answer in wrong if is_right(answer, expected)]


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "no text by the assistant"),
        ("\n\n", "no text by the assistant"),
        ("not json", "line 1 is not JSON"),
        ("[" * 100_000, "line 1 is not JSON"),
        ('{"role": "user", "text": "x"}\n{"role": "assist', "line 2 is not JSON"),
        ('["assistant"]', "line 1 needs a role"),
        ('{"role": "judge", "text": "right"}', "line 1 needs a role"),
        ('{"role": ["user"]}', "line 1 needs a role"),
        ('{"role": "assistant", "text": 3}', "text is not a string"),
        ('{"role": "assistant", "tool_calls": 3}', "tool_calls is not a list"),
        ('{"role": "assistant", "text": "it is 3"}', "no fenced json block"),
        ('{"role": "assistant", "text": "```json\\n{answer: 3}\\n```"}', "not JSON"),
        ('{"role": "assistant", "text": "```json\\n[3]\\n```"}', 'no "answer"'),
        ('{"role": "assistant", "text": "```json\\n{\\"value\\": 3}\\n```"}', 'no "answer"'),
    ],
)
def test_a_malformed_transcript_fails_and_says_why(text: str, says: str) -> None:
    found = grade(COUNT, text)
    assert found.verdict == "malformed"
    assert says in found.said


def test_only_the_assistants_last_block_counts() -> None:
    block = "```json\n{\"answer\": %d}\n```"

    def verdict(*messages: tuple[str, str]) -> str:
        return grade(COUNT, "\n".join(json.dumps({"role": r, "text": t}) for r, t in messages)).verdict

    assert verdict(("assistant", block % 1 + "\nno:\n" + block % 3)) == "right"
    assert verdict(("assistant", block % 3 + "\nno:\n" + block % 1)) == "wrong"
    assert verdict(("assistant", block % 3), ("assistant", "I am not sure.")) == "malformed"
    assert verdict(("assistant", block % 3), ("assistant", " ")) == "right"
    assert verdict(("tool", block % 3), ("user", block % 3)) == "malformed"


def test_a_line_separator_within_a_text_does_not_end_the_line() -> None:
    assert grade(COUNT, transcript(3, said="so\u2028it is")).verdict == "right"


def test_the_exit_status_says_whether_all_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, task in RECORDED.items():
        (tmp_path / f"{name}.jsonl").write_text(transcript(task["answer"]["value"]))
    assert grading.main([str(tmp_path)]) == 0
    assert "20 of 20 right (100%)" in capsys.readouterr().out
    (tmp_path / "task-07.jsonl").unlink()
    (tmp_path / "task-08.jsonl").write_bytes(b"\xff\xfe")
    (tmp_path / "task-09.jsonl").write_text(transcript(RECORDED["task-09"]["recited"]["value"]))
    assert grading.main([str(tmp_path), "--tasks", str(TASKS)]) == 1
    told = capsys.readouterr().out
    assert "17 of 20 right (85%)" in told
    assert "missing" in told
    assert "malformed" in told
    assert "(what reciting answers)" in told


@pytest.mark.bad_input
@pytest.mark.parametrize("words", [[], ["nowhere"], ["{here}", "--tasks", "{here}"], ["--triggers", "nowhere"]])
def test_a_wrong_call_has_a_status_of_its_own(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as raised:
        grading.main([word.format(here=tmp_path) for word in words])
    assert raised.value.code == 2


# The triggers ------------------------------------------------------------------------------------------------------


def test_there_are_24_queries_half_of_which_should_load_the_skill() -> None:
    assert [query["id"] for query in QUERIES] == [f"trigger-{n:02d}" for n in range(1, 25)]
    assert len({query["query"] for query in QUERIES}) == 24
    assert sum(query["should_load"] for query in QUERIES) == 12
    assert all(set(query) == {"id", "query", "should_load", "why"} and query["why"] for query in QUERIES)
    assert sum("near miss" in query["why"] for query in QUERIES if not query["should_load"]) >= 8
    assert not [query for query in QUERIES if "anatomist" in query["query"].lower()]


def test_triggers_are_graded_and_what_is_not_said_is_missing(tmp_path: Path) -> None:
    lines = [json.dumps({"id": query["id"], "loaded": query["should_load"]}) for query in QUERIES]
    assert {g.verdict for g in grade_triggers(QUERIES, "\n".join(lines))} == {"right"}
    always = [json.dumps({"id": query["id"], "loaded": True}) for query in QUERIES]
    assert sum(g.verdict == "right" for g in grade_triggers(QUERIES, "\n".join(always))) == 12
    broken = ['{"id": "trigger-01", "loaded": "yes"}', "no json", "[]", *lines[2:]]
    assert [g.verdict for g in grade_triggers(QUERIES, "\n".join(broken))][:3] == ["malformed", "missing", "right"]
    file = tmp_path / "loaded.jsonl"
    file.write_text("\n".join(lines))
    assert grading.main(["--triggers", str(file)]) == 0
