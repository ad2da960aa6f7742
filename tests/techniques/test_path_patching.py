"""path_patching: the hand-set circuit edge by edge, direct logit attribution, and a second way of computing an edge."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomist.causal.paths import kinds_held
from anatomist.errors import BadArguments, BadSite
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import induction, random_toy
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.prompts.encoding import encode
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques.path_patching import Arguments, PathResult, plot, run

from tests.backends.families import FAMILIES

INPUTS = tuple(f"L{layer}H{head}.{part}" for layer in (0, 1) for head in range(4) for part in "qkv")
TRUE_EDGES = {
    ("embed", "L0H1.v"), ("embed", "L1H2.q"), ("embed", "L1H2.v"), ("L0H1", "L1H2.k"), ("L1H2", "logits"),
}  # fmt: skip


def paths(model: Model, prompts: PromptSet, **more: Any) -> PathResult:
    return run(Context(model, prompts), Arguments(model="m", prompts="given", **{"direction": "noising", **more}))


def edges(found: PathResult) -> dict[tuple[str, ...], float]:
    return {cell.labels: cell.value for cell in found.effects.change.top(10_000)}


@pytest.fixture(scope="module")
def hard() -> ToyModel:
    return induction()


@pytest.fixture(scope="module")
def prompts(hard: ToyModel) -> PromptSet:
    return make_prompts("induction", 24, 0, hard)[0]


def random_pairs(n: int = 4, length: int = 7, vocabulary: int = 11) -> PromptSet:
    g = torch.Generator().manual_seed(1)
    rows = torch.randint(vocabulary, (n, 2, length), generator=g).tolist()
    return inline_set([{"clean": c, "corrupted": d, "answer": i, "wrong": i + 1} for i, (c, d) in enumerate(rows)])


@pytest.mark.hand_worked
def test_an_edge_has_the_change_that_the_circuit_was_built_to_give(hard: ToyModel) -> None:
    """One prompt 't1 t2 t3 t1' against 't4 t5 t6 t4': L1H2 writes t2 (logit 10), patched it writes t5, the wrong one:
    logit difference 10 to -10, so L1H2 -> logits is -20. Patched through its values alone it reads t5 where it read t2:
    -20 too. With the buffer of the other run (L0H1 -> L1H2.k) no key matches t1: all four scores are 0 but position 0,
    whose own match is taken back by 40; it attends to positions 1, 2, 3 evenly: t2 gets a third of 10. 10/3 - 10."""
    one = inline_set([{"clean": "t1 t2 t3 t1", "corrupted": "t4 t5 t6 t4", "answer": "t2", "wrong": "t5"}])
    found = edges(paths(hard, one, receivers=("L1H2.v", "L1H2.k", "logits")))
    assert found["L1H2", "logits"] == pytest.approx(-20, abs=1e-4)
    assert found["embed", "L1H2.v"] == pytest.approx(-20, abs=1e-4)
    assert found["L0H1", "L1H2.k"] == pytest.approx(10 / 3 - 10, abs=1e-4)


@pytest.mark.positive_control
@pytest.mark.parametrize("sharpness", [40.0, 3.0])
def test_exactly_the_five_true_edges_are_found(prompts: PromptSet, sharpness: float) -> None:
    """Rules out a leak between heads, inputs swapped, freezing too little (L0H1 would reach the logits) or too much."""
    found = paths(induction(sharpness=sharpness), prompts, receivers=(*INPUTS, "logits"))
    values = edges(found)
    assert {edge for edge, value in values.items() if abs(value) > 1e-6} == TRUE_EDGES
    assert len(values) == 12 + 12 * 5 + 9  # every edge there is: one sender before layer 0, five before layer 1
    assert all(abs(values[edge]) > 4 for edge in TRUE_EDGES)
    assert {s.cell for s in found.stand_out} == {" -> ".join(edge) for edge in TRUE_EDGES}
    assert all(test.passed for test in found.self_tests)


@pytest.mark.negative_control
def test_a_run_patched_from_itself_has_no_edges(hard: ToyModel) -> None:
    same = [p.model_copy(update={"corrupted": p.clean}) for p in make_prompts("induction", 8, 0, hard)[0].prompts]
    found = paths(hard, inline_set(same), receivers=(*INPUTS, "logits"))
    assert set(edges(found).values()) == {0.0}
    assert found.stand_out == ()
    assert found.effects.withheld


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_the_direct_path_with_frozen_norm_is_the_difference_of_direct_logit_attribution(name: str) -> None:
    """The other run's component in the base run's residual, divided by the base run's scale: worked out from the
    weights, without any edit. Rules out a norm that is recomputed, and components that pass through later layers."""
    model = wrap_model(FAMILIES[name](), None, name=name)
    given = random_pairs()
    found = edges(paths(model, given, norm="frozen", receivers=("logits",)))
    encoded = encode(given, model)
    assert encoded.corrupted is not None
    rows, contrast = list(range(4)), []
    for answer, wrong in ((s[0], t[0]) for s, t in zip(encoded.answers or (), encoded.wrongs or (), strict=True)):
        columns = model.weights.unembed((answer, wrong))
        contrast.append(columns[:, 0] - columns[:, 1])
    norm, final = model.weights.final_norm(), Site("resid_post", 2)
    last = list(encoded.clean.last)
    scale = norm.scale(model.run(encoded.clean, read=[final]).reads[final][rows, last])
    for layer in range(3):
        z, mlp = Site("head", layer), Site("mlp_out", layer)
        clean, other = (model.run(t, read=[z, mlp]).reads for t in (encoded.clean, encoded.corrupted))
        heads = torch.einsum("bhd,hdm->bhm", (other[z] - clean[z])[rows, last], model.weights.o(layer))
        parts = {f"L{layer}H{h}": heads[:, h] for h in range(4)}
        parts[f"L{layer}MLP"] = (other[mlp] - clean[mlp])[rows, last]
        for sender, part in parts.items():
            direct = (norm.frozen(part, scale) * torch.stack(contrast)).sum(-1).mean()
            assert found[sender, "logits"] == pytest.approx(float(direct), abs=1e-4), sender


def by_hand(model: ToyModel, given: PromptSet, sender_head: int, receiver_head: int, part: str) -> float:
    """The edge L0H(sender) -> L1H(receiver) written out with einsums on the toy's weights, without Model.run."""
    encoded = encode(given, model)
    assert encoded.corrupted is not None
    w = model.weights
    base, other = (torch.tensor(t.ids) for t in (encoded.clean, encoded.corrupted))

    def z(layer: int, q_in: torch.Tensor, k_in: torch.Tensor, v_in: torch.Tensor) -> torch.Tensor:
        b = w.blocks[layer]
        q, k, v = (torch.einsum("btd,ndh->bnth", x, m) for x, m in ((q_in, b.q), (k_in, b.k), (v_in, b.v)))
        mask = torch.full((q.shape[2], q.shape[2]), float("-inf")).triu(1)
        return torch.softmax(q @ k.transpose(2, 3) / q.shape[3] ** 0.5 + mask, -1) @ v  # [B, H, T, h]

    def mlp(layer: int, x: torch.Tensor) -> torch.Tensor:
        b = w.blocks[layer]
        assert b.mlp_in is not None
        assert b.mlp_out is not None
        return torch.relu(x @ b.mlp_in) @ b.mlp_out

    def through(h: torch.Tensor, layer: int) -> torch.Tensor:
        return torch.einsum("bnth,nhd->bntd", h, w.blocks[layer].o)

    assert w.positions is not None
    start = [w.embedding[x] + w.positions[: x.shape[1]] for x in (base, other)]
    written = [through(z(0, x, x, x), 0) for x in start]
    middle = start[0] + written[0].sum(1)
    plain = middle + mlp(0, middle)
    changed = plain + (written[1] - written[0])[:, sender_head]
    whole = z(1, plain, plain, plain)
    inputs = [changed if part == name else plain for name in "qkv"]
    whole[:, receiver_head] = z(1, *inputs)[:, receiver_head]

    def difference(final_z: torch.Tensor) -> torch.Tensor:
        x = plain + through(final_z, 1).sum(1)
        logits = (x + mlp(1, x))[:, -1] @ w.unembedding
        return logits[range(4), range(4)] - logits[range(4), range(1, 5)]

    return float((difference(whole) - difference(z(1, plain, plain, plain))).mean())


