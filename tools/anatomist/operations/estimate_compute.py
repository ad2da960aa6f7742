"""Say in bytes and seconds what an operation takes on a model, before it is run.

`operation` is a technique (then its `arguments` may be given) or one of load, forward, generate, full_cache,
residual_sweep, head_sweep, attribution_patching, integrated_gradients, train_dictionary. The model is loaded, offline
and converted, a local folder, or plain `sizes`. Returns every part with its formula, the total, the time by a measured
rate, and whether it fits. Nothing is run.
"""

from __future__ import annotations

from pydantic import Field, JsonValue

from ..catalog import Entry, parse_arguments
from ..desk import Desk
from ..devices import memory_available
from ..errors import BadArguments, Unavailable, UnknownName
from ..estimate.calibration import Rate, machine_rate
from ..estimate.cost import Cost, in_bytes
from ..estimate.extent import Extent
from ..estimate.named import NAMED, Work, cost_of_named, standing_parts
from ..estimate.sizes import Dtype, Sizes, sizes_of_name
from ..estimate.techniques import cost_of_technique
from ..operation import Outcome, Where
from ..result import Frozen
from ..runner import prompts_of
from ..technique import Progress

TITLE = "Estimate compute"
WHERE: Where = "server"
READ_ONLY = True
DESTRUCTIVE = False


class Arguments(Frozen):
    operation: str = Field(description="A technique, or: " + ", ".join(NAMED) + ".")
    model: str | None = Field(default=None, description="Handle, offline name or local folder; or give `sizes`.")
    sizes: Sizes | None = Field(default=None, description="Shape by numbers, for a model that is not here.")
    dtype: Dtype | None = Field(default=None, description="Number format, for a model that is not loaded.")
    prompts: int = Field(default=32, ge=1, le=1_000_000, description="Number of prompts (B).")
    tokens: int = Field(default=32, ge=1, le=1_000_000, description="Tokens a prompt (T).")
    steps: int = Field(default=5, ge=1, le=1000, description="Steps of integrated gradients, or new tokens.")
    d_dictionary: int | None = Field(default=None, ge=1, description="Features of a dictionary to train.")
    arguments: dict[str, JsonValue] | None = Field(default=None, description="Arguments of the technique.")


class ComputeEstimate(Outcome):
    """What it would take."""

    operation: str
    sizes: Sizes
    weight_bytes: int = Field(description="The model's weights.")
    kv_bytes_per_token: int = Field(description="Keys and values, per token.")
    loaded: bool = Field(description="Whether the weights are in memory already.")
    cost: Cost
    needed_bytes: int = Field(description="Beyond what is in memory now.")
    available_bytes: int
    fits: bool
    rate: Rate


def run(desk: Desk, arguments: Arguments, progress: Progress) -> ComputeEstimate:
    sizes, rate, loaded = _model(desk, arguments)
    if arguments.operation in NAMED:
        work = Work(arguments.prompts, arguments.tokens, arguments.steps, arguments.d_dictionary)
        cost = cost_of_named(arguments.operation, sizes, work, rate)
    else:
        cost = _technique_cost(desk, arguments, sizes, rate)
    weights, per_token = standing_parts(sizes)
    needed = cost.peak_bytes + (0 if loaded else weights)
    free = memory_available()
    return ComputeEstimate(
        summary=_summary(arguments.operation, cost, needed, free, loaded, weights),
        operation=arguments.operation,
        sizes=sizes,
        weight_bytes=weights,
        kv_bytes_per_token=per_token,
        loaded=loaded,
        cost=cost,
        needed_bytes=needed,
        available_bytes=free,
        fits=needed <= free,
        rate=rate,
    )


def _summary(operation: str, cost: Cost, needed: int, free: int, loaded: bool, weights: int) -> str:
    beside = "" if loaded else f", {in_bytes(weights)} of it weights"
    verdict = "fits" if needed <= free else "does NOT fit: use fewer or shorter prompts, or a smaller dtype"
    return (
        f"{operation}: about {cost.seconds:.2g} s ({cost.flops / 1e9:.3g} GFLOP; {cost.basis}) and {in_bytes(needed)} "
        f"more memory{beside}; {in_bytes(free)} are available: it {verdict}."
    )


def _model(desk: Desk, arguments: Arguments) -> tuple[Sizes, Rate, bool]:
    """Sizes, rate, and whether it is loaded."""
    if (arguments.model is None) == (arguments.sizes is None):
        raise BadArguments("give either `model` (handle, offline name or folder) or `sizes` (numbers), one of the two.")
    held = {m.handle: m for m in desk.loaded()}
    rate = next((m.rate for m in held.values()), None)
    if arguments.sizes is not None:
        return arguments.sizes, rate or machine_rate(), False
    name = arguments.model or ""
    if name in held:
        return Sizes.of_info(held[name].info), held[name].rate, True
    sizes = sizes_of_name(desk.place(name), arguments.dtype)
    if sizes is None:
        raise Unavailable(
            f"the sizes of {name!r} are not known here: it is neither loaded ({', '.join(held) or 'none is'}), nor "
            "converted in the cache, nor a local folder. Load it, or give `sizes` by numbers from its config.json."
        )
    return sizes, rate or machine_rate(), False


def _technique_cost(desk: Desk, arguments: Arguments, sizes: Sizes, rate: Rate) -> Cost:
    if arguments.operation not in desk.catalog.names("technique"):
        known = (*NAMED, *desk.catalog.names("technique"))
        raise UnknownName.of("operation", arguments.operation, known)
    entry = desk.catalog.find(arguments.operation)
    given = _given(desk, entry, arguments)
    rows = _rows(desk, given) or arguments.prompts
    on = Extent(rows, arguments.tokens, budget=desk.budget_bytes)
    return cost_of_technique(entry.module, given, sizes, on, rate)


def _given(desk: Desk, entry: Entry, arguments: Arguments) -> Frozen:
    """The technique's arguments; what is missing of model and prompts does not matter to the cost."""
    own = {"model": arguments.model or "sizes", **(arguments.arguments or {})}
    if "prompts" in entry.arguments.model_fields:
        own.setdefault("prompts", "any")
    return parse_arguments(entry, own)


def _rows(desk: Desk, given: Frozen) -> int | None:
    """Number of prompts, where the arguments name some that are here."""
    prompts = getattr(given, "prompts", None)
    if prompts is None or prompts == "any":
        return None
    resolved = prompts_of(prompts, getattr(given, "split", "discovery"), shelf=desk.shelf, roots=desk.roots)
    return len(resolved.chosen.prompts)


