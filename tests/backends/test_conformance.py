"""One suite for all backends: on the same tiny weights, the same reads and the same edits give the same numbers.

The oracle is `plain.py`, which shares no code with the backends. What each check rules out is said where it is made.
"""

from __future__ import annotations

from functools import cache

import pytest
import torch
from anatomist.errors import BadArguments, BadPosition, BadPrompts, BadSite, NotFinite, Unsupported
from anatomist.model.backends.local import LocalModel
from anatomist.model.backends.nnsight import NNsightModel
from anatomist.model.edits import Edit, Rule
from anatomist.model.protocol import Model, Weights
from anatomist.model.sites import INDEXED, KINDS, WHOLE_MODEL, Site, SiteKind, list_sites
from anatomist.model.tokens import Tokens

from tests.backends.families import FAMILIES
from tests.backends.plain import Plain
from tests.backends.toy_forms import toy_of_gpt2

TOLERANCE = 1e-4  # relative to the largest entry, and never below that many units
PAIRS = [(family, backend) for family in FAMILIES for backend in ("local", "nnsight")] + [("gpt2", "toy")]
TOKENS = Tokens(
    ((3, 17, 42, 9, 88, 17, 5, 60, 31), (71, 2, 2, 50, 33, 12)), ((("",) * 9), (("",) * 6)), False
)  # fmt: skip
RULES: tuple[Rule, ...] = (
    "set", "add", "scale", "multiply", "interpolate", "zero", "mean", "resample", "project_out",
)  # fmt: skip


@cache
def model_of(family: str, backend: str) -> Model:
    if backend == "toy":
        local = model_of(family, "local")
        return toy_of_gpt2(local.weights)  # type: ignore[arg-type]
    return {"local": LocalModel, "nnsight": NNsightModel}[backend](FAMILIES[family](), None, name=f"{family}-{backend}")


@cache
def plain_of(family: str) -> Plain:
    return Plain(FAMILIES[family](), family, model_of(family, "local").info.d_head)


@pytest.fixture(params=PAIRS, ids="-".join, scope="module")
def pair(request: pytest.FixtureRequest) -> tuple[Model, Plain]:
    family, backend = request.param
    return model_of(family, backend), plain_of(family)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    assert a.shape == b.shape
    assert float((a - b).abs().max()) <= TOLERANCE * max(1.0, float(b.abs().max()))


def compare(kind: str, mine: torch.Tensor, oracle: torch.Tensor, tokens: Tokens = TOKENS) -> None:
    """The real positions of every row; masked scores are only required to be very negative."""
    assert mine.shape == oracle.shape
    for row, length in enumerate(tokens.lengths):
        if kind in ("scores", "pattern"):
            a, b = mine[row, ..., :length, :length], oracle[row, ..., :length, :length]
            hidden = b < -1e30
            assert bool((a[hidden] < -1e30).all())
            close(a[~hidden], b[~hidden])
        else:
            close(mine[row, :length], oracle[row, :length])


def some_layer(model: Model, kind: SiteKind) -> int | None:
    return None if kind in WHOLE_MODEL else 1 % model.info.n_layers


def value_for(model: Model, site: Site, rule: Rule, n_rows: int, n_positions: int) -> torch.Tensor | None:
    """A random value of full shape; of the feature's shape alone for the direction to project out."""
    if rule in ("scale", "zero"):
        return None
    info, width = model.info, TOKENS.width
    heads = {"k": info.n_kv_heads, "v": info.n_kv_heads}.get(site.kind, info.n_heads)
    feature = {
        "head": (heads, info.d_head), "q": (heads, info.d_head), "k": (heads, info.d_head), "v": (heads, info.d_head),
        "scores": (heads, width), "pattern": (heads, width), "neuron": (info.d_mlp,), "logits": (info.d_vocab,),
    }.get(site.kind, (info.d_model,))  # fmt: skip
    feature = feature if site.index is None else feature[1:]
    shape = feature if rule == "project_out" else (n_rows, n_positions, *feature)
    return torch.randn(*shape, generator=torch.Generator().manual_seed(5))


