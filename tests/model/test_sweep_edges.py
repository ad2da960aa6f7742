"""Circuits of edges: against bare torch, against path patching, and against the model's own passes."""

from __future__ import annotations

from random import Random

import pytest
import torch
from anatomist.causal.attribution import Way, attribute
from anatomist.causal.gradients import path_of
from anatomist.errors import Unsupported, WouldNotFit
from anatomist.measures.metrics import Metric
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Backend, Model
from anatomist.model.sites import Site
from anatomist.model.sweep import silent
from anatomist.model.sweep_edges import EdgeSweep
from anatomist.model.sweep_plan import Cell
from anatomist.model.tokens import Tokens

from tests.backends.families import FAMILIES
from tests.causal.bare_edges import BareEdges
from tests.causal.bare_toy import difference

BUDGET = 2**28
CLEAN, OTHER = ((1, 2, 3, 4, 1, 2), (7, 8, 9, 10, 7, 8)), ((5, 6, 8, 0, 5, 6), (0, 3, 4, 1, 0, 3))
ANSWERS, WRONGS = ((3,), (9,)), ((8,), (4,))


def metric() -> Metric:
    return Metric("logit_diff", ANSWERS, WRONGS)


def runs(model: Model) -> tuple[Tokens, Tokens]:
    return model.tokenize(CLEAN), model.tokenize(OTHER)


def bare(model: ToyModel, **more: object) -> tuple[BareEdges, torch.Tensor]:
    """A pass of the clean run against the other one, and its metric."""
    there = BareEdges(model)
    there.logits(OTHER)
    here = BareEdges(model, other=there.wrote, **more)  # type: ignore[arg-type]
    return here, difference(here.logits(CLEAN), ANSWERS, WRONGS)


def ends(sweep: EdgeSweep, edge: int) -> tuple[str, str]:
    sender, receiver = sweep.graph.name(edge).split(" -> ")
    return sender, receiver


TOYS = [
    induction(sharpness=3.0), random_toy(), random_toy(layers=3, heads=4, kv_heads=2), random_toy(d_mlp=0, layers=3),
]  # fmt: skip


@pytest.mark.parametrize("model", TOYS, ids=["soft induction", "random", "shared keys", "no mlp"])
def test_the_edges_are_those_of_the_pass_written_out(model: ToyModel) -> None:
    here, _ = bare(model)
    sweep = EdgeSweep(model)
    assert {ends(sweep, i) for i in range(len(sweep.graph.edges))} == set(here.edges)


@pytest.mark.positive_control
@pytest.mark.parametrize("model", TOYS, ids=["soft induction", "random", "shared keys", "no mlp"])
def test_circuits_agree_with_bare_torch(model: ToyModel) -> None:
    """Random circuits of every density. Rules out a kept edge that carries the clean run's sender instead of what the
    sender makes of its own kept inputs, heads that share an input, and edges within a layer."""
    sweep, rng = EdgeSweep(model), Random(0)
    n = len(sweep.graph.edges)
    circuits = [sorted(rng.sample(range(n), int(n * share))) for share in (0, 0.1, 0.3, 0.5, 0.8, 0.95, 1)]
    found = sweep.circuits(*runs(model), metric(), circuits, BUDGET)
    for row, kept in zip(found, circuits, strict=True):
        _, expected = bare(model, weight={ends(sweep, i): 1.0 for i in kept}, default=0.0)
        assert row.double().numpy() == pytest.approx(expected.numpy(), abs=1e-4)


@pytest.mark.parametrize("model", TOYS, ids=["soft induction", "random", "shared keys", "no mlp"])
def test_eap_is_the_slope_of_the_metric_in_the_edges_weight(model: ToyModel) -> None:
    """Central differences in float64: no gradient is taken on the other side."""
    sweep = EdgeSweep(model)
    found = sweep.scores(*runs(model), metric(), (0.0,), BUDGET)
    for i in Random(1).sample(range(len(sweep.graph.edges)), 20):
        (up, down) = (bare(model, weight={ends(sweep, i): 1 + step})[1] for step in (1e-5, -1e-5))
        assert found[:, i].double().numpy() == pytest.approx(((up - down) / 2e-5).numpy(), abs=1e-3)


