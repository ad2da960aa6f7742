"""The hand-set induction circuit: what is true of it by construction must be what the library measures.

Prompts are ten different random tokens, twice; the answer is the first token of the second copy's next step. Noising
replaces a head's output by its output on another such prompt. Only L0H1 and L1H2 take part, by construction.
"""

from __future__ import annotations

import pytest
import torch
from anatomist.model.backends.local import LocalModel
from anatomist.model.backends.toy import ToyModel
from anatomist.model.backends.toy_circuits import INDUCTION, PREVIOUS_TOKEN, induction
from anatomist.model.edits import Edit
from anatomist.model.protocol import Model
from anatomist.model.sites import Site, SiteKind
from anatomist.model.tokens import Tokens
from torch import Tensor

from tests.backends.toy_forms import gpt2_of_toy

HEADS = [(layer, head) for layer in range(2) for head in range(4)]
N, HALF = 60, 10


def repeated(model: Model, seed: int) -> Tokens:
    generator = torch.Generator().manual_seed(seed)
    halves = [torch.randperm(20, generator=generator)[:HALF].tolist() for _ in range(N)]
    return model.tokenize([half + half for half in halves])


def answer_logit(model: Model, tokens: Tokens, edits: list[Edit]) -> Tensor:
    """The logit of the token that followed the last one the first time round: the second copy starts anew."""
    logits = model.run(tokens, edits=edits, logits_at=tokens.last).logits
    assert logits is not None
    return logits[torch.arange(N), torch.tensor([row[HALF] for row in tokens.ids])]


def effects(model: Model, kind: SiteKind) -> dict[tuple[int, int], float]:
    """Mean change of the answer's logit when one head's z, q, k or v comes from other prompts."""
    clean, other = repeated(model, 0), repeated(model, 1)
    base = answer_logit(model, clean, [])
    reads = model.run(other, read=[Site(kind, layer) for layer in range(2)]).reads
    found = {}
    for layer, head in HEADS:
        value = reads[Site(kind, layer)][:, :, head]
        edit = Edit(site=Site(kind, layer, head), rule="resample", value=value)
        found[layer, head] = float((answer_logit(model, clean, [edit]) - base).mean())
    return found


@pytest.fixture(scope="module")
def hard() -> ToyModel:
    return induction()


@pytest.fixture(scope="module")
def as_gpt2(hard: ToyModel) -> LocalModel:
    return LocalModel(gpt2_of_toy(hard), None, name="toy-as-gpt2")


@pytest.mark.hand_worked
def test_the_circuit_continues_a_repeated_sequence_with_a_logit_of_ten(hard: ToyModel) -> None:
    """Hard attention writes the answer's one-hot with weight 1 (to 1e-15), times an unembedding of 10."""
    tokens = repeated(hard, 0)
    assert answer_logit(hard, tokens, []).tolist() == pytest.approx([10.0] * N)
    assert hard.generate(hard.tokenize(["t3 t1 t4 t3"]), max_new_tokens=3) == ((1, 4, 3),)


@pytest.mark.positive_control
def test_head_patching_finds_exactly_the_two_heads(hard: ToyModel) -> None:
    """About 1 in 20 resampled answers is right by chance, so an effect is a little short of -10. Rules out a wrong
    head order, a wrong row, and an edit that leaks to other heads: those are exactly 0, not nearly."""
    found = effects(hard, "head")
    for head, effect in found.items():
        if head in (PREVIOUS_TOKEN, INDUCTION):
            assert -10 <= effect < -8
        else:
            assert effect == 0


@pytest.mark.positive_control
@pytest.mark.parametrize(
    ("kind", "true_heads"), [("q", [INDUCTION]), ("k", [INDUCTION]), ("v", [PREVIOUS_TOKEN, INDUCTION])]
)
def test_patching_through_q_k_or_v_finds_the_heads_that_read_tokens_there(
    hard: ToyModel, kind: SiteKind, true_heads: list[tuple[int, int]]
) -> None:
    """L0H1 matches positions, which are the same in every prompt: only its values carry tokens."""
    found = effects(hard, kind)
    assert {head for head, effect in found.items() if effect != 0} == set(true_heads)
    assert all(found[head] < -8 for head in true_heads)