# --- what is declared -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_the_local_backend_has_every_kind_of_place_that_the_architecture_has(family: str) -> None:
    missing = {"resid_mid"} if family == "gpt_neox" else set()
    assert set(model_of(family, "local").info.sites) == set(KINDS) - missing


def test_a_backend_is_a_model_and_its_weights_are_weights(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    assert isinstance(model, Model)
    assert isinstance(model.weights, Weights)


@pytest.mark.parametrize("family", FAMILIES)
def test_both_backends_describe_the_same_model(family: str) -> None:
    own = {"name", "source", "backend", "sites", "load_seconds"}
    local, other = (model_of(family, backend).info.model_dump(exclude=own) for backend in ("local", "nnsight"))
    assert local == other


# --- reads ----------------------------------------------------------------------------------------------------------


def test_every_place_reads_as_in_the_plain_model(pair: tuple[Model, Plain]) -> None:
    """Rules out a place before instead of after a norm or rotation, another head order, a forgotten post-norm."""
    model, plain = pair
    sites = list_sites(model.info.shape)
    reads = model.run(TOKENS, read=sites, logits_at="all").reads
    oracle, _ = plain.run(TOKENS)
    for site in sites:
        compare(site.kind, reads[site], oracle[site.kind, site.layer])


def test_one_head_reads_as_that_part_of_all_heads(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    for kind in INDEXED & set(model.info.sites):
        whole, part = Site(kind, 1), Site(kind, 1, 1)
        reads = model.run(TOKENS, read=[part, whole]).reads
        axis = 1 if kind in ("scores", "pattern") else 2
        assert torch.equal(reads[part], reads[whole].select(axis, 1))


def test_logits_at_one_position_a_row_are_those_of_the_whole(pair: tuple[Model, Plain]) -> None:
    model, plain = pair
    _, oracle = plain.run(TOKENS)
    last, whole = model.run(TOKENS, logits_at=TOKENS.last).logits, model.run(TOKENS, logits_at="all").logits
    assert last is not None
    assert whole is not None
    compare("logits", whole, oracle)
    close(last, torch.stack([oracle[row, length - 1] for row, length in enumerate(TOKENS.lengths)]))
    assert model.run(TOKENS, read=[Site("resid_pre", 1)]).logits is None


def test_padding_changes_nothing(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    alone = model.run(TOKENS.rows([1]), logits_at=[5]).logits
    together = model.run(TOKENS, logits_at=TOKENS.last).logits
    assert alone is not None
    assert together is not None
    close(together[1:], alone)


def test_the_parts_add_up_to_the_residual(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    kinds: tuple[SiteKind, ...] = ("resid_pre", "attn_out", "mlp_out", "resid_post")
    for layer in range(model.info.n_layers):
        reads = model.run(TOKENS, read=[Site(k, layer) for k in kinds]).reads
        before, attention, mlp, after = (reads[Site(k, layer)] for k in kinds)
        close(before + attention + mlp, after)


# --- edits ----------------------------------------------------------------------------------------------------------


def check_edit_agrees(model: Model, plain: Plain, edit: Edit, expected_count: int) -> None:
    """Logits and every place read under the edit agree with the plain model under the same edit made by a loop."""
    sites = list_sites(model.info.shape)
    run = model.run(TOKENS, read=sites, edits=[edit], logits_at="all")
    oracle, logits = plain.run(TOKENS, edit)
    assert run.fired == (expected_count,)
    assert run.logits is not None
    compare("logits", run.logits, logits)
    for site in sites:
        compare(site.kind, run.reads[site], oracle[site.kind, site.layer])


@pytest.mark.parametrize("kind", KINDS)
def test_an_edit_at_every_kind_of_place_acts_as_in_the_plain_model(pair: tuple[Model, Plain], kind: SiteKind) -> None:
    """Rules out a residual edit that only one of its readers sees, and an edit that touches the other rows."""
    model, plain = pair
    if kind not in model.info.sites:
        with pytest.raises(BadSite, match=f"no '{kind}'"):
            model.run(TOKENS, edits=[Edit(site=Site(kind, 1), rule="zero")])
        return
    site = Site(kind, some_layer(model, kind))
    value = value_for(model, site, "add", 1, 2)
    check_edit_agrees(
        model, plain, Edit(site=site, rule="add", rows=(1,), positions=(2, 4), value=value, factor=0.7), 2
    )
    if kind in INDEXED:
        check_edit_agrees(model, plain, Edit(site=site._replace(index=1), rule="scale", factor=0.5), 9 + 6)


@pytest.mark.parametrize(
    "pair", [("llama", "local"), ("llama", "nnsight"), ("gpt2", "toy")], ids="-".join, indirect=True
)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("site", [Site("resid_post", 1), Site("head", 1, 2)], ids=str)
def test_every_rule_acts_as_in_the_plain_model(pair: tuple[Model, Plain], site: Site, rule: Rule) -> None:
    """Positions differ from row to row and in number."""
    model, plain = pair
    if site.kind not in model.info.sites:
        pytest.skip(f"{site.kind} is not declared")
    value = value_for(model, site, rule, 2, 3)
    edit = Edit(site=site, rule=rule, positions=((0, 4, 8), (5,)), value=value, factor=0.3)
    check_edit_agrees(model, plain, edit, 4)


def test_an_edge_of_attention_can_be_cut_before_or_after_the_softmax(pair: tuple[Model, Plain]) -> None:
    """Minus infinity on one score: the other keys of that query share its weight. Zero on one weight: they do not."""
    model, plain = pair
    if "scores" not in model.info.sites:
        pytest.skip("scores are not declared")
    mask = torch.zeros(1, 1, 1, TOKENS.width)
    mask[..., 2] = float("-inf")
    pattern = Site("pattern", 1)
    cut = Edit(site=Site("scores", 1), rule="add", rows=(1,), positions=(4, 5), value=mask)
    zeroed = Edit(site=pattern, rule="multiply", rows=(1,), positions=(4, 5), value=mask.exp())
    for edit, total in ((cut, 1.0), (zeroed, None)):
        check_edit_agrees(model, plain, edit, 2)
        found = model.run(TOKENS, read=[pattern], edits=[edit]).reads[pattern][1, :, 4:6]
        assert float(found[..., 2].abs().max()) == 0
        if total is not None:
            assert float((found.sum(-1) - total).abs().max()) < 1e-5


def test_edits_at_one_place_are_made_in_the_order_given(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    site = Site("resid_post", 0)
    double, one = Edit(site=site, rule="scale", factor=2.0), Edit(site=site, rule="add", value=torch.ones(()))
    plain = model.run(TOKENS, read=[site]).reads[site]
    close(model.run(TOKENS, read=[site], edits=[double, one]).reads[site][0], 2 * plain[0] + 1)
    close(model.run(TOKENS, read=[site], edits=[one, double]).reads[site][0], 2 * (plain[0] + 1))


def test_a_run_patched_into_itself_changes_nothing(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    before = model.run(TOKENS, logits_at="all").logits
    assert before is not None
    for kind in set(model.info.sites) - {"logits"}:
        site = Site(kind, some_layer(model, kind))
        own = model.run(TOKENS, read=[site]).reads[site]
        own = own.transpose(1, 2) if kind in ("scores", "pattern") else own
        run = model.run(TOKENS, edits=[Edit(site=site, rule="resample", value=own)], logits_at="all")
        assert run.logits is not None
        assert run.fired == (15,)
        close(run.logits, before)


# --- gradients ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [k for k in KINDS if k not in ("scores", "logits")])
def test_gradients_agree_with_finite_differences(pair: tuple[Model, Plain], kind: SiteKind) -> None:
    """d logit / d place along a random direction against two edited runs: rules out a read beside the graph."""
    model, _ = pair
    if kind not in model.info.sites:
        pytest.skip(f"{kind} is not declared")
    site, step = Site(kind, some_layer(model, kind)), 2e-3
    tokens = TOKENS.rows([0])
    run = model.run(tokens, read=[site], logits_at=tokens.last, gradients=True)
    assert run.logits is not None
    (gradient,) = torch.autograd.grad(run.logits[0, 7], run.reads[site])
    direction = torch.randn(gradient.shape, generator=torch.Generator().manual_seed(3))
    direction = direction * (run.reads[site] != 0) if kind == "pattern" else direction
    value = direction.transpose(1, 2) if kind == "pattern" else direction

    def logit(factor: float) -> float:
        edit = Edit(site=site, rule="add", value=value, factor=factor)
        logits = model.run(tokens, edits=[edit], logits_at=tokens.last).logits
        assert logits is not None
        return float(logits[0, 7])

    numeric = (logit(step) - logit(-step)) / (2 * step)
    assert float((gradient * direction).sum()) == pytest.approx(numeric, rel=2e-2, abs=2e-2)


def test_a_gradient_reaches_one_head_and_an_edit_value(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    if "head" not in model.info.sites:
        pytest.skip("head is not declared")
    whole, part = Site("head", 1), Site("head", 1, 2)
    value = torch.zeros(model.info.d_model, requires_grad=True)
    steer = Edit(site=Site("resid_post", 0), rule="add", value=value)
    run = model.run(TOKENS, read=[part, whole], edits=[steer], logits_at=TOKENS.last, gradients=True)
    assert run.logits is not None
    of_part, of_whole, of_value = torch.autograd.grad(
        run.logits[:, 7].sum(), [run.reads[part], run.reads[whole], value]
    )
    close(of_part, of_whole[:, :, 2])
    assert float(of_part.abs().max()) > 0
    assert float(of_value.abs().max()) > 0


def test_without_gradients_nothing_is_recorded(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    run = model.run(TOKENS, read=[Site("resid_post", 1)], logits_at="all")
    assert run.logits is not None
    assert not run.logits.requires_grad
    assert not run.reads[Site("resid_post", 1)].requires_grad


# --- generation -----------------------------------------------------------------------------------------------------


def test_greedy_generation_takes_the_likeliest_token_each_time(pair: tuple[Model, Plain]) -> None:
    model, plain = pair
    new = model.generate(TOKENS, max_new_tokens=4)
    for row, start in enumerate(TOKENS.ids):
        ids = start
        for token in new[row]:
            _, logits = plain.run(Tokens((ids,), (("",) * len(ids),), False))
            assert int(logits[0, -1].argmax()) == token
            ids = (*ids, token)


def test_an_edit_acts_at_every_step_of_generation(pair: tuple[Model, Plain]) -> None:
    """A direction added everywhere that makes one token the likeliest: it is all that comes out."""
    model, _ = pair
    direction = 1e3 * torch.nn.functional.normalize(model.weights.unembed([7])[:, 0], dim=0)
    edit = Edit(site=Site("final_norm"), rule="add", value=direction)
    assert model.generate(TOKENS, max_new_tokens=3, edits=[edit]) == ((7, 7, 7), (7, 7, 7))


def test_sampling_depends_on_the_seed_alone(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    first, again = (model.generate(TOKENS, max_new_tokens=3, temperature=2.0, seed=1) for _ in range(2))
    assert first == again
    assert first != model.generate(TOKENS, max_new_tokens=3, temperature=2.0, seed=2)


# --- input that cannot be used --------------------------------------------------------------------------------------


@pytest.mark.bad_input
def test_a_site_the_model_lacks_is_an_error_that_lists_what_it_has(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    with pytest.raises(BadSite, match=r"layers are 0 to 2"):
        model.run(TOKENS, read=[Site("resid_post", 3)])
    with pytest.raises(BadSite, match=r"head runs from 0 to 3"):
        model.run(TOKENS, edits=[Edit(site=Site("head", 0, 4), rule="zero")])
    with pytest.raises(BadSite, match=r"resid_pre, .*resid_post"):
        model.run(TOKENS, read=[Site("hook_typo", 0)])  # type: ignore[arg-type]


@pytest.mark.bad_input
def test_an_edit_outside_the_prompt_or_of_nothing_is_an_error(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    site = Site("resid_post", 1)
    with pytest.raises(BadPosition, match=r"position 6 is outside prompt 1's 6 tokens"):
        model.run(TOKENS, edits=[Edit(site=site, rule="zero", positions=(6,))])
    with pytest.raises(BadPosition, match="row 2 does not exist"):
        model.run(TOKENS, edits=[Edit(site=site, rule="zero", rows=(2,))])
    with pytest.raises(BadArguments, match="selects nothing"):
        model.run(TOKENS, edits=[Edit(site=site, rule="zero", positions=())])
    with pytest.raises(BadArguments, match="selects nothing"):
        model.run(TOKENS, edits=[Edit(site=site, rule="zero", rows=())])
    with pytest.raises(BadPosition, match="gives 1 positions for 2 prompts"):
        model.run(TOKENS, logits_at=[0])


@pytest.mark.bad_input
def test_an_edit_value_of_the_wrong_shape_is_an_error(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    with pytest.raises(BadArguments, match=r"has shape \[3\]; the shape must be one that broadcasts"):
        model.run(TOKENS, edits=[Edit(site=Site("resid_post", 1), rule="set", value=torch.ones(3))])


@pytest.mark.bad_input
def test_an_edit_that_makes_infinity_is_an_error(pair: tuple[Model, Plain]) -> None:
    model, _ = pair
    edit = Edit(site=Site("resid_post", 1), rule="set", value=torch.tensor(float("inf")))
    with pytest.raises(NotFinite, match="NaN or infinite"):
        model.run(TOKENS, edits=[edit], logits_at="all")


@pytest.mark.bad_input
@pytest.mark.parametrize("backend", [LocalModel, NNsightModel])
def test_weights_with_nan_are_refused(backend: type[LocalModel] | type[NNsightModel]) -> None:
    hf = FAMILIES["llama"]()
    hf.get_parameter("model.layers.1.mlp.down_proj.weight")[0, 0] = float("nan")
    with pytest.raises(NotFinite, match=r"blocks\.1\."):
        backend(hf, None, name="broken")


@pytest.mark.bad_input
def test_text_for_a_model_without_a_tokenizer_is_an_error() -> None:
    model = model_of("llama", "local")
    with pytest.raises(BadPrompts, match="has no tokenizer"):
        model.tokenize(["hello"])
    with pytest.raises(Unsupported, match="no chat template"):
        model.chat("hello")


# --- a real model ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_smollm2_agrees_between_the_local_and_the_nnsight_backend(smollm2: Model) -> None:
    """Every declared place is read and edited at one layer; differences relative to the largest entry."""
    from anatomist.model.loading import load_model

    other = load_model("smollm2-135m", backend="nnsight")
    prompts = ["When John and Mary went to the shops, John gave the bag to", "The capital of France is"]
    tokens = smollm2.tokenize(prompts)
    assert other.tokenize(prompts) == tokens
    for kind in other.info.sites:
        site = Site(kind, None if kind in WHOLE_MODEL else 11)
        edit = Edit(site=site, rule="scale", factor=0.9, positions=(3, 4))
        ours, theirs = (m.run(tokens, read=[site], edits=[edit], logits_at=tokens.last) for m in (smollm2, other))
        assert ours.fired == theirs.fired == (4,)
        assert ours.logits is not None
        assert theirs.logits is not None
        close(ours.logits, theirs.logits)
        compare(kind, ours.reads[site], theirs.reads[site], tokens)
