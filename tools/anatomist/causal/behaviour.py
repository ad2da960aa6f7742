"""How a behaviour differs between two models, or a model with and without an edit, on the same prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pydantic import Field

from ..figures import Bars
from ..measures.metrics import Metric, kl
from ..measures.statistics import Clusters, control_p
from ..prompts.encoding import EncodedPrompts
from ..result import Estimate, Frozen

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


class BehaviourChange(Frozen):
    """One metric before and after, and how far the whole prediction moved."""

    metric: str = Field(description="What was measured at the last token.")
    unit: str = Field(description="Its unit.")
    before: Estimate = Field(description="The metric before.")
    after: Estimate = Field(description="The metric after.")
    change: Estimate = Field(description="After minus before, prompt by prompt.")
    kl: Estimate = Field(description="KL(before || after) of the next-token prediction, nats.")
    same_top: float = Field(description="Share of prompts whose likeliest next token stayed the same.")
    right_before: float | None = Field(description="Share of prompts whose likeliest token is an answer, before.")
    right_after: float | None = Field(description="The same, after.")
    random: tuple[float, ...] = Field(description="Mean change of the metric under each random control.")
    random_kl: float | None = Field(description="KL under the random controls, mean.")
    p: float | None = Field(description="(1 + b) / (1 + B): b of B controls with at least as large a change.")


def behaviour_change(
    metric: Metric, prompts: EncodedPrompts, before: Float[Tensor, "B V"], after: Float[Tensor, "B V"],
    clusters: Clusters, controls: Sequence[Float[Tensor, "B V"]] = (),
) -> BehaviourChange:  # fmt: skip
    """From next-token logits before, after, and under each control."""
    one, two = (metric(x).double().cpu().numpy() for x in (before, after))
    random = tuple(float(metric(c).double().mean()) - float(one.mean()) for c in controls)
    kls = [float(kl(c, before).mean()) for c in controls]
    change = clusters.means(two - one).estimate()
    top = before.argmax(-1)
    return BehaviourChange(
        metric=metric.name,
        unit=metric.unit,
        before=clusters.means(one).estimate(),
        after=clusters.means(two).estimate(),
        change=change,
        kl=clusters.means(kl(after, before).double().cpu().numpy()).estimate(),
        same_top=float((after.argmax(-1) == top).double().mean()),
        right_before=_right(prompts, before),
        right_after=_right(prompts, after),
        random=random,
        random_kl=sum(kls) / len(kls) if kls else None,
        p=control_p(change.mean, random) if random else None,
    )


def _right(prompts: EncodedPrompts, logits: Float[Tensor, "B V"]) -> float | None:
    if prompts.answers is None:
        return None
    best = logits.argmax(-1).tolist()
    return sum(b in answers for b, answers in zip(best, prompts.answers, strict=True)) / len(best)


def in_words(found: BehaviourChange, what: str, controls: str) -> str:
    """The change in a sentence; `controls` names the random ones."""
    text = f"{what}: {found.metric} {found.before.mean:.3g} to {found.after.mean:.3g} ({found.change} {found.unit})"
    if found.p is None:
        return f"{text}."
    mean = sum(found.random) / len(found.random)
    return f"{text}; {len(found.random)} {controls}: {mean:+.3g} on average, p = {found.p:.3g}."


def beside_random(found: BehaviourChange, what: str, controls: str) -> Bars:
    """The change beside that of the random controls, smallest first."""
    random = sorted(found.random)
    return Bars(
        title=f"{found.metric} on the task: {what} and {len(random)} {controls}",
        value_title=f"change of {found.metric} ({found.unit})",
        labels=(what, *(f"random {i + 1}" for i in range(len(random)))),
        values=(found.change.mean, *random),
        low=(found.change.low, *(None for _ in random)),
        high=(found.change.high, *(None for _ in random)),
        groups=(what, *(controls for _ in random)),
    )