@pytest.mark.parametrize("model", TOYS[:3], ids=["soft induction", "random", "shared keys"])
def test_eap_ig_is_the_slope_averaged_between_the_embeddings(model: ToyModel) -> None:
    sweep, path = EdgeSweep(model), (0.25, 0.75)
    found = sweep.scores(*runs(model), metric(), path, BUDGET)
    here, _ = bare(model)
    for i in Random(2).sample(range(len(sweep.graph.edges)), 12):
        sender, receiver = ends(sweep, i)
        change = here.wrote[sender] - here.other[sender]
        total = torch.zeros(2, dtype=torch.float64)
        for where in path:
            start = torch.lerp(here.wrote["embed"], here.other["embed"], where)
            passes = (BareEdges(model, push={receiver: s * change}, start=start) for s in (1e-5, -1e-5))
            up, down = (difference(p.logits(CLEAN), ANSWERS, WRONGS) for p in passes)
            total += (up - down) / 2e-5 / len(path)
        assert found[:, i].double().numpy() == pytest.approx(total.numpy(), abs=1e-3)


def random_runs(model: Model) -> tuple[Tokens, Tokens, Metric]:
    """Rows of different lengths that begin alike: with two and three tokens."""
    rng, n = Random(3), model.info.d_vocab
    here, there = ([[rng.randrange(n) for _ in range(m)] for m in (7, 5)] for _ in range(2))
    there = [h[:same] + t[same:] for h, t, same in zip(here, there, (2, 3), strict=True)]
    pair = [model.tokenize(rows, bos=False) for rows in (here, there)]
    return pair[0], pair[1], Metric("logit_diff", ((1,), (2,)), ((3,), (4,)))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3"])
