"""self_repair: a toy whose backup is written down, the final norm by hand, and identities on random models."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from anatomist.errors import BadArguments, BadPrompts, BadSite
from anatomist.figures import Bars, Scatter
from anatomist.model.backends.toy import NO_NORM, ToyBlock, ToyModel, ToyWeights
from anatomist.model.backends.toy_circuits import induction
from anatomist.model.edits import Edit
from anatomist.model.loading import wrap_model
from anatomist.model.protocol import Model, Norm
from anatomist.model.sites import Site
from anatomist.prompts.encoding import encode
from anatomist.prompts.given import inline_set
from anatomist.prompts.make import make_prompts
from anatomist.prompts.prompt_set import PromptSet
from anatomist.technique import Context
from anatomist.techniques.self_repair import Arguments, SelfRepairResult, plot, run

from tests.backends.families import FAMILIES

ONE = inline_set([{"clean": "t0 t0", "answer": "t1", "wrong": "t2"}])


def repair(model: Model, prompts: PromptSet, **more: Any) -> SelfRepairResult:
    return run(Context(model, prompts), Arguments(model="m", prompts="given", **more))


def heads_that_write(amounts: tuple[float, ...], backup: float = 0.0, norm: Norm = NO_NORM) -> ToyModel:
    """Residual (token, output). Heads of block 0 read the token (all positions alike, so z is 1) and write their
    amounts to the output; in block 1 a neuron relu(1 - output) writes `backup` times itself to the output. The
    logit of t1 is 10 times the output."""
    n = len(amounts)
    reads = torch.zeros(n, 2, 1)
    reads[:, 0] = 1
    none, out = torch.zeros(n, 2, 1), torch.zeros(n, 1, 2)
    out[:, 0, 1] = torch.tensor(amounts)
    first = ToyBlock(q=none, k=none, v=reads, o=out, mlp_in=torch.zeros(2, 1), mlp_out=torch.zeros(1, 2))
    second = ToyBlock(
        q=none, k=none, v=none, o=torch.zeros(n, 1, 2), mlp_in=torch.tensor([[0.0], [-1.0]]),
        mlp_in_bias=torch.ones(1), mlp_out=torch.tensor([[0.0, backup]]),
    )  # fmt: skip
    weights = ToyWeights(
        embedding=torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), positions=None, blocks=(first, second),
        norm=norm, unembedding=torch.tensor([[0.0, 0.0, 0.0], [0.0, 10.0, 0.0]]),
    )  # fmt: skip
    return ToyModel(weights, name="backed-up")


@pytest.mark.hand_worked
def test_a_known_backup_is_measured_and_named() -> None:
    """Intact: output 1, the neuron is relu(0) = 0, logit difference 10. Without the head: output 0, the neuron is 1 and
    writes .8: 8. Direct -10, total -2, repair 8 = 80%, all of it by the MLP of block 1."""
    found = repair(heads_that_write((1.0, 0.0), backup=0.8), ONE, ablation="zero", top=1)
    (head,) = found.largest
    assert head.name == "L0H0"
    assert [e.mean for e in (head.direct, head.frozen, head.total)] == pytest.approx([-10, -2, -2])
    assert [e.mean for e in (head.by_components, head.by_norm, head.repair)] == pytest.approx([8, 0, 8])
    assert head.repaired is not None
    assert head.repaired.mean == pytest.approx(0.8)
    assert [(h.name, h.change.mean) for h in head.helpers] == [("blocks.1.mlp_out", pytest.approx(8))]
    assert found.slope == pytest.approx(0.2)
    assert found.repair.at(0, 0) == pytest.approx(8)
    assert found.repair.at(1, 1) == 0


@pytest.mark.hand_worked
def test_what_the_final_norm_adds_is_told_apart() -> None:
    """Final residual (1, 2): root mean square 1.5811; logit difference 20 / 1.5811 = 12.649. Without one head (1, 1):
    root mean square 1, logit difference 10. Direct and frozen -10 / 1.5811 = -6.3246, total -2.6491: 3.6754 by the
    norm. Without both (1, 0): 0, total -12.649, direct -12.649: together nothing is repaired."""
    norm = Norm("rms", torch.ones(2), None, 0.0)
    found = repair(heads_that_write((1.0, 1.0), norm=norm), ONE, ablation="zero", top=2)
    for head in found.largest:
        parts = (head.direct, head.frozen, head.total, head.by_components, head.by_norm)
        assert [e.mean for e in parts] == pytest.approx([-6.3246, -6.3246, -2.6491, 0, 3.6754], abs=1e-3)
    assert found.together is not None
    assert found.together.total.mean == pytest.approx(-12.649, abs=1e-3)
    assert found.together.repair.mean == pytest.approx(0, abs=1e-4)
    assert found.joint is not None
    assert found.joint.sum_of_singles == pytest.approx(2 * -2.6491, abs=1e-3)  # single ablations understate both


@pytest.mark.positive_control
@pytest.mark.parametrize("backup", [0.25, 0.5, 1.0])
def test_the_share_repaired_is_the_backup_that_was_built(backup: float) -> None:
    found = repair(heads_that_write((1.0, 0.0), backup=backup), ONE, ablation="zero")
    assert found.largest[0].repaired is not None
    assert found.largest[0].repaired.mean == pytest.approx(backup)
    assert found.slope == pytest.approx(1 - backup)
    assert all(t.passed for t in found.self_tests)


@pytest.mark.negative_control
@pytest.mark.parametrize("ablation", ["zero", "mean", "resample"])
def test_a_circuit_without_backup_repairs_nothing(ablation: str) -> None:
    model = induction()
    found = repair(model, make_prompts("induction", 16, 0, model)[0], ablation=ablation)
    assert [r.name for r in found.largest] == ["L1H2"]  # L0H1 writes nothing to the logits itself
    assert found.largest[0].repair.mean == pytest.approx(0, abs=1e-5)
    assert found.largest[0].helpers == ()
    assert found.slope == pytest.approx(1, abs=1e-5)


def random_prompts() -> PromptSet:
    g = torch.Generator().manual_seed(2)
    rows = torch.randint(97, (6, 8), generator=g).tolist()
    return inline_set(
        [{"clean": r[: 8 - i % 2], "answer": 5, "wrong": 9, "template": f"{i % 2}"} for i, r in enumerate(rows)]
    )


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_the_last_mlp_has_nothing_behind_it_but_the_norm(family: str) -> None:
    """Rules out that a component's own change is counted among the helpers, and a scale of the wrong run."""
    model = wrap_model(FAMILIES[family](), None, name=family)
    found = repair(model, random_prompts(), site="mlp_out", top=3)
    by_name = {r.name: r for r in found.largest}
    assert by_name["L2 mlp_out"].by_components.mean == pytest.approx(0, abs=1e-4)
    assert abs(by_name["L2 mlp_out"].by_norm.mean) > 1e-4
    assert abs(by_name["L0 mlp_out"].by_components.mean) > 1e-3
    assert all(t.passed for t in found.self_tests), found.self_tests


