"""Change chosen weights of a copy of the model (zero them, or project a direction out), and compare the two models.

Idea: what an ablation does for the time of a run, changed weights do for good. A head whose output matrix is 0 writes
nothing; matrices from which a direction is projected out never write it, or never notice it. The original stays as it
is; the copy becomes a model of its own, saved as safetensors.

Source: Arditi et al., arXiv 2406.11717, section 4.1 (directional ablation as W <- W - v v^T W for every matrix that
writes to the residual stream). Formulas, also for norms between a matrix and the stream: `model/weight_edits.py`. With
M the metric per prompt: change = mean of M(edited) - M(original); p = (1 + b) / (1 + B), b of B controls (random
directions projected out of the same weights, random parts of the same kind and layers zeroed) that change as much.

Does not show: what the weights were for, only what is lost without them; a small change does not show that they are
unused, for later layers repair; nothing is retrained, so the edited model may do badly where one trained so would not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from pydantic import Field

from ..causal.behaviour import BehaviourChange, behaviour_change, beside_random, in_words
from ..causal.directions import DirectionRef, dictionary_named, direction_of, like
from ..causal.measured import bound_metrics, encoded, failed, last_logits
from ..causal.neutral import NeutralLoss, neutral_tokens, total_loss
from ..causal.steering import random_vectors
from ..errors import BadArguments, Unsupported
from ..figures import Bars, Figure
from ..measures.statistics import Clusters, random_controls
from ..model.weight_edits import WeightEdit, weight_edits
from ..prompts.encoding import EncodedPrompts
from ..result import Frozen, Result, SelfTest
from ..technique import Context, Layers, Metric, OnPrompts

if TYPE_CHECKING:
    from torch import Tensor

    from ..model.copies import Copy

TITLE = "Editing weights"
QUESTIONS = (
    "What does the model do when this direction is taken out of its weights for good?",
    "Can I have a model without these heads or neurons, as a file?",
    "Does an edit of the weights spare other text?",
)
ENOUGH = 19  # controls: the smallest p is then .05
COSTLY = 0.1  # nats a token on neutral text


class Change(Frozen):
    """One change of weights."""

    rule: Literal["zero", "project_out"] = Field(
        description="zero: the parts write nothing; project_out: nothing along the direction."
    )
    parts: tuple[str, ...] | Literal["writers", "readers"] = Field(
        default="writers",
        description="L3H7, L3N17, 'L3 attn', 'L3 mlp', embed, unembed; or all that writes to, or reads, the residual.",
    )
    direction: DirectionRef | None = Field(default=None, description="What is projected out: {run, array, layer}, ...")
    layers: Layers = None


class Arguments(OnPrompts):
    """Arguments of edit_weights."""

    changes: tuple[Change, ...] = Field(min_length=1, max_length=64, description="Changes, made in order.")
    metric: Metric = "logit_diff"
    neutral_text: tuple[str | tuple[int, ...], ...] = Field(
        default=(), max_length=32, description="Texts that should not suffer; gives the loss before and after."
    )
    controls: int = Field(default=20, ge=0, le=200, description="Random edits of the same kind and size.")
    keep: bool = Field(default=True, description="Save the edited copy in the workspace and load it as a new model.")
    name: str | None = Field(default=None, description="Name of the new model; absent: made from the model's.")

    @property
    def sae(self) -> str | None:
        """The dictionary whose feature is meant, which the host then loads."""
        return dictionary_named(change.direction for change in self.changes)


class EditWeightsResult(Result):
    """The behaviour before and after, and the new model."""

    changes: tuple[str, ...] = Field(description="The changes, in words.")
    matrices: int = Field(description="Matrices, or parts of them, that were changed.")
    handle: str | None = Field(description="Handle of the edited model: pass it as `model`; absent when not kept.")
    task: BehaviourChange = Field(description="The task's prompts, with the random controls.")
    controls: str = Field(description="How the controls were drawn.")
    neutral: NeutralLoss | None = Field(description="Loss on neutral text before and after; absent without text.")
    neutral_random: float | None = Field(description="Loss there after a random control, mean of at most three.")
    component: float | None = Field(
        description="Largest part of the residual along the direction after the edit, over the median norm; absent "
        "unless it was projected out of all that writes."
    )
    component_before: float | None = Field(description="The same before the edit.")
    untied: bool = Field(description="Whether the copy's unembedding was separated from its embedding.")
    original_hash: str = Field(description="Digest of the original's weights after the run; the same as before it.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this run.")


class Measured(NamedTuple):
    """What was measured on the copy."""

    after: Tensor  # [B, V]
    controls: list[Tensor]
    neutral: NeutralLoss | None
    neutral_random: float | None
    component: float | None


def run(context: Context, arguments: Arguments) -> EditWeightsResult:
    """Copy, measure, change, measure, and keep the copy.

    Raises:
        BadArguments, BadSite: parts or directions that cannot be used, or a name that is taken.
        BadPrompts: an answer that the metric needs is absent.
        Unsupported: weights that cannot be copied, or nothing is stored here and `keep` is set.
    """
    from ..model.copies import copy_of, weights_digest  # torch, only where a model is

    model = context.model
    if arguments.keep and context.keep_model is None:
        raise Unsupported("nothing is stored here, so the edited model cannot be kept; pass keep=false.")
    prompts = encoded(context.prompts, model, arguments.bos, (arguments.metric,), corrupted=False)
    (metric,) = bound_metrics((arguments.metric,), prompts, model, prompts.clean)
    named = [_edits(context, change) for change in arguments.changes]
    edits = [edit for some, _ in named for edit in some]
    drawn, how = _controls(context, named, arguments)
    digest = weights_digest(model)
    context.progress(0, len(drawn) + 3, "copying the weights")
    duplicate = copy_of(model, untie=any(e.matrix in ("embed", "unembed") for e in edits))
    before = last_logits(model, prompts.clean)
    apart = duplicate_gap(duplicate, prompts, before)
    tests = [_test("the copy, before any change, predicts as the model does", apart, _tolerance(context))]
    everywhere = _all_writers(arguments)
    component_before = _component(duplicate, prompts, everywhere, edits)
    found = _measure(context, arguments, duplicate, prompts, edits, drawn, everywhere)
    handle = None
    if arguments.keep and context.keep_model is not None:
        duplicate.change(edits)
        context.progress(len(drawn) + 2, len(drawn) + 3, "saving and loading the edited model")
        handle, edited = context.keep_model(
            arguments.name or _name(model.info.name), duplicate.write, numbered=arguments.name is None
        )
        again = float((last_logits(edited, prompts.clean) - found.after).abs().max())
        tests.append(_test("saved and loaded again, it predicts the same", again, _tolerance(context)))
    unchanged = weights_digest(model)
    tests.append(_test("the original's weights are unchanged", float(unchanged != digest), 0.0))
    if found.component is not None:
        tests.append(_test("the residual has no part along the direction", found.component, 1e-4 * _looser(context)))
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    task = behaviour_change(metric, prompts, before, found.after, clusters, found.controls)
    words = tuple(text for _, text in named)
    return EditWeightsResult(
        summary=_summary(words, task, found, handle),
        warnings=(*failed(tests), *_warnings(arguments, task, found, clusters, duplicate.untied), *prompts.warnings),
        changes=words,
        matrices=len(edits),
        handle=handle,
        task=task,
        controls=how,
        neutral=found.neutral,
        neutral_random=found.neutral_random,
        component=found.component,
        component_before=component_before,
        untied=duplicate.untied,
        original_hash=unchanged,
        self_tests=tuple(tests),
    )


def plot(result: EditWeightsResult) -> Figure:
    """The change of behaviour beside random edits, and the loss on neutral text."""
    panels = [beside_random(result.task, "the edit", "random edits")]
    if result.neutral is not None:
        rows = [("before", result.neutral.before), ("after", result.neutral.after)]
        if result.neutral_random is not None:
            rows.append(("after a random edit", result.neutral_random))
        panels.append(
            Bars(
                title="Loss on neutral text", value_title="nats a token", labels=tuple(name for name, _ in rows),
                values=tuple(value for _, value in rows),
            )
        )
    return Figure(
        title="Editing weights",
        caption=f"{'; '.join(result.changes)}. Metric before {result.task.before}, after {result.task.after}. Random "
        f"edits: {result.controls}.",
        panels=tuple(panels),
    )


def _edits(context: Context, change: Change) -> tuple[tuple[WeightEdit, ...], str]:
    """A change as edits of matrices, and in words."""
    found = None if change.direction is None else direction_of(context, change.direction)
    edits = weight_edits(
        change.parts, change.rule, context.model.info.shape, layers=change.layers,
        direction=None if found is None else found.vector,
    )  # fmt: skip
    weights = context.model.weights
    kept = tuple(e for e in edits if not (e.matrix == "position_embed" and weights.position_embed() is None))
    kept = tuple(e for e in kept if not (e.matrix == "mlp_gate" and weights.mlp_gate(e.layer or 0) is None))
    if not kept:
        raise BadArguments(f"{context.model.info.name} has none of the parts {change.parts}.")
    parts = change.parts if isinstance(change.parts, str) else ", ".join(change.parts)
    within = "" if change.layers is None else f" of layers {', '.join(map(str, change.layers))}"
    what = "zero" if found is None else f"project {found.name} out of"
    return kept, f"{what} {parts}{within}"


def _controls(
    context: Context, named: Sequence[tuple[tuple[WeightEdit, ...], str]], arguments: Arguments
) -> tuple[list[list[WeightEdit]], str]:
    """Edits of the same kind and size: other directions, other parts; and how they were drawn."""
    count = arguments.controls
    sets: list[list[WeightEdit]] = [[] for _ in range(count)]
    notes: list[str] = []
    for number, (edits, _) in enumerate(named):
        if edits[0].rule == "project_out":
            vectors = random_vectors(like(context.model), count, arguments.seed + number)
            others = [[replace(e, direction=v) for e in edits] for v in vectors]
            notes.append("random directions out of the same weights")
        else:
            others, note = _other_parts(context, edits, count, arguments.seed + number)
            notes.append(note)
        if count and not others:
            return [], f"none: {notes[-1]}"
        sets = [[*own, *more] for own, more in zip(sets, others, strict=False)]
    return [s for s in sets if s], "; ".join(dict.fromkeys(notes)) if count else "none asked for"


def _other_parts(
    context: Context, edits: Sequence[WeightEdit], count: int, seed: int
) -> tuple[list[list[WeightEdit]], str]:
    """Random parts of the same kinds and layers, each kind drawn by itself."""
    shape = context.model.info.shape
    kinds = {(e.matrix, e.index is None) for e in edits}
    sets: list[list[WeightEdit]] = [[] for _ in range(count)]
    notes: list[str] = []
    for matrix, whole in sorted(kinds):
        own = [e for e in edits if (e.matrix, e.index is None) == (matrix, whole)]
        width = 1 if whole else (shape.n_heads if matrix == "o" else shape.d_mlp)
        try:
            drawn = random_controls(
                [(e.layer or 0, e.index or 0) for e in own], dict.fromkeys(range(shape.n_layers), width),
                count=max(1, count), seed=seed,
            )  # fmt: skip
        except BadArguments as error:
            return [], str(error)
        notes.append(f"random {'outputs' if whole else 'heads' if matrix == 'o' else 'neurons'} {drawn.note}")
        one = own[0]
        others = [[replace(one, layer=at, index=None if whole else i) for at, i in some] for some in drawn.sets]
        sets = [[*a, *b] for a, b in zip(sets, others, strict=False)]
    return sets, "; ".join(notes)


def _measure(
    context: Context, arguments: Arguments, duplicate: Copy, prompts: EncodedPrompts, edits: Sequence[WeightEdit],
    drawn: Sequence[Sequence[WeightEdit]], everywhere: bool,
) -> Measured:  # fmt: skip
    """The copy under the edits and under each control; it is as it was afterwards."""
    texts = neutral_tokens(context.model, arguments.neutral_text, bos=arguments.bos) if arguments.neutral_text else None
    counted = 0 if texts is None else sum(texts.lengths) - texts.n_rows
    before = None if texts is None else total_loss(duplicate, texts) / counted
    with duplicate.changed(edits):
        after = last_logits(duplicate, prompts.clean)
        lost = None if texts is None else total_loss(duplicate, texts) / counted
        component = _component(duplicate, prompts, everywhere, edits)
    controls: list[Tensor] = []
    losses: list[float] = []
    for i, other in enumerate(drawn):
        context.progress(i + 1, len(drawn) + 3, f"control {i + 1} of {len(drawn)}")
        with duplicate.changed(other):
            controls.append(last_logits(duplicate, prompts.clean))
            if texts is not None and i < 3:
                losses.append(total_loss(duplicate, texts) / counted)
    neutral = None
    if before is not None and lost is not None:
        neutral = NeutralLoss(tokens=counted, before=before, after=lost, written="nothing: the weights were changed")
    return Measured(after, controls, neutral, sum(losses) / len(losses) if losses else None, component)


def _all_writers(arguments: Arguments) -> bool:
    """Whether one direction is projected out of everything that writes, and nothing else is done."""
    (first, *rest) = arguments.changes
    return not rest and first.rule == "project_out" and first.parts == "writers" and first.layers is None


def _component(
    duplicate: Copy, prompts: EncodedPrompts, everywhere: bool, edits: Sequence[WeightEdit]
) -> float | None:
    """Largest part of the residual entering any block along the direction, over the residual's median norm."""
    if not everywhere:
        return None
    v = edits[0].direction
    assert v is not None
    unit = v / v.norm()
    rows = prompts.clean.rows(range(min(prompts.n, 8)))
    found = []
    for x in duplicate.residuals(rows):
        real = [x[i, :n].float() for i, n in enumerate(rows.lengths)]
        norms = sorted(n for r in real for n in r.norm(dim=-1).tolist())
        found.append(max(float((r @ unit.to(r)).abs().max()) for r in real) / max(norms[len(norms) // 2], 1e-30))
    return max(found)


def duplicate_gap(duplicate: Copy, prompts: EncodedPrompts, before: Tensor) -> float:
    """Largest difference of log-probabilities between the untouched copy and the model."""
    found = last_logits(duplicate, prompts.clean)
    return float((found.log_softmax(-1) - before.log_softmax(-1)).abs().max())


def _looser(context: Context) -> float:
    """How much coarser than float32 the model's numbers are."""
    return {"float32": 1.0, "float64": 1.0}.get(context.model.info.dtype, 300.0)


def _tolerance(context: Context) -> float:
    return 1e-3 * _looser(context)


def _test(name: str, found: float, tolerance: float) -> SelfTest:
    return SelfTest(name=name, expected=0.0, found=found, tolerance=tolerance, passed=found <= tolerance)


def _name(model: str) -> str:
    """A name for the edited model that can be a folder."""
    plain = "".join(c if c.isalnum() or c in "-_" else "-" for c in model.rsplit("/", 1)[-1].lower()).strip("-_")
    return f"{plain[:50]}-edited"


def _summary(words: Sequence[str], task: BehaviourChange, found: Measured, handle: str | None) -> str:
    cost = ""
    if found.neutral is not None:
        cost = f" Neutral text: loss {found.neutral.before:.3f} to {found.neutral.after:.3f} nats a token."
    kept = f" The edited model is {handle!r}." if handle else " The edited copy was not kept."
    return (
        f"{in_words(task, '; '.join(words), 'random edits')} The likeliest token stayed on {task.same_top:.0%} of the "
        f"prompts.{cost}{kept} What is lost shows that the behaviour needs these weights as they stand, not what they "
        "compute."
    )


def _warnings(
    arguments: Arguments, task: BehaviourChange, found: Measured, clusters: Clusters, untied: bool
) -> tuple[str, ...]:
    said: list[str] = []
    if found.neutral is None:
        said.append("No neutral text was given: whether the edit spares everything else is not known.")
    elif found.neutral.after - found.neutral.before > COSTLY:
        said.append(f"The edit costs {found.neutral.after - found.neutral.before:.2f} nats a token on neutral text.")
    if len(task.random) < ENOUGH:
        least = 1 / (1 + len(task.random))
        said.append(f"{len(task.random)} controls: p cannot be below {least:.2g}; {ENOUGH} allow .05.")
    elif task.p is not None and task.p > 0.05:
        said.append(f"Random edits of the same size change the behaviour as much (p = {task.p:.2g}).")
    if untied:
        said.append("Embedding and unembedding shared one matrix: the copy has two; only what was named is changed.")
    if clusters.count < 2:
        said.append("There is one cluster of prompts: no intervals.")
    return tuple(said)


