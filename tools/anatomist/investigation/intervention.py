"""The intervention that decides a claim of each kind, as one number per prompt set with its interval and controls.

| kind | intervention on all components together | an effect in the claimed direction |
|---|---|---|
| necessary | ablation of the clean run (the finding's ablation type) | the metric falls (decrease) |
| mediating | noising: their corrupted activations in the clean run | the metric falls |
| sufficient | denoising: their clean activations in the corrupted run | the metric rises |
| direct | none: what they write to the logit difference, norm frozen | positive share of it |

All effects are given as a share of what there is to lose (necessary, direct: the clean metric) or to gain or lose
between the runs (sufficient, mediating: the gap), positive when the claim is right. Redundant parts show under
denoising, serial ones under noising (Heimersheim & Nanda, arXiv 2404.15255): hence the kind picks the intervention.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, cast

from ..causal.each_part import PartTest
from ..result import Estimate
from ..techniques.ablate import AblationResult
from ..techniques.direct_logit_attribution import DirectLogitAttributionResult
from ..techniques.patch_activations import PatchingResult
from .bench import Bench, NoBehaviour, NotApplicable, Setting
from .record import ClaimKind, Finding


class Effect(NamedTuple):
    """The claimed components' joint effect as a share, positive when it is as claimed."""

    share: float
    low: float | None
    high: float | None
    n: int
    clusters: int
    p: float | None  # against random sets; None when none were drawn
    controls: tuple[float, ...]  # shares of the random sets
    drawn: str
    run: str
    nothing_alone: tuple[str, ...] = ()  # parts of a set whose own effect is not above 0
    each_part: tuple[PartTest, ...] = ()  # whether each part of a set earns its place; empty without random sets
    there: bool = True  # whether the intact run shows any behaviour: its metric's interval leaves out 0

    def __str__(self) -> str:
        interval = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{self.share:.2f}{interval} (n={self.n}, {self.run})"


class Where(NamedTuple):
    """On which prompts."""

    model: str
    prompts: str
    split: str


def measure(
    bench: Bench, finding: Finding, where: Where, setting: Setting, *, controls: int = 0, metric: str = "logit_diff",
    ablation: str | None = None, kind: ClaimKind | None = None,
) -> Effect:  # fmt: skip
    """The effect of the components together on some prompts, by the intervention that the kind of claim asks for.

    Raises:
        NotApplicable: this kind of claim has no intervention here, or the components are of several kinds.
        NoBehaviour: the metric is 0 on these prompts.
    """
    site, named = components(finding)
    common = {
        "model": where.model, "prompts": where.prompts, "split": where.split, "seed": setting.seed, "metric": metric,
    }  # fmt: skip
    which = kind or finding.kind
    if which == "direct":
        return _direct(bench, finding, common)
    arguments = {**common, **named, "site": site, "controls": controls, "together": True}
    sign = 1.0 if finding.direction == "decrease" else -1.0
    if which == "necessary":
        result, run = bench.technique("ablate", {**arguments, "ablation": ablation or finding.ablation})
        removed = cast(AblationResult, result)
        base = removed.effects[0].base
        effect = _share(removed, run, finding.components, base=base.mean, sign=-sign)
        return effect._replace(there=base.low is None or base.high is None or not base.low <= 0 <= base.high)
    if which in ("sufficient", "mediating"):
        direction = "denoising" if which == "sufficient" else "noising"
        result, run = bench.technique("patch_activations", {**arguments, "direction": direction})
        patched = cast(PatchingResult, result)
        first = patched.effects[0]
        assert first.other is not None
        return _share(patched, run, finding.components, base=first.other.mean - first.base.mean, sign=sign)
    raise NotApplicable(f"no intervention decides a claim of kind {which!r}: lens and probe runs describe it only.")


def components(finding: Finding) -> tuple[str, dict[str, object]]:
    """The site they are of, and the technique's arguments that name them.

    Raises:
        NotApplicable: heads and layers are mixed.
    """
    heads = [c for c in finding.components if c.startswith("L") and "H" in c]
    if len(heads) == len(finding.components):
        return "head", {"heads": heads}
    sites = [c.split(".") for c in finding.components]
    kinds = {parts[2] for parts in sites if len(parts) == 3 and parts[0] == "blocks"}
    if heads or len(kinds) != 1 or not kinds <= {"attn_out", "mlp_out"}:
        raise NotApplicable(
            f"{', '.join(finding.components)}: components of one finding must all be heads (L9H6), or all attn_out or "
            "all mlp_out sites (blocks.3.mlp_out). Split the finding."
        )
    return kinds.pop(), {"layers": [int(parts[1]) for parts in sites]}


def _share(
    result: AblationResult | PatchingResult, run: str, named: Sequence[str], *, base: float, sign: float
) -> Effect:
    """The joint change over `base`, so that what was claimed is positive."""
    joint = result.joint[0]
    if not base:
        raise NoBehaviour(f"the behaviour is not there on these prompts ({run}): the metric has nothing to lose.")
    scale = sign / base
    ends = sorted(scale * end for end in (joint.change.low, joint.change.high) if end is not None)
    controls = tuple(scale * c for c in joint.control_changes)
    at_least = sum(c >= scale * joint.change.mean for c in controls)
    return Effect(
        share=scale * joint.change.mean,
        low=ends[0] if ends else None,
        high=ends[-1] if ends else None,
        n=joint.change.n,
        clusters=joint.change.clusters,
        p=(1 + at_least) / (1 + len(controls)) if controls else None,
        controls=controls,
        drawn=joint.drawn,
        run=run,
        nothing_alone=_nothing_alone(result, named, scale) if len(named) > 1 else (),
        each_part=joint.each_part,
    )


def _nothing_alone(result: AblationResult | PatchingResult, named: Sequence[str], scale: float) -> tuple[str, ...]:
    """Components whose own change, in the claimed direction, has an interval that is not above 0."""
    first = result.effects[0]
    if first.low is None or first.high is None or first.low.values is None or first.high.values is None:
        return ()
    ends = zip(first.low.values, first.high.values, strict=True)
    lows = [min(scale * low, scale * high) for low, high in ends if low is not None and high is not None]
    in_order = sorted(named, key=lambda name: tuple(map(int, re.findall(r"\d+", name))))  # as grids are laid out
    return tuple(name for name, low in zip(in_order, lows, strict=True) if not low > 0)


def _direct(bench: Bench, finding: Finding, common: dict[str, object]) -> Effect:
    """Share of the logit difference that the components write themselves."""
    arguments = {k: v for k, v in common.items() if k != "metric"}
    result, run = bench.technique("direct_logit_attribution", arguments)
    direct = cast(DirectLogitAttributionResult, result)
    return _of_estimate(direct.joint_of(finding.components), direct.total.mean, run)


def _of_estimate(estimate: Estimate, total: float, run: str) -> Effect:
    ends = sorted(e / total for e in (estimate.low, estimate.high) if e is not None)
    return Effect(
        estimate.mean / total, ends[0] if ends else None, ends[-1] if ends else None, estimate.n, estimate.clusters,
        None, (), "none", run,
    )  # fmt: skip
