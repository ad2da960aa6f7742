"""Train a small model whose inner workings are known from the literature, and measure what it learned.

Kinds: `induction` (two attention-only layers on repeated random tokens; seconds to a minute), `modular_addition` (one
block that adds modulo p: it memorises, then generalises; some minutes; with the progress measures of Nanda et al.,
arXiv 2301.05217) and `superposition` (more features than dimensions, Elhage et al. 2022; seconds to a minute). Comes
back: the loss curves, what was measured, a picture, and for the first two a handle that every technique takes, with one
for each checkpoint (`name@step`), also after a restart. Stopped or killed, the same call goes on where it was and comes
to the same figures; the same call again returns what is there. Toys whose circuit was written or compiled need no
training: list_models.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from ..desk import LoadRequest
from ..errors import BadArguments, CorruptFile
from ..figures import Figure, Lines, Series
from ..host import Host
from ..model.trained import checkpoint_handle, checkpoints
from ..operation import Outcome, Where
from ..result import Frozen, Grid
from ..technique import Progress, Seed
from ..training.learned import SMALLEST, AdditionLearned, FeatureGeometry, InductionLearned

TITLE = "Train a toy model"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False
ONE_SEED = (
    "This is one seed. What training finds differs from seed to seed: call again with other seeds, three at least, "
    "before saying what such models learn."
)

Kind = Literal["induction", "modular_addition", "superposition"]


class Arguments(Frozen):
    """Arguments of train_toy_model; what a kind does not take is refused."""

    kind: Annotated[Kind, Field(description="What is trained.")]
    seed: Seed = 0
    name: Annotated[
        str | None, Field(description="Name of the model; made from the kind and the settings when absent.")
    ] = None
    steps: Annotated[
        int | None, Field(ge=1, le=200_000, description="Steps; 750, 3000 and 2000 for the three kinds when absent.")
    ] = None
    learning_rate: Annotated[
        float | None, Field(gt=0, le=1, description="Largest step size; .003, .001 and .01 when absent.")
    ] = None
    weight_decay: Annotated[
        float | None, Field(ge=0, le=10, description="Transformers: 0 for induction, 1 for addition when absent.")
    ] = None
    width: Annotated[
        int | None,
        Field(ge=8, le=512, multiple_of=4, description="Transformers: residual width; 64 and 128 when absent."),
    ] = None
    vocabulary: Annotated[int | None, Field(ge=8, le=1024, description="induction: number of tokens (64).")] = None
    context: Annotated[int | None, Field(ge=12, le=256, description="induction: tokens in a row (48).")] = None
    modulus: Annotated[
        int | None, Field(ge=5, le=127, description="modular_addition: p, an odd number (59).")
    ] = None
    train_share: Annotated[
        float | None, Field(ge=0.05, le=0.95, description="modular_addition: share of all pairs trained on (.5).")
    ] = None
    features: Annotated[int | None, Field(ge=2, le=64, description="superposition: number of features (5).")] = None
    dimensions: Annotated[int | None, Field(ge=1, le=32, description="superposition: hidden dimensions (2).")] = None
    sparsities: Annotated[
        tuple[Annotated[float, Field(ge=0, lt=1)], ...] | None,
        Field(min_length=1, max_length=12, description="superposition: probabilities that a feature is 0 (0, .7, .95)"),
    ] = None
    importance_decay: Annotated[
        float | None, Field(gt=0, le=1, description="superposition: feature i counts decay^i in the loss (.9).")
    ] = None
    starts: Annotated[
        int | None, Field(ge=1, le=256, description="superposition: random starts, of which the best is taken (16).")
    ] = None


class ToyTrained(Outcome):
    """A trained toy."""

    name: str = Field(description="Name of the model.")
    model: str | None = Field(description="Handle: pass it as `model`; absent for superposition: it reads no tokens.")
    checkpoints: tuple[str, ...] = Field(description="Handles of the model during training, or steps kept on disk.")
    folder: str = Field(description="Where weights, checkpoints, curves and picture are.")
    parameters: int = Field(description="Number of weights (of one start, for superposition).")
    steps: int = Field(description="Steps trained.")
    seconds: float = Field(description="Seconds that training took, in the call that finished it.")
    resumed_from: int | None = Field(description="Step from which that call went on; absent if it began at 0.")
    curves: Grid = Field(description="Losses while training, on samples that no step drew or as named.")
    induction: InductionLearned | None = Field(default=None, description="What a model of that kind learned.")
    modular_addition: AdditionLearned | None = Field(default=None, description="What a model of that kind learned.")
    superposition: tuple[FeatureGeometry, ...] = Field(default=(), description="One per sparsity, for that kind.")
    picture: str = Field(description="File of the picture.")


def run(host: Host, arguments: Arguments, progress: Progress) -> ToyTrained:
    """Train, measure, draw, and load the model.

    Raises:
        BadArguments: a setting of another kind, or a name that is taken by a model of other settings.
        Cancelled: stopped by the caller; the same call goes on from there.
        Unavailable: another process is training this model. NotFinite: the loss became NaN.
    """
    settings = _settings(arguments)
    name = arguments.name or _name(arguments.kind, settings)
    folder = _claimed(host, name, arguments.kind, settings)
    outcome = _finished(folder) or _train(arguments.kind, name, settings, folder, progress)
    outcome = outcome.model_copy(update={"folder": str(folder), "picture": str(folder / "picture.png")})
    if outcome.model is None:
        return outcome
    return outcome.model_copy(update={"model": host.load(LoadRequest(name=name), progress).handle})


def _settings(arguments: Arguments) -> dict[str, Any]:
    """Every setting of the kind, the defaults filled in."""
    from ..training.kinds import KINDS  # torch, where it is needed

    defaults = KINDS[arguments.kind].defaults()
    given = {k: v for k, v in arguments.model_dump(exclude={"kind", "name"}).items() if v is not None}
    if strange := sorted(given.keys() - defaults.keys()):
        raise BadArguments(
            f"train_toy_model: {', '.join(strange)} means nothing for {arguments.kind!r}, which takes "
            f"{', '.join(defaults)}; leave the rest out."
        )
    settings = {**defaults, **given}
    if settings.get("modulus", 1) % 2 == 0:
        raise BadArguments(f"the modulus {settings['modulus']} is even; frequencies pair up for odd ones only, as 59.")
    return settings


def _name(kind: Kind, settings: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps([kind, settings]).encode()).hexdigest()[:4]
    return f"trained-{kind.replace('_', '-')}-{digest}"


def _claimed(host: Host, name: str, kind: Kind, settings: dict[str, Any]) -> Path:
    """The model's folder, with what it is trained on written down.

    Raises:
        BadArguments: the name means something else already.
    """
    from ..model.loading import known_names

    folder = host.trained.folder(name)
    if name in known_names():
        raise BadArguments(f"{name!r} is the name of a model that comes with the library; choose another.")
    asked, file = json.loads(json.dumps({"kind": kind, **settings})), folder / "training.json"
    if file.is_file():
        there = json.loads(file.read_text(encoding="utf-8"))
        if there != asked:
            keys = [k for k in dict.fromkeys([*there, *asked]) if there.get(k) != asked.get(k)]
            differ = ", ".join(f"{k} {there.get(k)!r} there, {asked.get(k)!r} asked for" for k in keys)
            raise BadArguments(f"{name!r} was trained with other settings ({differ}); give another name.")
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    scratch = folder / ".training.json"
    scratch.write_text(json.dumps(asked, indent=1), encoding="utf-8")
    scratch.replace(file)
    return folder


def _finished(folder: Path) -> ToyTrained | None:
    """The outcome of an earlier call."""
    file = folder / "outcome.json"
    if not file.is_file():
        return None
    try:
        return ToyTrained.model_validate_json(file.read_text(encoding="utf-8"))
    except ValidationError as error:
        raise CorruptFile(f"{file} cannot be read: {error}. Remove it; the same call measures again.") from error


def _train(kind: Kind, name: str, settings: dict[str, Any], folder: Path, progress: Progress) -> ToyTrained:
    from ..training.kinds import KINDS
    from ..training.measuring import curves_grid

    trained, learned = KINDS[kind].train({"name": name, **settings}, folder, progress)
    reads_tokens, starts = kind != "superposition", settings.get("starts", 1) * len(settings.get("sparsities", (0,)))
    parts: tuple[Any, ...] = learned if isinstance(learned, tuple) else (learned,)
    said = " ".join(f"{part.words().rstrip('.')}." for part in parts)
    measured: dict[str, Any] = {kind: learned}
    kept = checkpoints(folder)
    outcome = ToyTrained(
        summary=f"{name}: {settings['steps']} steps in {trained.seconds:.0f} s. {said} " + _next(name, kind, kept),
        warnings=(*(told for part in parts for told in part.warnings()), ONE_SEED),
        name=name,
        model=name if reads_tokens else None,
        checkpoints=tuple(checkpoint_handle(name, step) for step in kept) if reads_tokens else tuple(map(str, kept)),
        folder=str(folder),
        parameters=sum(x.numel() for x in trained.weights.values()) // starts,
        steps=settings["steps"],
        seconds=trained.seconds,
        resumed_from=trained.resumed_from,
        curves=curves_grid(trained, KINDS[kind].unit),
        picture=str(folder / "picture.png"),
        **measured,
    )
    _keep(folder, outcome, KINDS[kind].caption)
    return outcome


def _next(name: str, kind: Kind, kept: dict[int, Path]) -> str:
    if kind == "superposition":
        return f"Weights of every start at steps {', '.join(map(str, kept))} lie in the folder."
    some = checkpoint_handle(name, list(kept)[len(kept) // 2])
    return f"Next: detect_heads, ablate or any technique with model={name!r}, or a checkpoint such as {some!r}."


def plot(outcome: ToyTrained, caption: str) -> Figure:
    """The loss curves, and what was measured of this kind."""
    learned = outcome.induction or outcome.modular_addition
    measured = learned.panels() if learned else tuple(g.panel() for g in outcome.superposition if len(g.angles))
    return Figure(
        title=f"{outcome.name}: {outcome.steps} steps",
        caption=f"{outcome.parameters:,} weights, one seed. {caption}",
        panels=(_curves(outcome.curves), *measured),
        columns=2,
    )


def _curves(curves: Grid) -> Lines:
    """The losses; curves of another unit are left out."""
    n, values = len(curves.axes[1].labels), curves.values or ()
    series = [
        Series(name=name, values=tuple(max(SMALLEST, v or 0.0) for v in values[i * n : (i + 1) * n]))
        for i, name in enumerate(curves.axes[0].labels)
        if not name.startswith("accuracy")
    ]
    return Lines(
        title="loss while training", x_title="step", x=tuple(map(float, curves.axes[1].labels)),
        y_title=curves.unit.partition(";")[0], series=tuple(series), log_y=True,
    )  # fmt: skip


def _keep(folder: Path, outcome: ToyTrained, caption: str) -> None:
    """Draw it and write it down; the outcome last, since it says that everything is there."""
    from ..drawing import png

    figure = plot(outcome, caption)
    (folder / "figure.json").write_text(figure.model_dump_json(), encoding="utf-8")
    (folder / "picture.png").write_bytes(png(figure))
    scratch = folder / ".outcome.json"
    scratch.write_text(outcome.model_dump_json(), encoding="utf-8")
    scratch.replace(folder / "outcome.json")