@pytest.mark.parametrize("part", ["q", "k", "v"])
def test_an_edge_agrees_with_the_arithmetic_written_out(part: str) -> None:
    model, given = random_toy(), random_pairs()
    found = edges(paths(model, given, senders=("L0H0", "L0H1"), receivers=(f"L1H0.{part}", f"L1H1.{part}")))
    for s in (0, 1):
        for r in (0, 1):
            assert found[f"L0H{s}", f"L1H{r}.{part}"] == pytest.approx(by_hand(model, given, s, r, part), abs=1e-5)


def test_a_path_into_an_mlp_is_its_activations_with_the_sender_alone_changed() -> None:
    """embed -> L0MLP by hand: the neurons of relu((embed(o) + attention(b)) W), put into the base run."""
    model, given = random_toy(layers=1), random_pairs()
    encoded = encode(given, model)
    assert encoded.corrupted is not None
    found = edges(paths(model, given, receivers=("L0MLP",)))
    read = [Site("embed"), Site("attn_out", 0)]
    base, other = (model.run(t, read=read).reads for t in (encoded.clean, encoded.corrupted))
    block, w = model.weights.blocks[0], model.weights
    assert block.mlp_in is not None
    assert block.mlp_out is not None
    seen = other[Site("embed")] + base[Site("attn_out", 0)]
    plain = base[Site("embed")] + base[Site("attn_out", 0)]
    outs = [(plain + torch.relu(x @ block.mlp_in) @ block.mlp_out)[:, -1] @ w.unembedding for x in (seen, plain)]
    values = [x[range(4), range(4)] - x[range(4), range(1, 5)] for x in outs]
    assert found["embed", "L0MLP"] == pytest.approx(float((values[0] - values[1]).mean()), abs=1e-5)