@pytest.mark.parametrize(("site", "backend"), [("head", "local"), ("attn_out", "local"), ("head", "nnsight")])
def test_the_parts_agree_with_the_arithmetic_written_out(site: str, backend: str) -> None:
    """One component of layer 1 zeroed at the last token: the final residuals of both runs, the norm and the unembedding
    by hand. Rules out a frozen norm that is recomputed, and helpers that do not add up."""
    model, given = wrap_model(FAMILIES["llama"](), None, name="llama", backend=backend), random_prompts()
    chosen: dict[str, Any] = {"heads": ("L1H2",)} if site == "head" else {"layers": (1,)}
    (found,) = repair(model, given, site=site, ablation="zero", **chosen).largest
    tokens = encode(given, model).clean
    place, final = Site(site, 1, 2 if site == "head" else None), Site("resid_post", 2)  # type: ignore[arg-type]
    rows, last = list(range(6)), list(tokens.last)
    edit = Edit(site=place, rule="zero", positions=tuple((p,) for p in last))
    clean, hurt = (model.run(tokens, read=[final, place], edits=e).reads for e in ([], [edit]))
    norm = model.weights.final_norm()
    x, y = clean[final][rows, last], hurt[final][rows, last]
    u = (model.weights.unembed([5]) - model.weights.unembed([9]))[:, 0]
    removed = clean[place][rows, last]
    removed = removed @ model.weights.o(1)[2] if site == "head" else removed
    direct = -float((norm.frozen(removed, norm.scale(x)) @ u).mean())
    frozen = float((norm.frozen(y - x, norm.scale(x)) @ u).mean())
    total = float(((norm(y) - norm(x)) @ u).mean())
    parts = (found.direct, found.frozen, found.total, found.repair)
    assert [e.mean for e in parts] == pytest.approx([direct, frozen, total, total - direct], abs=1e-4)


def test_the_picture_has_every_component_and_the_parts_of_the_largest() -> None:
    found = repair(heads_that_write((1.0, 0.5), backup=0.5), ONE, ablation="zero")
    scatter, bars = plot(found).panels
    assert isinstance(scatter, Scatter)
    assert isinstance(bars, Bars)
    assert len(scatter.labels) == 4
    assert bars.labels[:3] == ("L0H0 direct", "L0H0 norm frozen", "L0H0 total")


@pytest.mark.bad_input
def test_what_cannot_be_taken_apart_is_refused() -> None:
    model = heads_that_write((1.0, 0.0))
    with pytest.raises(BadPrompts, match="is a set"):
        repair(model, inline_set([{"clean": "t0", "answer": ["t1", "t0"], "wrong": "t2"}]), ablation="zero")
    with pytest.raises(BadSite, match="layers are 0 to 1"):
        repair(model, ONE, heads=("L5H0",), ablation="zero")
    with pytest.raises(BadArguments, match="has no heads"):
        repair(model, ONE, site="mlp_out", heads=("L0H0",), ablation="zero")
    with pytest.raises(BadPrompts, match="no other prompt"):
        repair(model, ONE)
