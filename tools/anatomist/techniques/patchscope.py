"""Put an activation of one prompt into another prompt that makes the model say what is in it, and read the answer.

Idea: instead of a fixed or trained map to the vocabulary, the model's own later layers decode the activation: it is
written over a placeholder in a target prompt that repeats what it is given ('cat -> cat; ... ?'), and the next token,
or a generated text, is what was in it. How often that is the source's own next token, layer by layer, beside controls.

Source: Ghandeharioun et al., arXiv 2401.06102: patchscope (S, i, M, l; T, i*, f, M, l*) with f the identity, section
4.1 (next-token identity prompt, precision@1). Controls: the target left alone, random activations of the same norm,
and the logit lens.

Does not show: that the source's own run uses what is decoded. The target prompt and the layers after the patch work on
the activation too: what comes out is theirs as well, and a target of other words decodes other things.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from pydantic import Field

from ..causal.lens import lens
from ..causal.tables import Quantities, quantities
from ..causal.transplants import Source, Target, plans_of, repeated, same_norm, taken
from ..causal.units import chosen_layers
from ..errors import BadPrompts, Unsupported
from ..figures import Figure, Lines
from ..measures.metrics import kl, widened
from ..measures.statistics import Clusters
from ..model.edits import Edit
from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import PositionSpec
from ..prompts.encoding import EncodedPrompts, encode
from ..prompts.prompt_set import Text
from ..result import Frozen, Result, SelfTest
from ..technique import Context, Layers, OnPrompts

if TYPE_CHECKING:
    from jaxtyping import Float
    from numpy import ndarray
    from torch import Tensor

TITLE = "Patchscope"
QUESTIONS = (
    "What does this activation hold, in the model's own words?",
    "Which layer already holds the next token, decoded by the model itself?",
    "What does a token's representation mean at this layer?",
)
IDENTITY = "cat -> cat; 1135 -> 1135; hello -> hello; ?"
PATCH, RANDOM, LENS, NOTHING, GAIN = "patchscope", "random activation", "logit lens", "no patch", "minus best control"
COMPARED = (PATCH, LENS, RANDOM, NOTHING)
ITSELF = 1e-3  # nats: a prompt patched into itself against the prompt left alone


class Arguments(OnPrompts):
    """Arguments of patchscope."""

    position: PositionSpec = Field(default="last", description="Source position: integer, 'last', role, token text.")
    layers: Layers = None
    target: Text = Field(default=IDENTITY, description="Target prompt, ending in the placeholder that is written over.")
    target_position: PositionSpec = Field(default="last", description="Where in the target the activation is put.")
    target_layer: int | None = Field(default=None, description="Layer it is put at; absent: the one it comes from.")
    controls: int = Field(default=3, ge=1, le=10, description="Random activations of the same norm as each.")
    prompt: int = Field(default=0, ge=0, description="Which prompt is decoded in words.")
    max_new_tokens: int = Field(default=0, ge=0, le=50, description="Tokens generated for that prompt at each layer.")
    top: int = Field(default=3, ge=1, le=10, description="Next tokens listed for that prompt at each layer.")


class Decoded(Frozen):
    """The shown prompt's activation of one layer, in words."""

    layer: int = Field(description="Layer it was taken from.")
    top: tuple[str, ...] = Field(description="Most likely next tokens of the patched target.")
    probability: float = Field(description="Probability of the first of them.")
    text: str | None = Field(description="Generated after the patched target; absent unless asked for.")


class PatchscopeResult(Result):
    """What is decoded from each layer, and how often it is the source's own next token."""

    precision: Quantities = Field(
        description="Share of prompts whose patched target gives the source's own next token, by layer, with controls."
    )
    kl: Quantities = Field(description="KL(source's own prediction || decoded one) in nats, by layer, with controls.")
    best: int = Field(description="Layer of the highest precision.")
    decoded: tuple[Decoded, ...] = Field(description="The shown prompt, layer by layer.")
    own: tuple[str, ...] = Field(description="The shown prompt's own most likely next tokens.")
    prompt: int = Field(description="Which prompt is shown.")
    target: tuple[str, ...] = Field(description="The target's tokens.")
    path: str = Field(description="How the patched runs were computed, and why so.")
    self_tests: tuple[SelfTest, ...] = Field(description="A prompt patched into itself is unchanged, and others.")


