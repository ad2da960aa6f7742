"""Encode prompts with a sparse autoencoder: which features are active, where, how strongly, and what is left over.

Idea: a dictionary writes an activation as a sparse sum of directions. The features of a prompt are read off, each with
its activation, the norm of its direction and what it says to the logits directly; the reconstruction error stands
beside them, for what the dictionary does not explain no feature shows.

Source: Bricken et al., "Towards Monosemanticity" (2023), https://transformer-circuits.pub/2023/monosemantic-features;
Cunningham et al., arXiv 2309.08600. f = encode(x); y = scale(x) f D + offset(x) + error. Direct logit effect of
feature i at the last token, answer against wrong: scale(x) f_i d_i through the final norm (its divisor frozen) and the
unembedding.

Does not show: that the model uses a feature (take it away with ablate or sae_attribution), or that a feature means what
its strongest tokens suggest; and nothing of what stands in the error.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..causal.features import chosen_dictionary, feature_name, parse_features, said
from ..causal.features_at_last import Looked, direct_on_answer
from ..causal.measured import failed
from ..causal.reconstruction import explained_over, spliced
from ..dictionaries.protocol import Dictionary
from ..dictionaries.quality import MASSIVE
from ..dictionaries.reading import encode_tokens
from ..figures import Bars, Figure, TextRow, TextRows
from ..measures.statistics import Clusters
from ..model.protocol import Model
from ..prompts.columns import one_line
from ..prompts.encoding import EncodedPrompts, encode
from ..result import Estimate, Frozen, Result, SelfTest
from ..technique import Context, OnPrompts, Positions, SaeArgument

if TYPE_CHECKING:
    from numpy import ndarray
    from torch import Tensor

TITLE = "SAE features of prompts"
QUESTIONS = (
    "Which SAE features are active on this prompt?",
    "What does the sparse autoencoder see at this token?",
    "How much of the activation does the SAE leave unexplained?",
    "Which active features push the answer directly?",
)
TOKENS_SHOWN = 64


class Arguments(OnPrompts):
    """Arguments of encode_sae."""

    sae: SaeArgument
    positions: Positions = Field(default="all", description="Positions looked at; 'all', 'last', roles, token texts.")
    features: tuple[int | str, ...] | None = Field(
        default=None, description="Features to report (numbers or L15F123); the strongest when absent."
    )
    top: int = Field(default=20, ge=1, le=200, description="Features that are listed, the largest share of norm first.")
    per_token: int = Field(default=5, ge=1, le=50, description="Features listed at each token of the first prompt.")
    promotes: int = Field(default=5, ge=1, le=20, description="Tokens listed that a feature raises and lowers.")


class Activity(Frozen):
    """One feature at one token."""

    feature: str = Field(description="Its name: L15F123.")
    activation: float = Field(description="Its activation, in the dictionary's own unit.")


class TokenFeatures(Frozen):
    """One token of the first prompt."""

    token: str = Field(description="Position and token.")
    l0: int = Field(description="Features active there.")
    error: float = Field(description="Norm of the error over norm of the activation.")
    norm: float = Field(description="Norm of the activation.")
    features: tuple[Activity, ...] = Field(description="The strongest by norm of what they add.")


class FeatureRow(Frozen):
    """One feature over all tokens that were looked at."""

    feature: str = Field(description="Its name: L15F123.")
    index: int = Field(description="Its number in the dictionary.")
    active_share: float = Field(description="Share of the tokens looked at on which it is active.")
    mean_active: float = Field(description="Mean activation where it is active.")
    largest: float = Field(description="Largest activation.")
    at: str = Field(description="Prompt and token of the largest activation.")
    decoder_norm: float = Field(description="Norm of its direction.")
    norm_share: float = Field(description="Mean of |what it adds| / |activation| over the tokens looked at.")
    promotes: tuple[str, ...] = Field(description="Tokens its direction raises most, directly; empty if undefined.")
    suppresses: tuple[str, ...] = Field(description="Tokens its direction lowers most, directly.")
    direct_logit_diff: Estimate | None = Field(
        description="Direct effect at the last token on answer minus wrong (logits), mean over prompts; absent without "
        "answers, or where the site's direct effect is undefined."
    )


class EncodeSaeResult(Result):
    """The features of some prompts, and what they leave over."""

    sae: str = Field(description="Handle of the dictionary.")
    site: str = Field(description="Site that it explains.")
    l0: Estimate = Field(description="Active features a token, mean over prompts.")
    error: Estimate = Field(description="Norm of the error over norm of the activation, mean over prompts.")
    explained_variance: float | None = Field(
        description="Share of the variance explained over these tokens, massive-norm ones left out; absent below two."
    )
    massive: tuple[str, ...] = Field(description="Tokens whose norm is over 5 times the median (at most 8 listed).")
    features: tuple[FeatureRow, ...] = Field(
        description="Features, those that carry most norm first; massive-norm tokens left out."
    )
    tokens: tuple[TokenFeatures, ...] = Field(description="Tokens of the first prompt, at most 64.")
    active_features: int = Field(description="Different features active anywhere on these tokens.")
    self_tests: tuple[SelfTest, ...] = Field(description="Checks made on this model and these prompts.")


def run(context: Context, arguments: Arguments) -> EncodeSaeResult:
    """Encode every prompt.

    Raises:
        BadArguments: no dictionary, or features it does not have.
        BadPrompts, BadPosition: from the prompts.
    """
    import numpy as np

    model, dictionary = context.model, chosen_dictionary(context.dictionary)
    prompts = _encoded_prompts(context, arguments)
    looked = _looked(model, dictionary, prompts, arguments, context)
    encoded = looked.encoded
    wanted = None if arguments.features is None else parse_features(arguments.features, dictionary)
    massive = encoded.norm > MASSIVE**2 * np.median(encoded.norm)
    ordinary = looked if massive[looked.chosen].all() else looked._replace(chosen=looked.chosen & ~massive)
    rows = _rows(model, dictionary, ordinary, wanted, arguments)
    relative = np.sqrt(encoded.error / np.maximum(encoded.norm, 1e-30))
    per_token = np.bincount(encoded.token, minlength=encoded.n_tokens)
    clusters = Clusters(prompts.clusters, seed=arguments.seed)
    tests = (spliced(model, dictionary, prompts.clean),)
    for name, array, unit in (
        ("token", encoded.token, "index of the token"), ("feature", encoded.feature, "index of the feature"),
        ("value", encoded.value, "activation"),
    ):  # fmt: skip
        context.keep(name, _tensor(dictionary, array), axes=("active",), unit=unit)
    where = np.stack([encoded.rows, encoded.positions], 1)
    context.keep("where", _tensor(dictionary, where), axes=("token", "prompt_position"), unit="prompt and position")
    l0 = clusters.means(_per_prompt(per_token, looked)).estimate()
    return EncodeSaeResult(
        summary=_summary(dictionary, l0, rows, looked, relative, prompts),
        warnings=(
            *failed(tests), *dictionary.info.cautions, *_beware(massive & looked.chosen, looked), *prompts.warnings
        ),
        sae=dictionary.info.name,
        site=dictionary.info.site_out,
        l0=l0,
        error=clusters.means(_per_prompt(relative, looked)).estimate(),
        explained_variance=_explained(model, dictionary, looked, massive, context.budget_bytes),
        massive=_named(massive & looked.chosen, looked)[:8],
        features=rows,
        tokens=_first_prompt(dictionary, looked, relative, arguments.per_token),
        active_features=len(np.unique(encoded.feature[looked.chosen[encoded.token]])),
        self_tests=tests,
    )



def _encoded_prompts(context: Context, arguments: Arguments) -> EncodedPrompts:
    assert context.prompts is not None, "the runner resolves prompts"
    return encode(context.prompts, context.model, bos=arguments.bos)


def _looked(
    model: Model, dictionary: Dictionary, prompts: EncodedPrompts, arguments: Arguments, context: Context
) -> Looked:
    import numpy as np

    encoded = encode_tokens(
        model, dictionary, prompts.clean, budget_bytes=context.budget_bytes, progress=context.progress
    )
    if arguments.positions == "all":
        return Looked(encoded, prompts, np.ones(encoded.n_tokens, dtype=bool))
    columns = prompts.columns(arguments.positions)
    pairs = {(row, column.positions[row]) for column in columns for row in range(prompts.n)}
    chosen = [pair in pairs for pair in zip(encoded.rows.tolist(), encoded.positions.tolist(), strict=True)]
    return Looked(encoded, prompts, np.array(chosen))


def _rows(
    model: Model, dictionary: Dictionary, looked: Looked, wanted: Sequence[int] | None, arguments: Arguments
) -> tuple[FeatureRow, ...]:
    """The features that carry most, or those asked for."""
    import numpy as np

    encoded, chosen = looked.encoded, looked.chosen
    norms = dictionary.directions.float().norm(dim=-1).cpu().numpy()
    here = chosen[encoded.token]
    token, feature, value = encoded.token[here], encoded.feature[here], encoded.value[here]
    size = abs(value) * encoded.worth[token] * norms[feature] / np.sqrt(np.maximum(encoded.norm[token], 1e-30))
    n, f = int(chosen.sum()), dictionary.info.d_dict
    share = np.bincount(feature, size, f) / n
    times, total = np.bincount(feature, minlength=f), np.bincount(feature, value, f)
    picked = list(wanted) if wanted is not None else [int(i) for i in np.argsort(-share)[: arguments.top] if times[i]]
    if not picked:
        return ()
    words = said(model, dictionary, picked, arguments.promotes)
    direct = direct_on_answer(model, dictionary, looked, picked, arguments.seed)
    return tuple(
        FeatureRow(
            feature=feature_name(dictionary.info.writes, i),
            index=i,
            active_share=float(times[i] / n),
            mean_active=float(total[i] / max(1, times[i])),
            largest=float(value[feature == i].max()) if times[i] else 0.0,
            at=_largest_at(i, token, feature, value, looked) if times[i] else "active nowhere",
            decoder_norm=float(norms[i]),
            norm_share=float(share[i]),
            promotes=words[k][0],
            suppresses=words[k][1],
            direct_logit_diff=None if direct is None else direct[k],
        )
        for k, i in enumerate(picked)
    )


def _first_prompt(
    dictionary: Dictionary, looked: Looked, relative: ndarray, k: int
) -> tuple[TokenFeatures, ...]:
    import numpy as np

    encoded = looked.encoded
    norms = dictionary.directions.float().norm(dim=-1).cpu().numpy()
    shown = [t for t in range(encoded.n_tokens) if encoded.rows[t] == 0 and looked.chosen[t]][:TOKENS_SHOWN]
    rows = []
    for t in shown:
        here = np.flatnonzero(encoded.token == t)
        order = here[np.argsort(-abs(encoded.value[here]) * norms[encoded.feature[here]])][:k]
        rows.append(
            TokenFeatures(
                token=looked.prompts.clean.label(0, int(encoded.positions[t])),
                l0=len(here),
                error=float(relative[t]),
                norm=float(np.sqrt(encoded.norm[t])),
                features=tuple(
                    Activity(
                        feature=feature_name(dictionary.info.writes, int(encoded.feature[j])),
                        activation=float(encoded.value[j]),
                    )
                    for j in order
                ),
            )
        )
    return tuple(rows)




def _explained(
    model: Model, dictionary: Dictionary, looked: Looked, massive: ndarray, budget: int
) -> float | None:
    kept = looked.chosen & ~massive
    encoded = looked.encoded
    places = {(int(r), int(p)) for r, p in zip(encoded.rows[kept], encoded.positions[kept], strict=True)}
    return explained_over(model, dictionary, looked.prompts.clean, places, float(encoded.error[kept].sum()), budget)


def _per_prompt(values: ndarray, looked: Looked) -> ndarray:
    """Mean over the tokens of each prompt that are looked at."""
    import numpy as np

    rows, n = looked.encoded.rows[looked.chosen], looked.prompts.n
    return np.bincount(rows, values[looked.chosen], n) / np.maximum(1, np.bincount(rows, minlength=n))


def _largest_at(i: int, token: ndarray, feature: ndarray, value: ndarray, looked: Looked) -> str:
    best = token[feature == i][value[feature == i].argmax()]
    row, position = int(looked.encoded.rows[best]), int(looked.encoded.positions[best])
    return f"prompt {row}, {looked.prompts.clean.label(row, position)}"


def _named(chosen: ndarray, looked: Looked) -> tuple[str, ...]:
    where = [(int(looked.encoded.rows[t]), int(looked.encoded.positions[t])) for t in chosen.nonzero()[0]]
    return tuple(f"prompt {row}, {looked.prompts.clean.label(row, p)}" for row, p in where)


def _tensor(dictionary: Dictionary, array: ndarray) -> Tensor:
    """As a float32 tensor: indices stay exact up to 2^24."""
    return dictionary.directions.new_tensor(array.astype("float32")).float().cpu()



def _beware(massive: ndarray, looked: Looked) -> tuple[str, ...]:
    n = int(massive.sum())
    if not n:
        return ()
    share = float(looked.encoded.norm[massive].sum() / looked.encoded.norm[looked.chosen].sum())
    return (
        f"{n} tokens have a norm over {MASSIVE:g} times the median and hold {share:.0%} of the squared norm (often the "
        "first token of a row): what is active there says little of the text, and the list of features leaves it out.",
    )


def _summary(
    dictionary: Dictionary, l0: Estimate, rows: Sequence[FeatureRow], looked: Looked, relative: ndarray,
    prompts: EncodedPrompts,
) -> str:  # fmt: skip
    error = float(relative[looked.chosen].mean())
    shown = "; ".join(
        f"{r.feature} ({r.largest:.3g} at {one_line(r.at)}"
        f"{', promotes ' + ' '.join(r.promotes[:3]) if r.promotes else ''})"
        for r in rows[:4]
    )
    return (
        f"{dictionary.info.name} at {dictionary.info.site_out}: {l0.mean:.1f} features a token on {prompts.n} prompts; "
        f"the error is {error:.0%} of the activation's norm. Largest: {shown or 'none'}. Active is not used: take a "
        "feature away with ablate or sae_attribution before claiming anything of it."
    )


def plot(result: EncodeSaeResult) -> Figure:
    """The features that carry most, and the first prompt with the error at each token."""
    named = [f.feature + (f" {f.promotes[0]}" if f.promotes else "") for f in result.features]
    panels: list[Bars | TextRows] = [
        Bars(
            title="share of the activation's norm", value_title="mean of |f d| / |x|",
            labels=tuple(named), values=tuple(f.norm_share for f in result.features),
        )
    ]  # fmt: skip
    if any(f.direct_logit_diff for f in result.features):
        direct = [f.direct_logit_diff for f in result.features]
        panels.append(
            Bars(
                title="direct effect at the last token", value_title="answer minus wrong (logits)",
                labels=tuple(named), values=tuple(d.mean if d else None for d in direct),
                low=tuple(d.low if d else None for d in direct), high=tuple(d.high if d else None for d in direct),
            )
        )  # fmt: skip
    if result.tokens:
        panels.append(_text(result.tokens))
    return Figure(
        title=f"{result.sae}: features of the prompts",
        caption=f"At {result.site}; {result.l0.mean:.1f} features a token; error "
        f"{result.error.mean:.0%} of the norm; {result.l0.n} prompts.",
        panels=tuple(panels),
    )


def _text(tokens: Sequence[TokenFeatures]) -> TextRows:
    strings = tuple(t.token.split(":", 1)[1] for t in tokens)
    counted = {name: sum(a.activation for t in tokens for a in t.features if a.feature == name)
               for name in {a.feature for t in tokens for a in t.features}}  # fmt: skip
    top = sorted(counted, key=lambda name: -counted[name])[:6]
    rows = [TextRow(tokens=strings, values=tuple(t.error for t in tokens), label="error", group="left over")]
    for name in top:
        of = {i: a.activation for i, t in enumerate(tokens) for a in t.features if a.feature == name}
        most = max(of.values())
        rows.append(TextRow(tokens=strings, values=tuple(of.get(i, 0.0) / most for i in range(len(tokens))),
                            label=name, group="of its largest"))  # fmt: skip
    return TextRows(title="the first prompt", value_title="share", rows=tuple(rows), domain=(0.0, 1.0))
