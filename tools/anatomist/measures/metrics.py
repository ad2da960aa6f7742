"""Metrics: what a behaviour is worth, from the logits at the position that is read.

B prompts, V vocabulary, n the columns of it that are given; `*more` are leading axes, cells of a sweep for example.
Answers may be sets of tokens. Mass of a set = sum of its tokens' exponentiated logits.

| metric | value | unit |
|---|---|---|
| logit_diff | log mass of answer - log mass of wrong (of single tokens: the logit difference itself) | logits |
| logit | log mass of answer (of a single token: its logit) | logits |
| logprob | log of the answer set's probability | nats |
| prob | the answer set's probability | probability |
| kl | KL(reference || logits), the reference being the unedited run | nats |
| loss | -logprob, the cross-entropy of the answer | nats |

All are computed in float32 or wider, whatever the model's dtype. logit_diff is the default of the techniques:
probabilities hide components that speak against the answer (Zhang & Nanda, arXiv 2309.16042, section 4). A constant
added to all logits changes `logit` and nothing else: compare it between runs of one model only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from ..errors import BadPrompts, NotFinite, UnknownName

if TYPE_CHECKING:
    from jaxtyping import Float, Int
    from torch import Tensor

MetricName = Literal["logit_diff", "logit", "logprob", "prob", "kl", "loss"]
METRICS: tuple[MetricName, ...] = get_args(MetricName)
UNITS: dict[MetricName, str] = {
    "logit_diff": "logits", "logit": "logits", "logprob": "nats", "prob": "probability", "kl": "nats", "loss": "nats",
}  # fmt: skip
NEEDS: dict[MetricName, tuple[Literal["answer", "wrong"], ...]] = {
    "logit_diff": ("answer", "wrong"), "logit": ("answer",), "logprob": ("answer",), "prob": ("answer",), "kl": (),
    "loss": ("answer",),
}  # fmt: skip
IdSets = Sequence[Sequence[int]]


class HasAnswers(Protocol):
    """Prompts with the ids of their answers, row by row (EncodedPrompts)."""

    @property
    def answers(self) -> IdSets | None: ...
    @property
    def wrongs(self) -> IdSets | None: ...


def logit_diff(logits: Float[Tensor, "*more B n"], answers: IdSets, wrongs: IdSets) -> Float[Tensor, "*more B"]:
    """Log mass of the answer set minus log mass of the wrong set; ids are columns of `logits`."""
    return log_mass(logits, answers) - log_mass(logits, wrongs)


def logprob(logits: Float[Tensor, "*more B V"], answers: IdSets) -> Float[Tensor, "*more B"]:
    """Log-probability of the answer set, in nats."""
    return log_mass(logits, answers) - widened(logits).logsumexp(-1)


def prob(logits: Float[Tensor, "*more B V"], answers: IdSets) -> Float[Tensor, "*more B"]:
    """Probability of the answer set."""
    return logprob(logits, answers).exp()


def loss(logits: Float[Tensor, "*more B V"], answers: IdSets) -> Float[Tensor, "*more B"]:
    """Cross-entropy of the answer set, in nats."""
    return -logprob(logits, answers)


def kl(logits: Float[Tensor, "*more B V"], reference: Float[Tensor, "B V"]) -> Float[Tensor, "*more B"]:
    """KL(reference || logits) in nats: how far the whole prediction has moved from the reference run's."""
    expected = widened(reference).log_softmax(-1)
    found = widened(logits).log_softmax(-1)
    return (expected.exp() * (expected - found)).sum(-1)


def log_mass(logits: Float[Tensor, "*more B n"], sets: IdSets) -> Float[Tensor, "*more B"]:
    """Log-sum-exp of each row's logits over its set of columns."""
    chosen, absent = _index(logits, sets)
    index = chosen.expand(*logits.shape[:-1], chosen.shape[-1])
    return widened(logits.gather(-1, index)).masked_fill(absent.bool(), float("-inf")).logsumexp(-1)


