"""das beside its rival without a search: class means that carry the variable, and class means that carry another."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from anatomist.figures import Bars, Heatmap
from anatomist.model.backends.toy import ToyBlock, ToyModel, ToyWeights
from anatomist.prompts.given import inline_set
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context, KeptArray
from anatomist.techniques.das import Arguments, DasResult, plot, run

MINUS, PLUS = 4, 5  # the answers, by the sign of v
SIGNS = (-1, 1)


def two_variables() -> ToyModel:
    """Token 2 [v = 1] + [w = 1] is (v, 4 w, 0, 0) and the answer's logit 20 v: w is large, and nothing reads it."""
    embedding = torch.zeros(6, 4)
    for i, (v, w) in enumerate(product(SIGNS, SIGNS)):
        embedding[i, :2] = torch.tensor([float(v), 4.0 * w])
    unembedding = torch.zeros(4, 6)
    unembedding[0, MINUS], unembedding[0, PLUS] = -10, 10
    zero = torch.zeros(1, 4, 1)
    block = ToyBlock(q=zero, k=zero, v=zero, o=torch.zeros(1, 1, 4))
    weights = ToyWeights(embedding=embedding, positions=None, blocks=(block,), unembedding=unembedding)
    return ToyModel(weights, name="two-variables")


def pairs(clean_w: tuple[int, ...], corrupted_w: tuple[int, ...]) -> PromptSet:
    """Every pair of the values of w, v being 1 in the clean run and -1 in the corrupted one."""
    return inline_set([
        {"clean": (i % 4, 2 + (w > 0)), "corrupted": (i % 4, int(other > 0)), "answer": PLUS, "wrong": MINUS}
        for i, (w, other) in enumerate(product(clean_w, corrupted_w))
    ])  # fmt: skip


TOGETHER = pairs((1, 1, 1, -1), (-1, -1, -1, 1))  # w mostly has the sign of v
APART = pairs((1, 1, -1, -1), (1, 1, -1, -1))  # w has nothing to do with v


def search(prompts: PromptSet, held_out: PromptSet | None = APART, kept: Any = None, **more: Any) -> DasResult:
    place: dict[str, Any] = {"site": "resid_post", "layers": (0,), "positions": ("last",)}
    chosen = {**place, "steps": 40, "rate": 0.3, **more}
    context = Context(two_variables(), prompts, held_out, arrays={} if kept is None else kept)
    return run(context, Arguments(model="m", prompts="given", **chosen))


def said(result: DasResult) -> list[str]:
    return [w for w in result.warnings if "class means" in w]


@pytest.mark.positive_control
@pytest.mark.hand_worked
def test_a_search_beats_class_means_that_another_variable_leads_astray() -> None:
    """Where it learns, w has a mean of 1/2 with v = 1 and of -1/2 with v = -1: the class means differ by (2, 4), a unit
    direction of (1, 2) / sqrt 5. Along it v moves from -1 by (2 + 2 * 4 (w' - w)) / 5: by 2/5 where w is the same in
    both runs, by 18/5 where it rises, by -14/5 where it falls. v turns in the second case alone: a quarter of the
    prompts judged on. The direction of v turns all of them: 3/4 more."""
    kept: dict[str, KeptArray] = {}
    found = search(TOGETHER, kept=kept)
    place = found.places[0]
    means = place.means
    assert means is not None
    known = torch.tensor([1.0, 2.0, 0, 0]) / 5**0.5
    assert torch.allclose(kept[means.array].tensor.abs(), known[None], atol=1e-6)
    assert (means.classes, means.dimension, means.from_means) == (2, 1, 1)
    assert means.accuracy.mean == 0.25
    assert place.subspace.accuracy.mean == 1
    assert means.gain.mean == 0.75
    assert means.gain.low is not None
    assert 0 < means.gain.low < 0.75
    assert means.gain.n == 32
    assert means.cosine < 0.7  # of the direction of v itself: 1 / sqrt 5
    assert not said(found)
    assert "does better than the class means, which need no search: subspace minus class means +75.0" in found.summary


