"""A result as text, structured content, picture and link, within the size caps."""

from __future__ import annotations

import base64
import json

import pytest
from anatomist.result import About, Estimate, Frozen, Grid, Result, SelfTest, grid
from anatomist_mcp.content import CAP_TOKENS, CHARACTERS_PER_TOKEN, Shown, fit, present
from anatomist_mcp.text import Detail
from mcp.types import ImageContent, ResourceLink, TextContent

ABOUT = About(
    run="r-0007", technique="sweep", model="toy", backend="toy", dtype="float32", device="cpu", bos=False, seed=3, n=8,
    exploratory=True, seconds=2.0, estimated_seconds=1.5, versions={},
)  # fmt: skip


class Sweep(Result):
    """Every kind of field a technique's result has."""

    baseline: Estimate
    effects: Grid
    tests: tuple[SelfTest, ...]
    tokens: tuple[str, ...] = ()
    page: str = ""


def sweep(rows: int = 2, columns: int = 3, **more: object) -> Sweep:
    values = [r * columns + c for r in range(rows) for c in range(columns)]
    axes = [("layer", [f"L{r}" for r in range(rows)]), ("position", [f"{c}:t" for c in range(columns)])]
    return Sweep(
        summary="Layer 1 matters.",
        warnings=("only 8 prompts",),
        about=ABOUT,
        baseline=Estimate(mean=3.125, low=2.5, high=3.75, n=8),
        effects=grid("effect", "logits", axes, [float(v) for v in values]),
        tests=(SelfTest(name="self patch", expected=0, found=0, tolerance=1e-4, passed=True),),
        **more,  # type: ignore[arg-type]
    )


def text(shown: Shown, detail: Detail = "concise") -> str:
    block = present(shown, detail).content[0]
    assert isinstance(block, TextContent)
    return block.text


@pytest.mark.hand_worked
def test_the_text_tells_summary_warning_numbers_top_cells_self_tests_and_cost_in_this_order() -> None:
    assert text(Shown(sweep(1, 2), "r-0007")).splitlines() == [
        "Layer 1 matters.",
        "Warning: only 8 prompts",
        "baseline: 3.125 [2.5, 3.75] (n=8)",
        "effect (logits; 1 layer x 2 position), largest: L0 / 1:t = 1; L0 / 0:t = 0",
        "self-tests: 1 of 1 passed",
        "Run r-0007: toy (float32, toy, cpu), seed 3, n=8, exploratory; 2 s (estimated 1.5 s).",
    ]


def test_a_failed_self_test_is_spelled_out_also_in_the_concise_text() -> None:
    failed = SelfTest(name="self patch", expected=0, found=0.5, tolerance=1e-4, passed=False)
    told = text(Shown(sweep().model_copy(update={"tests": (failed,)})))
    assert "self-tests: 0 of 1 passed" in told
    assert "FAILED: self patch: found 0.5, expected 0" in told


def test_structured_content_is_the_result_itself_when_it_fits() -> None:
    shown = sweep()
    assert Sweep.model_validate(present(Shown(shown, "r-0007"), "concise").structured_content) == shown


def test_picture_and_link_follow_the_text() -> None:
    png = b"\x89PNG...."
    answer = present(Shown(sweep(), "r-0007", png), "concise")
    assert [type(b) for b in answer.content] == [TextContent, ImageContent, ResourceLink]
    picture, link = answer.content[1:]
    assert isinstance(picture, ImageContent)
    assert isinstance(link, ResourceLink)
    assert base64.b64decode(picture.data) == png
    assert link.uri == "anatomist://runs/r-0007"


@pytest.mark.parametrize("detail", ["concise", "detailed"])
@pytest.mark.parametrize(
    "large",
    [
        sweep(300, 100),
        sweep(tokens=tuple(f"token number {i}" for i in range(20_000))),
        sweep(page="words of a long page\n" * 10_000),
        sweep(200, 50, tokens=tuple("abc" for _ in range(9_000)), page="line\n" * 9_000),
    ],
    ids=["grid", "list", "page", "all"],
)
def test_no_answer_is_larger_than_the_cap_and_its_type_stays_and_it_says_what_was_left_out(
    large: Sweep, detail: Detail
) -> None:
    answer = present(Shown(large, "r-0007"), detail)
    told = answer.content[0]
    assert isinstance(told, TextContent)
    size = len(told.text) + len(json.dumps(answer.structured_content))
    assert size <= CAP_TOKENS[detail] * CHARACTERS_PER_TOKEN
    Sweep.model_validate(answer.structured_content)
    assert "Left out for size" in told.text
    assert "get_run(run='r-0007'" in told.text
    assert "Run r-0007" in told.text


def test_a_grid_loses_its_values_and_keeps_its_axes() -> None:
    answer = present(Shown(sweep(300, 100), "r-0007"), "concise")
    assert answer.structured_content["effects"]["values"] is None
    assert len(answer.structured_content["effects"]["axes"][0]["labels"]) == 300
    assert "effects (30000 of 30000)" in answer.content[0].text  # type: ignore[union-attr]


def test_labels_that_alone_go_over_the_cap_leave_the_summary_and_say_so() -> None:
    answer = present(Shown(sweep(40_000, 1), "r-0007"), "concise")
    assert set(answer.structured_content) == {"summary"}
    assert "everything but the summary" in answer.content[0].text  # type: ignore[union-attr]


def test_the_largest_part_goes_first_and_small_ones_stay() -> None:
    data, left_out = fit({"a": [1] * 1000, "b": [2] * 10, "summary": "kept"}, 500)
    assert data["b"] == [2] * 10
    assert data["summary"] == "kept"
    assert len(json.dumps(data)) <= 500
    assert [name.split()[0] for name in left_out] == ["digits", "a"]


@pytest.mark.hand_worked
def test_numbers_are_rounded_before_anything_is_left_out() -> None:
    data, left_out = fit({"values": [1 / 3] * 100, "summary": "kept"}, 1200)  # 100 numbers of 18, then of 7 characters
    assert data["values"] == [0.33333] * 100
    assert left_out == ["digits beyond 5"]


def test_nothing_is_rounded_when_it_fits() -> None:
    data, left_out = fit({"values": [1 / 3] * 10}, 1200)
    assert (data, left_out) == ({"values": [1 / 3] * 10}, [])


def test_a_leading_space_of_a_token_is_seen() -> None:
    assert "tokens: ' Mary', gave" in text(Shown(sweep(tokens=(" Mary", "gave"))))


def test_an_empty_result_needs_nothing_but_its_summary() -> None:
    class Bare(Frozen):
        summary: str

    assert text(Shown(Bare(summary="Nothing to show."))) == "Nothing to show."
