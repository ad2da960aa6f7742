"""Generated prompts: what every task promises, and what each one means."""

from __future__ import annotations

from collections import Counter

import pytest
from anatomist.errors import BadArguments, BadPrompts, UnknownName
from anatomist.model.protocol import Model
from anatomist.prompts.encoding import EncodedPrompts, encode
from anatomist.prompts.make import TASKS, make_prompts
from anatomist.prompts.prompt_set import PromptSet

from tests.prompts.words_model import PAIRS, TRIPLES, Splitter

N = 24
EVERY = [(task, corruption) for task, t in TASKS.items() for corruption in t.corruptions]
WORDLESS = ("induction",)


def words() -> Model:
    return Splitter(PAIRS)  # type: ignore[return-value]


def made(task: str, corruption: str | None = None, *, n: int = N, seed: int = 0) -> tuple[PromptSet, PromptSet, Model]:
    model = words()
    if task in WORDLESS:
        model.token_ids(" ".join(f"w{'abcdefghij'[i % 10]}{'klmnopqrst'[i // 10]}" for i in range(100)))
        model.info.d_vocab = 100  # type: ignore[misc]
    discovery, held_out = make_prompts(task, n, seed, model, corruption=corruption)
    return discovery, held_out, model


def strings(e: EncodedPrompts, role: str, row: int) -> str:
    return e.clean.strings[row][e.roles[role][row]]


@pytest.mark.parametrize(("task", "corruption"), EVERY)
def test_every_prompt_is_aligned_distinct_and_differs_from_its_counterfactual(task: str, corruption: str) -> None:
    for part in made(task, corruption)[:2]:
        assert len({p.clean for p in part.prompts}) == len(part.prompts) == N
    *parts, model = made(task, corruption)
    for part in parts:
        e = encode(part, model, need=("corrupted", "answer", "wrong"))
        assert None not in e.first_differences
        assert e.roles["END"] == e.clean.last


@pytest.mark.parametrize("task", TASKS)
def test_the_same_seed_gives_the_same_prompts_and_another_others(task: str) -> None:
    first, again, other = made(task), made(task), made(task, seed=1)
    assert first[:2] == again[:2]
    assert first[0].handle == first[1].handle != other[0].handle
    assert {p.clean for p in first[0].prompts} != {p.clean for p in other[0].prompts}


@pytest.mark.parametrize("task", TASKS)
def test_the_held_out_part_has_one_template_more(task: str) -> None:
    discovery, held_out, _ = made(task)
    seen, kept = ({p.template.partition("/")[0] for p in part.prompts} for part in (discovery, held_out))
    assert kept - seen == {list(TASKS[task].templates)[-1]}
    assert seen < kept
    assert discovery.split == "discovery"
    assert held_out.split == "held_out"


KEPT_APART = {
    "ioi": ("IO", "S1"), "greater_than": ("EVENT",), "gender_bias": ("OCCUPATION",), "capitals": ("COUNTRY",),
    "docstring": ("A_DEF", "B_DEF", "C_DEF", "D_DEF"), "induction": ("A1", "B1"),
}  # fmt: skip


@pytest.mark.parametrize("task", TASKS)
def test_no_seed_shows_discovery_a_word_that_any_seed_holds_out(task: str) -> None:
    seen: dict[str, set[str]] = {"discovery": set(), "held_out": set()}
    for seed in range(3):
        *parts, model = made(task, seed=seed)
        for part in parts:
            e = encode(part, model)
            seen[part.split] |= {strings(e, role, row) for role in KEPT_APART[task] for row in range(e.n)}
    assert seen["discovery"]
    assert not seen["discovery"] & seen["held_out"]


def test_ioi_is_half_abba_half_baba_with_the_same_names() -> None:
    discovery, _, model = made("ioi", n=80)
    e = encode(discovery, model)
    assert Counter(t.partition("/")[2] for t in e.templates) == {"ABBA": 40, "BABA": 40}
    assert max(Counter(e.templates).values()) == min(Counter(e.templates).values()) == 10
    for row, prompt in enumerate(discovery.prompts):
        assert prompt.answer == strings(e, "IO", row)
        assert prompt.wrong == strings(e, "S1", row) == strings(e, "S2", row)
        assert (e.roles["IO"][row] < e.roles["S1"][row]) == prompt.template.endswith("ABBA")