def test_every_edge_is_the_model_itself_and_no_edge_the_other_run(family: str) -> None:
    model = wrap_model(FAMILIES[family](), None, name=family)
    clean, other, m = random_runs(model)
    sweep = EdgeSweep(model)
    found = sweep.circuits(clean, other, m, [range(len(sweep.graph.edges)), []], BUDGET)
    for row, tokens in zip(found, (clean, other), strict=True):
        logits = model.run(tokens, logits_at=tokens.last).logits
        assert logits is not None
        assert row.tolist() == pytest.approx(m(logits).tolist(), abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox"])
def test_an_edge_taken_out_is_what_path_patching_measures(family: str) -> None:
    """Two forward passes with frozen heads and MLPs against one pass with residuals apart: another computation of the
    same edge, with norms, rotation, biases and parallel blocks."""
    from anatomist.prompts.given import inline_set
    from anatomist.technique import Context
    from anatomist.techniques.path_patching import Arguments, run

    model = wrap_model(FAMILIES[family](), None, name=family)
    clean, other, m = random_runs(model)
    rows = zip(clean.ids, other.ids, (1, 2), (3, 4), strict=True)
    prompts = inline_set([{"clean": c, "corrupted": d, "answer": a, "wrong": w} for c, d, a, w in rows])
    sweep, rng = EdgeSweep(model), Random(4)
    n = len(sweep.graph.edges)
    for i in rng.sample(range(n), 12):
        sender, receiver = ends(sweep, i)
        arguments = Arguments(
            model="m", prompts="given", direction="noising", senders=(sender,), receivers=(receiver,)
        )
        effect = run(Context(model, prompts), arguments).effects.change.at(0, 0)
        found = sweep.circuits(clean, other, m, [range(n), [j for j in range(n) if j != i]], BUDGET)
        assert float((found[1] - found[0]).mean()) == pytest.approx(effect, abs=1e-4)


@pytest.mark.parametrize("family", ["llama", "gpt2", "gpt_neox", "qwen2", "qwen3"])
@pytest.mark.parametrize("steps", [0, 3])
def test_the_edges_out_of_a_node_add_up_to_the_node(family: str, steps: int) -> None:
    """Attribution patching by the model's own backward pass: dM / d(what a node writes) is the sum over its readers."""
    model = wrap_model(FAMILIES[family](), None, name=family)
    clean, other, m = random_runs(model)
    sweep, info = EdgeSweep(model), model.info
    scores = sweep.scores(clean, other, m, path_of(steps), BUDGET)
    sites = [Site("head", layer, h) for layer in range(info.n_layers) for h in range(info.n_heads)]
    sites += [Site("mlp_out", layer) for layer in range(info.n_layers)]
    cells = [Cell((site,)) for site in sites]
    nodes = attribute(model, clean, other, m, cells, Way(steps), BUDGET, silent).values
    for site, node in zip(sites, nodes, strict=True):
        name = f"L{site.layer}MLP" if site.index is None else f"L{site.layer}H{site.index}"
        out = [i for i in range(len(sweep.graph.edges)) if ends(sweep, i)[0] == name]
        assert scores[:, out].sum(1).tolist() == pytest.approx((-node).tolist(), abs=1e-3)


def test_what_both_runs_begin_with_is_left_out_without_a_difference() -> None:
    """On a toy that has learned positions and on random circuits, against bare torch; the first three tokens agree."""
    model = random_toy(layers=3, heads=4, kv_heads=2)
    clean, other = ((1, 2, 3, 4, 1, 2),), ((1, 2, 3, 7, 0, 5),)
    m = Metric("logit_diff", ((3,),), ((8,),))
    sweep, rng, there = EdgeSweep(model), Random(8), BareEdges(model)
    there.logits(other)
    kept = sorted(rng.sample(range(len(sweep.graph.edges)), 60))
    here = BareEdges(model, other=there.wrote, weight={ends(sweep, i): 1.0 for i in kept}, default=0.0)
    expected = difference(here.logits(clean), ((3,),), ((8,),))
    found = sweep.circuits(model.tokenize(clean), model.tokenize(other), m, [kept], BUDGET)
    assert found[0].tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_small_budgets_give_the_same_numbers() -> None:
    model = random_toy(layers=3)
    sweep, rng = EdgeSweep(model), Random(6)
    clean, other = runs(model)
    circuits = [sorted(rng.sample(range(len(sweep.graph.edges)), 30)) for _ in range(3)]
    one = 3 * (len(sweep.graph.senders) + len(sweep.graph.receivers)) * 6 * model.info.d_model * 4
    found = [sweep.circuits(clean, other, metric(), circuits, budget) for budget in (one, BUDGET)]
    assert torch.allclose(found[0], found[1], atol=1e-6)
    scores = [sweep.scores(clean, other, metric(), (0.0,), budget) for budget in (3 * one, BUDGET)]
    assert torch.allclose(scores[0], scores[1], atol=1e-6)


@pytest.mark.bad_input
def test_what_does_not_fit_is_refused_before_it_runs() -> None:
    model = random_toy()
    with pytest.raises(WouldNotFit, match="prompt with all its edges"):
        EdgeSweep(model).circuits(*runs(model), metric(), [[]], 1000)


def test_the_nnsight_backend_gives_the_same_numbers() -> None:
    """Its plain modules are the same ones."""
    found = []
    backends: tuple[Backend, ...] = ("local", "nnsight")
    for backend in backends:
        model = wrap_model(FAMILIES["llama"](), None, name="llama", backend=backend)
        clean, other, m = random_runs(model)
        sweep = EdgeSweep(model)
        found.append(sweep.circuits(clean, other, m, [range(0, len(sweep.graph.edges), 2)], BUDGET))
    assert torch.equal(found[0], found[1])


@pytest.mark.bad_input
def test_models_whose_heads_do_not_add_up_are_refused_with_what_to_do_instead() -> None:
    with pytest.raises(Unsupported, match="level='nodes'"):
        EdgeSweep(wrap_model(FAMILIES["gemma3"](), None, name="gemma3"))