def widened(x: Float[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """At least float32: half-precision logits are too coarse to add up."""
    return x.float() if x.element_size() < 4 else x


def _index(logits: Tensor, sets: IdSets) -> tuple[Int[Tensor, "B k"], Int[Tensor, "B k"]]:
    """Columns per row, short sets filled up with their first column, and which places are filling."""
    if len(sets) != logits.shape[-2] or not all(sets):
        raise BadPrompts(
            f"{logits.shape[-2]} rows of logits need one answer set each, none empty; {len(sets)} sets were given."
        )
    width = max(map(len, sets))
    whole = logits.new_zeros(()).long()  # ids stay integers: bf16 holds none above 256 exactly
    columns = whole.new_tensor([[*s, *[s[0]] * (width - len(s))] for s in sets])
    return columns, whole.new_tensor([[0] * len(s) + [1] * (width - len(s)) for s in sets])


@dataclass(frozen=True, eq=False)
class Metric:
    """A metric bound to prompts: call it with logits [*more, B, n] and get [*more, B].

    `ids` names the columns that it needs, so that only those rows of the unembedding need be multiplied; None means the
    whole vocabulary. Logits given to it hold either exactly these columns, in this order, or (`whole=True`) all.
    """

    name: MetricName
    answers: IdSets = ()  # token ids
    wrongs: IdSets = ()
    reference: Tensor | None = None  # [B, V] logits of the unedited run, for kl

    @property
    def unit(self) -> str:
        return UNITS[self.name]

    @property
    def ids(self) -> tuple[int, ...] | None:
        if self.name not in ("logit_diff", "logit"):
            return None
        return tuple(sorted({i for sets in (self.answers, self.wrongs) for s in sets for i in s}))

    def __call__(self, logits: Float[Tensor, "*more B n"], *, whole: bool = True) -> Float[Tensor, "*more B"]:
        """Values per prompt.

        Raises:
            NotFinite: a value is NaN or infinite.
        """
        values = self._values(logits, whole)
        if not values.isfinite().all():
            raise NotFinite(
                f"{self.name} is not finite on {int((~values.isfinite()).sum())} of {values.numel()} values: the "
                "logits hold NaN or infinity. Check the weights, the dtype and the size of any edit."
            )
        return values

    def _values(self, logits: Tensor, whole: bool) -> Tensor:
        if self.name == "kl":
            assert self.reference is not None
            return kl(logits, self.reference)
        if self.name == "logit_diff":
            return logit_diff(logits, self._columns(self.answers, whole), self._columns(self.wrongs, whole))
        if self.name == "logit":
            return log_mass(logits, self._columns(self.answers, whole))
        return _OF_ANSWER[self.name](logits, self.answers)

    def _columns(self, sets: IdSets, whole: bool) -> IdSets:
        if whole:
            return sets
        place = {token: column for column, token in enumerate(self.ids or ())}
        return [[place[token] for token in s] for s in sets]

    def rows(self, index: Iterable[int]) -> Metric:
        """The same metric for some of the prompts (repeats allowed: row i of the logits is prompt index[i])."""
        chosen = list(index)
        return replace(
            self,
            answers=tuple(self.answers[i] for i in chosen) if self.answers else (),
            wrongs=tuple(self.wrongs[i] for i in chosen) if self.wrongs else (),
            reference=None if self.reference is None else self.reference[chosen],
        )


_OF_ANSWER: dict[str, Callable[[Tensor, IdSets], Tensor]] = {"logprob": logprob, "prob": prob, "loss": loss}


def metric_for(name: str, encoded: HasAnswers, *, reference: Tensor | None = None) -> Metric:
    """Bind a metric to encoded prompts; `reference` [B, V] is the unedited run's logits, for kl.

    Raises:
        UnknownName: no metric of that name.
        BadPrompts: the prompts lack the answer, the wrong answer or (kl) the reference that it needs.
    """
    if name not in METRICS:
        raise UnknownName.of("metric", name, METRICS)
    have = {"answer": encoded.answers, "wrong": encoded.wrongs}
    for part in NEEDS[name]:
        if have[part] is None:
            other = ", ".join(m for m, needed in NEEDS.items() if part not in needed)
            raise BadPrompts(f"the metric {name!r} needs `{part}` on every prompt; add it, or choose another: {other}.")
    if name == "kl" and reference is None:
        raise BadPrompts("the metric 'kl' needs the logits of the unedited run as its reference; pass `reference`.")
    return Metric(name, encoded.answers or (), encoded.wrongs or (), reference if name == "kl" else None)


def needs_rows(name: str, encoded: HasAnswers) -> tuple[int, ...] | None:
    """The token ids whose logits a metric needs; None for the whole vocabulary."""
    if name not in METRICS:
        raise UnknownName.of("metric", name, METRICS)
    return metric_for(name, encoded).ids if name in ("logit_diff", "logit") else None