def test_positions_narrow_an_edge(hard: ToyModel, prompts: PromptSet) -> None:
    """L1H2 answers at END: its queries matter there alone, its keys at the position after the first match alone."""
    found = edges(paths(hard, prompts, receivers=("L1H2.q", "L1H2.k"), receiver_positions=("END",)))
    assert found["embed", "L1H2.q"] < -4
    assert abs(found["L0H1", "L1H2.k"]) < 1e-6
    there = edges(paths(hard, prompts, receivers=("L1H2.k",), senders=("L0H1",), sender_positions=("B1",)))
    assert there["L0H1", "L1H2.k"] < -4


def test_receivers_together_are_one_more_column(hard: ToyModel, prompts: PromptSet) -> None:
    found = edges(paths(hard, prompts, senders=("embed",), receivers=("L1H2.q", "L0H1.v"), together=True))
    assert found["embed", "all receivers"] == pytest.approx(0, abs=1e-4)  # both sides renamed alike: the match holds
    assert found["embed", "L1H2.q"] < -4


def test_shared_keys_are_named_by_their_own_head() -> None:
    model = wrap_model(FAMILIES["llama"](), None, name="llama")
    with pytest.raises(BadSite, match=r"write 'L1KV1.k'"):
        paths(model, random_pairs(), receivers=("L1H3.k",))
    found = paths(model, random_pairs(), senders=("L0H0",), receivers=("L1KV1.k", "L1H3.q"))
    assert len(edges(found)) == 2
    assert plot(found).panels


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("more", "error", "says"),
    [
        ({"receivers": ("L1H2",)}, BadSite, "is no receiver"),
        ({"receivers": ("L1H9.q",)}, BadSite, "head|runs from 0 to 3|does not exist"),
        ({"senders": ("L1",)}, BadSite, "is no sender"),
        ({"senders": ("L1H0",), "receivers": ("L1H2.q",)}, BadArguments, "reaches none of L1H2.q"),
        ({"receivers": ("logits", "logits")}, BadArguments, "each once"),
        ({"receivers": ("logits",), "together": True}, BadArguments, "leave 'logits' out"),
    ],
)
def test_edges_that_cannot_be_are_refused(
    hard: ToyModel, prompts: PromptSet, more: dict[str, Any], error: type[Exception], says: str
) -> None:
    with pytest.raises(error, match=says):
        paths(hard, prompts, **more)


@pytest.mark.bad_input
def test_what_cannot_be_held_still_is_refused_and_not_counted_as_direct(hard: ToyModel) -> None:
    """A backend that shows no heads holds attention as a whole; one that shows neither could not tell a direct path
    from one through attention."""
    info = wrap_model(FAMILIES["llama"](), None, name="llama").info
    assert kinds_held(info) == ("head", "mlp_out")
    assert kinds_held(hard.info) == ("head",)
    whole = info.model_copy(update={"sites": tuple(s for s in info.sites if s != "head")})
    assert kinds_held(whole) == ("attn_out", "mlp_out")
    for lacks in ({"head", "attn_out"}, {"mlp_out"}):
        less = info.model_copy(update={"sites": tuple(s for s in info.sites if s not in lacks)})
        with pytest.raises(BadSite, match="have no"):
            kinds_held(less)