def test_ioi_by_default_changes_only_the_second_subject_into_the_answer() -> None:
    discovery, _, model = made("ioi")
    e = encode(discovery, model)
    assert e.corrupted is not None
    assert e.answers is not None
    for row in range(e.n):
        pairs = zip(e.clean.ids[row], e.corrupted.ids[row], strict=True)
        assert [i for i, (a, b) in enumerate(pairs) if a != b] == [e.roles["S2"][row]]
        assert e.corrupted.ids[row][e.roles["S2"][row]] == e.answers[row][0]


def test_ioi_abc_has_three_names_none_of_them_the_prompts_own() -> None:
    discovery, _, model = made("ioi", "abc")
    e = encode(discovery, model)
    assert e.corrupted is not None
    for row in range(e.n):
        three = {e.corrupted.strings[row][e.roles[role][row]] for role in ("IO", "S1", "S2")}
        assert len(three) == 3
        assert not three & {strings(e, "IO", row), strings(e, "S1", row)}


@pytest.mark.hand_worked
def test_years_of_two_pairs_are_asked_as_in_the_paper() -> None:
    discovery, _, model = made("greater_than")
    e = encode(discovery, model)
    for row, prompt in enumerate(discovery.prompts):
        start = int(strings(e, "ONES", row))
        assert prompt.answer == tuple(f"{y:02d}" for y in range(start + 1, 100))
        assert prompt.wrong == tuple(f"{y:02d}" for y in range(start + 1))


@pytest.mark.bad_input
def test_a_tokenizer_that_cannot_write_years_is_told_so_with_its_tokens() -> None:
    with pytest.raises(BadPrompts, match=r"greater_than cannot be made .*writes ' 1732' as ' 173' '2'"):
        make_prompts("greater_than", N, 0, Splitter(TRIPLES))  # type: ignore[arg-type]


@pytest.mark.hand_worked
def test_induction_on_the_toy_repeats_a_run_without_repeats(toy: Model) -> None:
    # Twenty tokens, ten in each part, five in a run and five others for the counterfactual.
    discovery, held_out = make_prompts("induction", N, 0, toy)
    for prompt in (*discovery.prompts, *held_out.prompts):
        assert isinstance(prompt.clean, tuple)
        run, again = prompt.clean[:5], prompt.clean[5:]
        assert len(set(run)) == 5
        assert run[: len(again)] == again
        assert prompt.answer == run[len(again)] == prompt.clean[prompt.roles["B1"]]
        assert prompt.clean[prompt.roles["A1"]] == prompt.clean[prompt.roles["END"]]
        assert isinstance(prompt.corrupted, tuple)
        assert not set(prompt.clean) & set(prompt.corrupted)


def test_the_docstring_counterfactual_swaps_two_arguments_of_the_signature() -> None:
    discovery, _, model = made("docstring")
    e = encode(discovery, model)
    assert e.corrupted is not None
    for row in range(e.n):
        c, d = e.roles["C_DEF"][row], e.roles["D_DEF"][row]
        changed = list(e.clean.ids[row])
        changed[c], changed[d] = changed[d], changed[c]
        assert tuple(changed) == e.corrupted.ids[row]


@pytest.mark.bad_input
def test_more_prompts_than_there_are_is_an_error_with_the_most() -> None:
    with pytest.raises(BadArguments, match=r"make at most (\d+) different ones. Ask for n=\1 or fewer") as caught:
        make_prompts("gender_bias", 5000, 0, words())
    most = int(str(caught.value).split("n=")[1].split(" ")[0])
    held_out_too = make_prompts("gender_bias", most, 0, words(), held_out=4)
    assert len(held_out_too[0].prompts) == most


@pytest.mark.bad_input
@pytest.mark.parametrize("n", [0, -1, 10**9])
def test_a_number_of_prompts_out_of_bounds_is_refused(n: int) -> None:
    with pytest.raises(BadArguments, match="n is 1 to 10000"):
        make_prompts("ioi", n, 0, words())


@pytest.mark.bad_input
def test_unknown_tasks_and_corruptions_list_what_there_is(toy: Model) -> None:
    with pytest.raises(UnknownName, match="Did you mean 'capitals'"):
        make_prompts("capital", N, 0, toy)
    with pytest.raises(UnknownName, match=r"unknown corruption of ioi 'noise'.*s2_to_io: the second subject becomes"):
        make_prompts("ioi", N, 0, toy, corruption="noise")


@pytest.mark.bad_input
@pytest.mark.parametrize("task", [t for t in TASKS if t not in WORDLESS])
def test_a_model_that_has_no_words_is_told_which_task_needs_none(task: str, toy: Model) -> None:
    with pytest.raises(BadPrompts, match=f"{task} cannot be made for this model: .*'induction' needs no words"):
        make_prompts(task, N, 0, toy)