def test_only_keys_of_the_induction_head_compose_with_the_previous_token_head(hard: ToyModel) -> None:
    """|W_O W_K| / (|W_O| |W_K|) is well above the six decoys', which write where nobody reads: exactly 0."""
    w, written = hard.weights, hard.weights.o(0)

    def composition(head: int, reader: Tensor) -> float:
        return float((written[head] @ reader).norm() / (written[head].norm() * reader.norm()))

    keys = [composition(head, w.k(1)[INDUCTION[1]]) for head in range(4)]
    assert keys[PREVIOUS_TOKEN[1]] > 0.1
    assert [score for head, score in enumerate(keys) if head != PREVIOUS_TOKEN[1]] == [0.0, 0.0, 0.0]
    assert composition(PREVIOUS_TOKEN[1], w.q(1)[INDUCTION[1]]) == 0
    assert composition(PREVIOUS_TOKEN[1], w.v(1)[INDUCTION[1]]) == 0


def test_direct_effects_add_up_to_the_logits_exactly(hard: ToyModel) -> None:
    """Without norm the logits are the sum of embedding and head outputs through the unembedding; each term is also
    what removing that head from the final residual changes, which a sum over permuted heads would hide."""
    tokens, w = repeated(hard, 0), hard.weights
    run = hard.run(
        tokens, read=[Site("embed"), Site("head", 0), Site("head", 1), Site("resid_post", 1)], logits_at="all"
    )
    outputs = [torch.einsum("bthd,hde->hbte", run.reads[Site("head", layer)], w.o(layer)) for layer in range(2)]
    terms = [run.reads[Site("embed")], *outputs[0], *outputs[1]]
    logits = run.logits
    assert logits is not None
    assert torch.allclose(sum(term @ w.unembed() for term in terms), logits, atol=1e-5)  # type: ignore[arg-type]
    for layer, head in HEADS:
        edit = Edit(site=Site("resid_post", 1), rule="add", value=outputs[layer][head], factor=-1.0)
        without = hard.run(tokens, edits=[edit], logits_at="all").logits
        assert without is not None
        assert torch.allclose(logits - without, outputs[layer][head] @ w.unembed(), atol=1e-5)


@pytest.mark.negative_control
def test_soft_attention_weakens_the_circuit_and_leaves_the_decoys_at_zero() -> None:
    found = effects(induction(sharpness=3.0), "head")
    assert {head for head, effect in found.items() if effect != 0} == {PREVIOUS_TOKEN, INDUCTION}
    assert all(-5 < found[head] < -1 for head in (PREVIOUS_TOKEN, INDUCTION))


def test_the_same_weights_through_the_local_backend_agree(hard: ToyModel, as_gpt2: LocalModel) -> None:
    """The circuit as a GPT-2 whose layer norms change nothing to 1e-7 (`toy_forms.py`): logits agree to 1e-5 of their
    size, the two heads' effects to 1e-3 of theirs, and the other six are 0 to 1e-5."""
    tokens = repeated(hard, 0)
    ours, theirs = (m.run(tokens, logits_at="all").logits for m in (hard, as_gpt2))
    assert ours is not None
    assert theirs is not None
    assert float((ours.double() - theirs).abs().max()) < 1e-5 * 10
    kinds: tuple[SiteKind, ...] = ("head", "k")
    for kind in kinds:
        toy, local = effects(hard, kind), effects(as_gpt2, kind)
        for head in HEADS:
            assert local[head] == pytest.approx(toy[head], rel=1e-3, abs=1e-5)


def test_the_backends_read_the_same_in_the_blocks_of_the_residual(hard: ToyModel, as_gpt2: LocalModel) -> None:
    tokens, d = repeated(hard, 0), hard.info.d_model
    sites = [Site("embed"), Site("resid_mid", 1), Site("resid_post", 1), Site("pattern", 1), Site("attn_out", 0)]
    ours, theirs = hard.run(tokens, read=sites).reads, as_gpt2.run(tokens, read=sites).reads
    for site in sites:
        mine = ours[site].double()
        other = theirs[site] if site.kind == "pattern" else theirs[site][..., :d]
        assert torch.allclose(mine, other.double(), atol=1e-4)
