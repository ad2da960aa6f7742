"""Pictures: every panel is drawn without a browser or a network, shows the numbers it was given, and nothing else."""

from __future__ import annotations

import json
import re
import struct
import subprocess
import sys
import zlib
from typing import Any

import pytest
from anatomist.drawing import bundle, embed_snippet, html, png, spec
from anatomist.drawing.heatmap import domain
from anatomist.drawing.labels import index_axis, shown
from anatomist.drawing.render import _chunks, compressed
from anatomist.drawing.text import in_sight
from anatomist.drawing.theme import PALETTES, config
from anatomist.figures import Bars, Figure, Heatmap, Lines, Scatter, Series, TextRow, TextRows
from anatomist.result import grid

TOKENS = ("0:When", "1: John", "2: and", "3: Mary")


def heat(*values: float | None, **more: Any) -> Heatmap:
    """Two layers by as many positions as the values fill."""
    axes = [("layer", range(2)), ("position", TOKENS[: len(values) // 2])]
    return Heatmap(title="heat", grid=grid("effect", "logits", axes, values), **more)


def lines(**more: Any) -> Lines:
    series = (
        Series(name="answer", values=(0.1, 0.5, None), low=(0.0, 0.4, None), high=(0.2, 0.6, None)),
        Series(name="wrong", values=(0.3, 0.2, 0.1)),
    )
    return Lines(title="lines", x_title="layer", x=(0, 1, 2), y_title="probability", series=series, **more)


def bars(**more: Any) -> Bars:
    return Bars(
        title="bars", value_title="logits", labels=("L9H6", "mlp", "L9H6"), values=(2.0, -1.0, None),
        low=(1.5, -1.2, None), high=(2.5, -0.8, None), groups=("head", "mlp", "head"), **more,
    )  # fmt: skip


def points(n: int = 3, **more: Any) -> Scatter:
    side = tuple(float(i) for i in range(n))
    return Scatter(title="points", x_title="exact", y_title="estimate", x=side, y=side,
                   labels=tuple(f"p{i}" for i in range(n)), **more)  # fmt: skip


def text_rows(*rows: TextRow, **more: Any) -> TextRows:
    return TextRows(title="text", value_title="activation", rows=rows, **more)


def words(n: int, focus: int | None = None, **more: Any) -> TextRow:
    return TextRow(tokens=tuple(f" w{i}" for i in range(n)), values=(0.5,) * n, focus=focus, **more)


def figure(*panels: Heatmap | Lines | Bars | Scatter | TextRows, columns: int = 1) -> Figure:
    return Figure(title="A title", caption="What the numbers are.", panels=panels, columns=columns)


PANELS = {
    "heatmap": heat(1.0, -2.0, None, 0.5),
    "heatmap with text": heat(0.1, 0.9, None, 0.5, diverging=False, text=(" the", "\n", "</script>", "x" * 40)),
    "empty grid": heat(None, None, None, None),
    "constant grid": heat(0.0, 0.0, 0.0, 0.0),
    "lines": lines(reference=0.5),
    "lines over tokens": Lines(title="", x_title="position", x=TOKENS, y_title="loss", log_y=True,
                               series=(Series(name="loss", values=(9.0, 3.0, 1.0, 0.1)),)),
    "bars": bars(reference=1.0),
    "points": points(diagonal=True),
    "many points": points(60, groups=tuple("ab"[i % 2] for i in range(60))),
    "no points": points(0),
    "text": text_rows(words(5, 2, label="2.5", group="top"), words(80, 40, group="top"), words(3, group="random")),
    "signed text": text_rows(
        TextRow(tokens=("The", "\n", "  ", "</script>", "\u65e5"), values=(-1.0, None, 2.0, 0.0, 0.1)), diverging=True
    ),
    "no text": text_rows(),
}  # fmt: skip


def size(picture: bytes) -> tuple[int, int]:
    """Width and height from a PNG's header."""
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    return struct.unpack(">II", picture[16:24])


def views(drawn: dict[str, Any]) -> list[dict[str, Any]]:
    return drawn["concat"]


def drawn_texts(specification: dict[str, object]) -> list[str]:
    """The texts that end up in the picture."""
    from vl_convert import vegalite_to_svg

    return re.findall(r"<text[^>]*>([^<]*)</text>", vegalite_to_svg(specification, vl_version="6.4"))


def cells(view: dict[str, Any]) -> list[dict[str, Any]]:
    return view["data"]["values"]


@pytest.mark.parametrize("name", PANELS)
@pytest.mark.parametrize("theme", PALETTES)
def test_every_kind_of_panel_is_drawn_in_both_themes(name: str, theme: Any) -> None:
    width, height = size(png(figure(PANELS[name]), scale=1, theme=theme))
    assert width > 150
    assert height > 60


def test_scale_is_pixels_per_drawn_pixel() -> None:
    once, twice = (size(png(figure(bars()), scale=scale)) for scale in (1, 2))
    assert twice == pytest.approx((2 * once[0], 2 * once[1]), abs=2)


def test_a_picture_packed_anew_has_the_same_pixels_in_fewer_bytes() -> None:
    from vl_convert import vegalite_to_png

    drawn = vegalite_to_png(spec(figure(heat(1.0, -2.0, 0.3, 0.5), lines())), vl_version="6.4", scale=2)
    packed = compressed(drawn)
    assert len(packed) < 0.7 * len(drawn)
    before, after = (dict[bytes, bytes]() for _ in range(2))
    for into, picture in ((before, drawn), (after, packed)):
        for kind, data in _chunks(picture):
            into[kind] = into.get(kind, b"") + data
    assert list(before) == list(after)
    assert zlib.decompress(before.pop(b"IDAT")) == zlib.decompress(after.pop(b"IDAT"))
    assert before == after


def test_the_picture_changes_with_a_single_number() -> None:
    """Rules out a picture that is drawn from anything but the figure."""
    assert png(figure(heat(1.0, 0.0, 0.0, 0.0))) != png(figure(heat(1.0, 0.5, 0.0, 0.0)))
    assert png(figure(bars())) == png(figure(bars()))


@pytest.mark.hand_worked
def test_a_diverging_scale_is_symmetric_about_zero_and_a_sequential_one_begins_at_it() -> None:
    assert domain(heat(1.0, -3.0, None, 0.5)) == (-3.0, 3.0)
    assert domain(heat(0.2, 0.4, 0.1, 0.3, diverging=False)) == (0.0, 0.4)
    assert domain(heat(-0.2, 0.4, 0.1, 0.3, diverging=False)) == (-0.2, 0.4)
    assert domain(heat(1.0, 2.0, 0.0, 0.0, domain=(-5.0, 4.0))) == (-5.0, 5.0)
    assert domain(heat(0.0, 0.0, 0.0, 0.0)) == (-1.0, 1.0)
    for palette in PALETTES.values():  # the middle colour is the one at zero
        assert len(palette.diverging) % 2 == 1


@pytest.mark.hand_worked
def test_cells_stand_at_their_row_and_column_with_their_labels() -> None:
    """Values 1, 2 are layer 0, values 3, 4 layer 1: rules out a transposed grid."""
    (view,) = views(spec(figure(heat(1.0, 2.0, 3.0, 4.0))))
    found = {(c["row"], c["column"]): (c["v"], c["r"], c["c"]) for c in cells(view)}
    assert found == {
        ("0", "0:When"): (1.0, 0, 0), ("0", "1: John"): (2.0, 0, 1),
        ("1", "0:When"): (3.0, 1, 0), ("1", "1: John"): (4.0, 1, 1),
    }  # fmt: skip


def test_text_is_light_on_strong_cells_and_a_missing_cell_has_no_number() -> None:
    (view,) = views(spec(figure(PANELS["heatmap with text"])))
    assert [c["s"] for c in cells(view)] == [False, True, False, False]  # .9 of a scale of 0 to .9; .5 is below 60%
    assert [c["w"] for c in cells(view)][1] == "\\n"
    assert cells(view)[2]["v"] is None


@pytest.mark.hand_worked
def test_tokens_of_text_stand_one_after_the_other_each_with_its_own_value() -> None:
    """11 pixels a letter in a font 0.6 as wide as high: 6.6 pixels a character, 0.4 characters between grounds.

    Blanks at the ends take room but are not drawn: ' the' is 4 characters and its text begins one later.
    """
    row = TextRow(tokens=("a", " the", "\n"), values=(0.0, 2.0, None), focus=1)
    (view,) = views(spec(figure(text_rows(row))))
    first, second, third = cells(view)
    assert [c["v"] for c in (first, second, third)] == [0.0, 2.0, None]
    assert [c["w"] for c in (first, second, third)] == ["a", "the", "\\n"]
    assert [c["focus"] for c in (first, second, third)] == [False, True, False]
    assert second["x"] - first["x"] == pytest.approx(1.4 * 6.6)
    assert third["x"] - second["x"] == pytest.approx(4.4 * 6.6)
    assert (second["tx"] - second["x"]) - (first["tx"] - first["x"]) == pytest.approx(6.6)
    assert [c["s"] for c in (first, second, third)] == [False, True, False]


def test_rows_stand_under_their_headings() -> None:
    rows = (words(2, label="#1", group="top"), words(2, label="#2", group="top"), words(2, label="#3", group="any"))
    drawn = drawn_texts(spec(figure(text_rows(*rows))))
    assert [t for t in drawn if t in ("top", "any")] == ["top", "any"]
    assert [t for t in drawn if t in ("#1", "#2", "#3")] == ["#1", "#2", "#3"]


def test_a_long_row_is_cut_around_its_focus() -> None:
    first, last = in_sight(words(200, 100))
    assert first < 100 < last
    assert 0.55 < (100 - first) / (last - first) < 0.75  # more of what precedes: the model has read that only
    assert in_sight(words(200, 0))[0] == 0
    assert in_sight(words(200, 199))[1] == 200
    assert in_sight(words(200))[0] == 0
    assert in_sight(words(5, 3)) == (0, 5)
    (view,) = views(spec(figure(text_rows(words(200, 100)))))
    assert [c["w"] for c in cells(view)].count("\u2026") == 2


def test_two_bars_of_one_name_stay_two() -> None:
    (view,) = views(spec(figure(bars())))
    assert [(r["i"], r["label"]) for r in cells(view)] == [(0, "L9H6"), (1, "mlp"), (2, "L9H6")]


def test_bars_of_shares_run_from_0_to_1_however_small_they_are() -> None:
    """Without ends, bars of 1% and 2% would fill the picture."""
    small = Bars(title="", value_title="share", labels=("a", "b"), values=(0.01, 0.02))
    assert "1.0" not in drawn_texts(spec(figure(small)))
    assert {"0.0", "1.0"} <= set(drawn_texts(spec(figure(small.model_copy(update={"domain": (0.0, 1.0)})))))


def test_intervals_are_drawn_where_there_are_some() -> None:
    with_them = json.dumps(spec(figure(bars())))
    without = json.dumps(spec(figure(Bars(title="", value_title="v", labels=("a",), values=(1.0,)))))
    assert '"whisker"' in with_them
    assert '"whisker"' not in without
    assert '"area"' in json.dumps(spec(figure(lines())))


def test_only_the_points_far_out_are_named_when_there_are_many() -> None:
    (few,) = views(spec(figure(points(3))))
    assert all(r["named"] for r in cells(few))
    crowd = Scatter(
        title="", x_title="x", y_title="y", x=(*[0.01 * (i % 7) for i in range(50)], 5.0),
        y=(*[0.01 * (i % 5) for i in range(50)], -5.0), labels=tuple(f"p{i}" for i in range(51)),
    )  # fmt: skip
    (many,) = views(spec(figure(crowd)))
    assert [r["label"] for r in cells(many) if r["named"]] == ["p50"]


def test_panels_on_one_given_scale_share_one_legend_others_do_not() -> None:
    same = spec(figure(*(heat(0.1, 0.2, 0.3, 0.4, diverging=False, domain=(0.0, 1.0)) for _ in range(3))))
    own = spec(figure(heat(1.0, 2.0, 3.0, 4.0), heat(0.1, 0.2, 0.3, 0.4)))
    assert same["resolve"] == {"scale": {"color": "shared"}}
    assert own["resolve"] == {"scale": {"color": "independent"}}
    assert drawn_texts(same).count("logits") == 1
    assert drawn_texts(own).count("logits") == 2


def test_a_label_that_cannot_be_printed_is_spelled_out_and_a_long_one_keeps_both_ends() -> None:
    assert shown("a\nb\tc\x07") == "a\\nb\\tc\\x07"
    assert shown("3:" + "x" * 60 + "the end") == "3:" + "x" * 23 + "…" + "xthe end"
    assert len(shown("y" * 100)) == 34
    assert shown(" ") == "' '"


@pytest.mark.hand_worked
def test_crowded_labels_are_thinned_out_and_turned() -> None:
    """A label needs 12 pixels upright; at 4 pixels an index every third fits."""
    axis = index_axis("position", [f"{i}: token" for i in range(100)], 4, flat=True)
    assert axis["values"] == list(range(0, 100, 3))
    assert axis["labelAngle"] == -60
    assert index_axis("layer", list(map(str, range(30))), 14, flat=False)["values"] == list(range(0, 30, 2))
    assert index_axis("layer", [f"{i} of 30" for i in range(30)], 14, flat=False)["values"] == list(range(30))
    roomy = index_axis("head", ["H0", "H1"], 30, flat=True)
    assert roomy["values"] == [0, 1]
    assert roomy["labelAngle"] == 0


def test_a_page_holds_the_words_the_drawing_script_and_no_address_to_load_from() -> None:
    page = html(figure(bars(), lines()))
    assert "<h1>A title</h1>" in page
    assert "What the numbers are." in page
    markup = re.sub(r"<script>.*?</script>", "<script></script>", page, flags=re.DOTALL)
    assert not re.search(r"\b(src|href)\s*=|url\(|@import", markup)
    assert page.count("anatomistDraw(") == 1
    assert page.count("</script>") == 2  # the bundle and the drawing: nothing inside them ends them early


def test_words_of_a_figure_cannot_break_out_of_the_page() -> None:
    nasty = figure(PANELS["heatmap with text"]).model_copy(update={"title": "<b onload=x>", "caption": "</p><script>"})
    page = html(nasty)
    assert "<b onload" not in page
    assert "</p><script>" not in page
    assert page.count("</script>") == 2


def test_a_snippet_leaves_title_and_caption_to_the_page_and_keeps_to_its_name() -> None:
    snippet = embed_snippet(figure(bars()), 'a"b c')
    assert 'id="a-b-c"' in snippet
    assert "What the numbers are." not in snippet
    assert "window.anatomistDraw" in bundle()
    assert len(snippet) < 10_000 < len(bundle())


def test_links_stand_under_the_picture() -> None:
    linked = figure(bars()).model_copy(update={"links": {"run r-1": "#r-1"}})
    assert '<a href="#r-1">run r-1</a>' in html(linked)


def test_both_themes_name_the_same_settings() -> None:
    light, dark = config("light"), config("dark")
    assert light.keys() == dark.keys()
    assert light["background"] != dark["background"]
    assert config("dark", transparent=True)["background"] == "transparent"


def test_drawing_is_imported_without_its_engine() -> None:
    code = "import sys, anatomist.drawing; print('vl_convert' in sys.modules, 'torch' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.split() == ["False", "False"]


@pytest.mark.slow
def test_a_later_picture_of_a_sweep_takes_little_processor_time() -> None:
    """A bound that holds on a busy machine; the aim is a tenth of a second on a quiet one."""
    import time

    axes = [("layer", range(30)), ("position", [f"{i}: t" for i in range(14)])]
    sweep = figure(Heatmap(title="", grid=grid("effect", "logits", axes, [i / 420 for i in range(420)])))
    png(sweep)
    taken = []
    for _ in range(3):
        start = time.process_time()
        png(sweep)
        taken.append(time.process_time() - start)
    assert min(taken) < 0.5