class Scores(NamedTuple):
    """Agreement (0 or 1) and KL of every layer and prompt: [L, B]."""

    agrees: ndarray
    kl: ndarray


def run(context: Context, arguments: Arguments) -> PatchscopeResult:
    """Patch every layer's activation of every prompt into the target, and the controls likewise.

    Raises:
        BadPrompts: no prompts, or a target that this model cannot read.
        BadPosition, BadSite, BadArguments: places that do not exist.
        WouldNotFit: one pass is over the budget.
    """
    model = context.model
    if context.prompts is None:
        raise BadPrompts("there are no prompts; give a handle from make_prompts or a list of prompts.")
    prompts = encode(context.prompts, model, bos=arguments.bos)
    if arguments.prompt >= prompts.n:
        raise BadPrompts(f"prompt {arguments.prompt} does not exist: there are {prompts.n} (0 to {prompts.n - 1}).")
    layers = chosen_layers(arguments.layers, model.info.shape)
    target = _target(model, arguments, layers)
    at = prompts.columns(arguments.position)[0].positions
    source = taken(model, prompts.clean, at, layers, context.budget_bytes // 4)
    patched, bare, path, tests = _patched(context, target, source, source.residuals, 0, 1 + arguments.controls)
    random = []
    for number in range(arguments.controls):
        noise = same_norm(source.residuals, arguments.seed + number)
        random.append(_patched(context, target, source, noise, 1 + number, 1 + arguments.controls)[0])
    scores = {PATCH: patched, RANDOM: _mean(random), **_lens(model, source), NOTHING: bare}
    tests = (_into_itself(model, prompts, at, layers, source), *_at_the_end(target, model, scores), *tests)
    precision, divergence = _tables(scores, prompts, layers, arguments.seed)
    shares = precision.column(PATCH) or ()
    best = max(range(len(layers)), key=lambda i: shares[i] or 0.0)
    shown = source.residuals[:, arguments.prompt]
    result = PatchscopeResult(
        summary="",
        warnings=(*prompts.warnings, *_warnings(tests, precision, target, arguments)),
        precision=precision,
        kl=divergence,
        best=layers[best],
        decoded=_decoded(model, target, layers, shown, arguments),
        own=_top(model, source.logits[arguments.prompt], arguments.top)[1],
        prompt=arguments.prompt,
        target=target.tokens.strings[0],
        path=path,
        self_tests=tests,
    )
    return result.model_copy(update={"summary": _summary(result, prompts.n)})


def plot(result: PatchscopeResult) -> Figure:
    """Precision and KL by layer, with the controls."""
    shown = [name for name in COMPARED if name in result.precision.names]
    first = Lines(
        title="Decodes the source's own next token", x_title="source layer", x=result.precision.layers,
        y_title="share of prompts", series=tuple(result.precision.series(name) for name in shown),
    )  # fmt: skip
    second = Lines(
        title="Distance from the source's own prediction", x_title="source layer", x=result.kl.layers,
        y_title="KL, nats", series=tuple(result.kl.series(name) for name in shown),
    )  # fmt: skip
    return Figure(
        title="Patchscope",
        caption=f"Activations put into {''.join(result.target)!r}: what the model's later layers make of them.",
        panels=(first, second),
    )


def _target(model: Model, arguments: Arguments, layers: Sequence[int]) -> Target:
    try:
        tokens = model.tokenize([arguments.target], bos=arguments.bos)
    except BadPrompts as error:
        raise BadPrompts(f"the target {arguments.target!r}: {error} Give a `target` that this model reads.") from error
    if arguments.target_layer is not None:
        chosen_layers([arguments.target_layer], model.info.shape)
    into = tuple(layer if arguments.target_layer is None else arguments.target_layer for layer in layers)
    return Target(tokens, tokens.find(0, arguments.target_position), into)


def _patched(
    context: Context, target: Target, source: Source, values: Float[Tensor, "L B D"], part: int, parts: int
) -> tuple[Scores, Scores, str, tuple[SelfTest, ...]]:
    """Scores of activations put into the target; those of the target left alone; how it was computed."""
    import numpy as np

    from ..model.sweep import sweep  # torch, only where a model is

    n_layers, rows = values.shape[:2]
    margins, divergences, path, tests = np.zeros((n_layers, rows)), np.zeros((n_layers, rows)), "", ()
    bare = Scores(margins, divergences)
    for levels, plan in plans_of(target, source, values):
        def tell(done: float, total: float, what: str, levels: Sequence[int] = levels) -> None:
            share = (part + (levels[0] + done / max(total, 1) * len(levels)) / n_layers) / parts
            context.progress(share, 1.0, "patching into the target")

        found = sweep(context.model, plan, tell, context.budget_bytes // 2, spot_check=part == 0)
        divergences[levels], margins[levels] = found.values[0].numpy(), found.values[1].numpy()
        alone = found.base_values.numpy()
        bare = Scores((alone[1] > 0)[None].repeat(n_layers, 0), alone[0][None].repeat(n_layers, 0))
        path, tests = f"{found.path}: {found.reason}", tests + found.self_tests
    return Scores(margins > 0, divergences), bare, path, tests[:3]


def _mean(parts: Sequence[Scores]) -> Scores:
    import numpy as np

    return Scores(np.mean([p.agrees for p in parts], axis=0), np.mean([p.kl for p in parts], axis=0))


def _lens(model: Model, source: Source) -> dict[str, Scores]:
    """What the logit lens reads from the same activations; nothing where the model's unembedding is not known."""
    import numpy as np

    agrees, far = [], []
    for residual in source.residuals:
        try:
            logits = lens(model, residual)
        except Unsupported:
            return {}
        agrees.append((logits.argmax(-1) == source.logits.argmax(-1)).cpu().numpy())
        far.append(kl(logits, source.logits).cpu().numpy())
    return {LENS: Scores(np.stack(agrees), np.stack(far))}


def _into_itself(
    model: Model, prompts: EncodedPrompts, at: Sequence[int], layers: Sequence[int], source: Source
) -> SelfTest:
    """Some prompts with their own activation put back where it was: nothing may change."""
    some, worst = range(min(3, prompts.n)), 0.0
    tokens, places = prompts.clean.rows(some), [at[row] for row in some]
    for level in sorted({0, len(layers) // 2, len(layers) - 1}):
        value = source.residuals[level, list(some)][:, None]
        positions = tuple((p,) for p in places)
        edit = Edit(site=Site("resid_post", layers[level]), rule="set", positions=positions, value=value)
        logits = model.run(tokens, edits=[edit], logits_at=places).logits
        assert logits is not None
        gap = widened(logits).log_softmax(-1) - widened(source.logits[list(some)]).log_softmax(-1)
        worst = max(worst, float(gap.abs().max()))
    name = "a prompt's own activation put back into it: largest change of its log-probabilities (nats)"
    return SelfTest(name=name, expected=0.0, found=worst, tolerance=ITSELF, passed=worst <= ITSELF)


def _at_the_end(target: Target, model: Model, scores: dict[str, Scores]) -> tuple[SelfTest, ...]:
    """After the last layer nothing is left to decode with: the target must say what the source says."""
    last = model.info.n_layers - 1
    if target.layers[-1] != last or len(set(target.layers)) < len(target.layers):
        return ()
    if target.position != target.tokens.last[0]:
        return ()
    worst = float(scores[PATCH].kl[-1].max())
    name = "after the last layer the target gives the source's own prediction: largest KL (nats)"
    return (SelfTest(name=name, expected=0.0, found=worst, tolerance=ITSELF, passed=worst <= ITSELF),)


def _tables(
    scores: dict[str, Scores], prompts: EncodedPrompts, layers: Sequence[int], seed: int
) -> tuple[Quantities, Quantities]:
    import numpy as np

    clusters, names = Clusters(prompts.clusters, seed=seed), [str(layer) for layer in layers]
    agrees = {name: s.agrees.T.astype(float) for name, s in scores.items()}
    controls = np.stack([values for name, values in agrees.items() if name != PATCH])
    best = controls.mean(1).argmax(0)  # per layer, the control that is right most often
    gain = agrees[PATCH] - controls[best, :, range(len(layers))].T
    precision = {name: clusters.means(values) for name, values in agrees.items()} | {GAIN: clusters.means(gain)}
    far = {name: clusters.means(s.kl.T) for name, s in scores.items()}
    return (
        quantities("precision of the next token", "share of prompts", names, precision),
        quantities("KL(own || decoded)", "nats", names, far),
    )


def _decoded(
    model: Model, target: Target, layers: Sequence[int], shown: Float[Tensor, "L D"], arguments: Arguments
) -> tuple[Decoded, ...]:
    """The shown prompt's layers in one pass, each a row with its own edit."""
    tokens = repeated(target.tokens, len(layers))
    edits = [
        Edit(
            site=Site("resid_post", into), rule="set", rows=(row,), positions=(target.position,),
            value=shown[row][None, None],
        )
        for row, into in enumerate(target.layers)
    ]  # fmt: skip
    logits = model.run(tokens, edits=edits, logits_at=tokens.last).logits
    assert logits is not None
    texts: list[str | None] = [None] * len(layers)
    if arguments.max_new_tokens:
        ids = model.generate(tokens, max_new_tokens=arguments.max_new_tokens, edits=edits)
        between = " " if model.info.backend == "toy" else ""  # the toy's tokens are words without spaces
        texts = [between.join(model.token_strings(row)) for row in ids]
    tops = [_top(model, row, arguments.top) for row in logits]
    return tuple(
        Decoded(layer=layer, top=strings, probability=p, text=text)
        for layer, (p, strings), text in zip(layers, tops, texts, strict=True)
    )


def _top(model: Model, logits: Float[Tensor, " V"], k: int) -> tuple[float, tuple[str, ...]]:
    values, ids = widened(logits).softmax(-1).topk(min(k, len(logits)))
    return float(values[0]), model.token_strings(ids.tolist())


def _warnings(
    tests: Sequence[SelfTest], precision: Quantities, target: Target, arguments: Arguments
) -> tuple[str, ...]:
    found = [f"Self-test failed ({t.name}): {t.found:.2g}. Do not use these numbers." for t in tests if not t.passed]
    if not any(end is not None and end > 0 for end in precision.column(GAIN, "low") or ()):
        found.append(
            "At no layer does the patched target clearly give the source's next token more often than the best control "
            "(random activation, logit lens, target left alone)."
        )
    if LENS not in precision.names:
        found.append("No logit lens is set beside it: the weights of this architecture are not known, on any backend.")
    if target.position != target.tokens.last[0]:
        found.append("The activation is put before the target's last token, where the answer is read.")
    return tuple(found)


def _summary(result: PatchscopeResult, n: int) -> str:
    place = result.precision.layers.index(str(result.best))
    shown = [name for name in COMPARED if name in result.precision.names]
    at = {name: (result.precision.column(name) or ())[place] or 0.0 for name in shown}
    beside = ", ".join(f"{name} {share:.0%}" for name, share in at.items() if name != PATCH)
    words = "; ".join(f"{d.layer} {d.top[0]!r}" for d in result.decoded[:: max(1, len(result.decoded) // 6)])
    return (
        f"Put into {''.join(result.target)!r}, activations of layer {result.best} give the source's own next token on "
        f"{at[PATCH]:.0%} of {n} prompts, the most of any layer ({beside}). Prompt {result.prompt}, by layer: {words}. "
        "It shows what later layers can make of an activation in that target, not that the source's run uses it."
    )
