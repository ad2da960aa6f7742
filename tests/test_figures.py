"""A figure is data that holds together, and survives being stored."""

from __future__ import annotations

import pytest
from anatomist.figures import Bars, Figure, Heatmap, Lines, Scatter, Series, TextRow, TextRows
from anatomist.result import Grid, grid
from pydantic import ValidationError


def square(values: tuple[float | None, ...] = (1.0, -2.0, None, 0.5)) -> Grid:
    return grid("effect", "logits", [("layer", range(2)), ("head", ("H0", "H1"))], values)


def test_a_figure_is_the_same_after_json() -> None:
    figure = Figure(
        title="t", caption="c", columns=2,
        panels=(
            Heatmap(title="h", grid=square(), text=("a", "b", "c", "d"), domain=(-1.0, 1.0)),
            Lines(title="l", x_title="x", x=(0, 1), y_title="y", series=(Series(name="s", values=(1.0, None)),)),
            Bars(title="b", value_title="v", labels=("a",), values=(1.0,), low=(0.5,), high=(2.0,), reference=0.3),
            Scatter(title="s", x_title="x", y_title="y", x=(1.0,), y=(2.0,), labels=("p",), diagonal=True),
            TextRows(title="x", value_title="v", rows=(TextRow(tokens=("a", "b"), values=(1.0, None), focus=0),)),
        ),
    )  # fmt: skip
    assert Figure.model_validate_json(figure.model_dump_json()) == figure


def test_a_heat_map_of_three_axes_is_refused() -> None:
    cube = grid("effect", "logits", [("a", (0,)), ("b", (0,)), ("c", (0,))], (1.0,))
    with pytest.raises(ValidationError, match="needs a grid of 2 axes; it has 3"):
        Heatmap(title="cube", grid=cube)


def test_texts_that_are_not_one_a_cell_are_refused() -> None:
    with pytest.raises(ValidationError, match="has 3 texts for 4 cells"):
        Heatmap(title="h", grid=square(), text=("a", "b", "c"))


@pytest.mark.parametrize(
    ("values", "focus", "message"), [((1.0,), None, "1 values for 2 tokens"), ((1.0, 2.0), 2, "no token 2; it has 2")]
)
def test_text_without_a_value_per_token_is_refused(values: tuple[float, ...], focus: int | None, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextRow(tokens=("a", "b"), values=values, focus=focus)


def test_numbers_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValidationError, match="finite"):
        Bars(title="b", value_title="v", labels=("a",), values=(float("nan"),))
