"""Reading activations: the numbers, the shapes, what is kept and what is refused."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from anatomist.errors import BadPosition, BadPrompts, BadSite, WouldNotFit
from anatomist.host import Host
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site
from anatomist.prompts.prompt_set import Prompt, PromptSet
from anatomist.technique import Context
from anatomist.techniques import run_with_cache
from anatomist.techniques.run_with_cache import Arguments, Moments

from tests.backends.families import FAMILIES

if TYPE_CHECKING:
    from pathlib import Path

    from anatomist.model.protocol import Model

ONE = Prompt(clean="t3 t7 t1 t3")
TWO = Prompt(clean="t5 t2")


def read(
    model: Model, *prompts: Prompt, budget: int = 2**31, **more: object
) -> tuple[Context, run_with_cache.CacheResult]:
    chosen = PromptSet(handle="inline", task="inline", split="inline", prompts=prompts)
    context = Context(model=model, prompts=chosen, budget_bytes=budget)
    return context, run_with_cache.run(context, Arguments(model="m", prompts=prompts, **more))  # type: ignore[arg-type]


@pytest.mark.hand_worked
def test_moments_of_two_batches_are_those_of_all_numbers() -> None:
    # 1, 2, 3 and 5, 9: mean 4, deviations -3 -2 -1 1 5, squares 9 4 1 1 25 = 40, std sqrt(40 / 5) = sqrt 8.
    moments = Moments()
    moments.add(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([3.0]))
    moments.add(torch.tensor([5.0, 9.0]), torch.tensor([5.0]))
    found = moments.statistics(Site("embed"), (1,), ("x",))
    assert found.mean == pytest.approx(4.0)
    assert found.std == pytest.approx(8**0.5)
    assert found.norm == pytest.approx(4.0)
    assert (found.min, found.max, found.zeros) == (1.0, 9.0, 0.0)


@pytest.mark.hand_worked
def test_the_embedding_of_the_hand_set_circuit_is_one_hot_blocks(toy: Model) -> None:
    # A token and a position, one 1 each: norm sqrt 2, and all but 2 of 132 numbers are 0.
    _, result = read(toy, ONE, sites=("embed",))
    assert result.sites[0].norm == pytest.approx(2**0.5)
    assert result.sites[0].zeros == pytest.approx(130 / 132)


@pytest.mark.positive_control
def test_the_induction_head_is_read_attending_after_the_earlier_copy(toy: Model) -> None:
    context, result = read(toy, ONE, sites=("pattern",), layers=(1,))
    kept = context.arrays["blocks.1.pattern"]
    assert kept.axes == ("prompt", "position", "head", "key")
    assert float(kept.tensor[0, 3, 2, 1]) == pytest.approx(1.0, abs=1e-4)
    assert result.sites[0].shape == (1, 4, 4, 4)


@pytest.mark.negative_control
def test_padding_does_not_enter_the_statistics(toy: Model) -> None:
    # Rules out statistics over padded rows: the short prompt alone and beside a longer one give the same sums.
    alone = [read(toy, p, sites=("resid_post",), layers=(1,))[1].sites[0] for p in (ONE, TWO)]
    both = read(toy, ONE, TWO, sites=("resid_post",), layers=(1,))[1].sites[0]
    assert both.norm == pytest.approx((4 * alone[0].norm + 2 * alone[1].norm) / 6, rel=1e-5)
    assert both.mean == pytest.approx((4 * alone[0].mean + 2 * alone[1].mean) / 6, rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_small_budgets_give_the_same_numbers_on_every_family(family: str) -> None:
    model = wrap_model(FAMILIES[family](), None, name=family)
    prompts = [Prompt(clean=tuple(range(1, 4 + i))) for i in range(5)]
    kinds = tuple(k for k in ("resid_post", "head", "k", "pattern", "neuron") if k in model.info.sites)
    large, a = read(model, *prompts, sites=kinds)
    small, b = read(model, *prompts, sites=kinds, budget=2**17)
    for name, kept in large.arrays.items():
        torch.testing.assert_close(kept.tensor, small.arrays[name].tensor, atol=1e-5, rtol=1e-5)
    assert [s.shape for s in a.sites] == [s.shape for s in b.sites]


def test_arrays_of_a_stored_run_are_read_back(tmp_path: Path, toy: Model) -> None:
    host = Host(tmp_path)
    asked = {"model": "toy-induction", "prompts": [ONE.model_dump(), TWO.model_dump()], "sites": ["resid_post"]}
    answer = host.call("run_with_cache", asked)
    _, values = host.store.get(answer.run_id or "").array("blocks.1.resid_post")
    direct = toy.run(toy.tokenize([ONE.clean]), read=[Site("resid_post", 1)]).reads[Site("resid_post", 1)]
    torch.testing.assert_close(torch.tensor(values[0]), direct[0], atol=1e-6, rtol=1e-6)
    assert not values[1, 2:].any()


def test_half_precision_is_kept_when_asked_for(toy: Model) -> None:
    context, result = read(toy, ONE, sites=("resid_post",), dtype="float16")
    assert context.arrays["blocks.0.resid_post"].tensor.dtype == torch.float16
    assert result.array_bytes == 2 * 2 * 4 * 132


@pytest.mark.bad_input
def test_an_unknown_site_lists_what_there_is(toy: Model) -> None:
    with pytest.raises(BadSite, match="resid_post"):
        read(toy, ONE, sites=("blocks.0.typo",))


@pytest.mark.bad_input
def test_a_position_outside_the_prompt_is_an_error(toy: Model) -> None:
    with pytest.raises(BadPosition, match="outside prompt 0's 4 tokens"):
        read(toy, ONE, positions=(9,))


@pytest.mark.bad_input
def test_the_corrupted_side_must_be_there(toy: Model) -> None:
    with pytest.raises(BadPrompts, match="no corrupted side"):
        read(toy, ONE, side="corrupted")


@pytest.mark.bad_input
def test_what_does_not_fit_is_refused_with_figures(toy: Model) -> None:
    with pytest.raises(WouldNotFit, match="MiB"):
        read(toy, ONE, sites=("pattern",), budget=100)


def test_the_picture_has_a_line_per_kind(toy: Model) -> None:
    _, result = read(toy, ONE, sites=("resid_post", "attn_out"))
    figure = run_with_cache.plot(result)
    assert [s.name for s in figure.panels[0].series] == ["attn_out", "resid_post"]  # type: ignore[union-attr]