@pytest.mark.negative_control
def test_where_class_means_do_as_well_the_search_is_said_to_add_nothing() -> None:
    """Without a tie between the two, the class means differ in v alone."""
    found = search(APART)
    place = found.places[0]
    means = place.means
    assert means is not None
    assert place.subspace.accuracy.mean == means.accuracy.mean == 1
    assert means.cosine > 0.95
    assert (means.gain.low, means.gain.mean, means.gain.high) == (0, 0, 0)
    assert len(said(found)) == 1
    assert "the search adds nothing over the difference of class means" in said(found)[0]
    assert "Nothing shows it better than the class means, which need no search" in found.summary


@pytest.mark.negative_control
def test_a_search_that_is_cut_short_is_said_to_do_worse() -> None:
    found = search(APART, steps=1, rate=1e-6, seeds=1)
    means = found.places[0].means
    assert means is not None
    assert means.gain.high is not None
    assert means.gain.high < 0
    assert "the search does worse than the difference of class means" in said(found)[0]
    assert "The class means, which need no search, do better" in found.summary


@pytest.mark.parametrize("direction", ["both", "denoising", "noising"])
def test_the_difference_is_paired_and_the_kept_basis_gives_it_again(direction: str) -> None:
    """Judged as a given subspace, the class means reach the same; the gain is the difference of the two accuracies."""
    kept: dict[str, KeptArray] = {}
    place = search(TOGETHER, kept=kept, direction=direction, steps=5).places[0]
    assert place.means is not None
    assert place.means.gain.mean == pytest.approx(place.subspace.accuracy.mean - place.means.accuracy.mean)
    context = Context(two_variables(), APART, saved=lambda run, name: kept[name])
    asked: dict[str, Any] = {"site": "resid_post", "layers": (0,), "subspace": "r-0001/subspace-means"}
    again = run(context, Arguments(model="m", prompts="given", direction=direction, **asked)).places[0]  # type: ignore[arg-type]
    assert again.subspace.accuracy == place.means.accuracy
    assert again.subspace.logit_diff == place.means.logit_diff
    assert again.means is None  # no prompts apart from those judged on


def test_a_given_subspace_is_compared_where_prompts_were_kept_apart() -> None:
    found = search(TOGETHER, subspace=((0.0, 1.0, 0.0, 0.0),))
    means = found.places[0].means
    assert means is not None
    assert means.gain.mean == -0.25  # w alone turns nothing
    assert "the given subspace does worse than the difference of class means" in said(found)[0]


def test_more_dimensions_than_the_class_means_have_are_filled_from_the_pairs() -> None:
    """Of the plane of v and w everything is exchanged; the third dimension differs in no prompt."""
    found = search(TOGETHER, dimension=2, steps=5)
    means = found.places[0].means
    assert means is not None
    assert (means.classes, means.dimension, means.from_means) == (2, 2, 1)
    assert means.accuracy.mean == 1
    assert "1 of 2 dimensions filled from paired differences" in plot(found).caption
    short = search(TOGETHER, dimension=3, steps=2).places[0].means
    assert short is not None
    assert short.dimension == 2


def test_one_cluster_to_judge_on_shows_nothing_better() -> None:
    one = inline_set([{**p.model_dump(), "cluster": "same"} for p in APART.prompts])
    found = search(TOGETHER, one, steps=5)
    means = found.places[0].means
    assert means is not None
    assert means.gain.low is None
    assert "points, no interval" in said(found)[0]


def test_the_picture_shows_the_class_means_apart_from_the_other_controls() -> None:
    found = search(TOGETHER, steps=5)
    figure = plot(found)
    (bars,) = figure.panels
    assert isinstance(bars, Bars)
    assert bars.groups is not None
    assert dict(zip(bars.labels, bars.groups, strict=True))["class means, no search"] == "class means"
    assert bars.labels.index("random subspace") < bars.labels.index("class means, no search")
    assert bars.labels[-2:] == ("learned subspace", "whole place")
    assert "Subspace minus class means (2 classes):" in figure.caption
    (drawn,) = plot(search(TOGETHER, steps=2, positions=("last", 1))).panels
    assert isinstance(drawn, Heatmap)
    assert "class means, no search" in drawn.grid.axes[1].labels
