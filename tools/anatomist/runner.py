"""Run a technique: resolve its prompts, seed, compute, stamp what the numbers depend on, draw, and keep the run."""

from __future__ import annotations

import hashlib
import json
import logging
import random
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from .arrays import as_floats
from .catalog import Entry
from .dictionaries.protocol import Dictionary
from .errors import BadPrompts, NotFinite
from .estimate.cost import Cost
from .model.protocol import Model, ModelInfo
from .prompts.corpus import Corpus
from .prompts.given import inline_set, load_jsonl
from .prompts.prompt_set import Prompt, PromptSet, kept_back
from .provenance import git_state, machine, versions
from .result import About, Result
from .roots import Roots
from .shelf import Shelf
from .store import RunWriter, Store
from .technique import Arguments, Context, KeepModel, KeptArray, Progress
from .tracking import configured, track

log = logging.getLogger(__name__)
NOTED_EVERY = 0.5  # seconds between notes of progress in the workspace
CONFIRMATORY = 32  # prompts; fewer are marked exploratory
_NOT_FINITE = frozenset({"finite_number"})


@dataclass(frozen=True)
class ResolvedPrompts:
    """The prompts a call names, and where they came from."""

    chosen: PromptSet
    source: str  # handle, file, or 'inline'
    held_out: PromptSet | None = None  # the part kept back, where discovery prompts of a generated set were chosen


@dataclass(frozen=True)
class KeptRun:
    """A run that is stored."""

    run_id: str
    result: Result
    png_path: Path | None


def prompts_of(prompts: object, split: str, *, shelf: Shelf, roots: Roots) -> ResolvedPrompts:
    """Prompts from a handle, a `.jsonl` file inside the roots, or a list.

    Raises:
        UnknownName: no prompt set of that handle.
        OutsideRoots, Unavailable: a file that may not be read or is not there.
        CorruptFile, BadPrompts: no prompts, a line that is none, or a held-out part that such prompts do not have.
    """
    if isinstance(prompts, str) and not prompts.endswith(".jsonl"):
        pair = shelf.get(prompts)
        if split == "held_out":
            return ResolvedPrompts(pair.held_out, prompts)
        if split == "kept_back":
            return ResolvedPrompts(kept_back(pair.discovery, pair.held_out), prompts)
        return ResolvedPrompts(pair.discovery, prompts, pair.held_out)
    chosen = load_jsonl(prompts, roots) if isinstance(prompts, str) else inline_set(_listed(prompts))
    if split != "discovery":
        raise BadPrompts(f"{chosen.handle!r} has no held-out part; leave `split` out, or call make_prompts.")
    return ResolvedPrompts(chosen, prompts if isinstance(prompts, str) else "inline")


def run_technique(
    entry: Entry,
    arguments: Arguments,
    *,
    model: Model,
    handle: str,
    prompts: ResolvedPrompts | None,
    store: Store,
    progress: Progress,
    budget_bytes: int,
    text: Corpus | None = None,
    dictionary: Dictionary | None = None,
    find_dictionary: Callable[[str], Dictionary] | None = None,
    keep_model: KeepModel | None = None,
    estimated: Cost | None = None,
) -> KeptRun:
    """Run a technique and keep the run; nothing is kept when it raises.

    Raises:
        NotFinite: a number of the result is NaN or infinite.
        AnatomistError: from the technique.
    """
    tracker = configured()
    _seed(arguments.seed)
    _threads()
    with store.writing() as writer:
        context = Context(
            model=model, prompts=prompts.chosen if prompts else None, held_out=prompts.held_out if prompts else None,
            progress=_watched(entry.name, writer, progress), budget_bytes=budget_bytes, text=text,
            saved=partial(_saved, store), dictionary=dictionary, find_dictionary=find_dictionary,
            stream=writer.stream, keep_model=keep_model, random_twin=partial(_random_twin, model),
        )  # fmt: skip
        started, clock = datetime.now(UTC), time.perf_counter()
        found = _compute(entry, context, arguments)
        seconds = time.perf_counter() - clock
        about = _about(entry, arguments, writer.id, handle, model.info, prompts, seconds, estimated)
        result = found.model_copy(update={"about": about})
        result = _draw(entry, result, writer)
        for name, kept in context.arrays.items():
            writer.array(name, kept.tensor, axes=kept.axes, unit=kept.unit)
        writer.text("arguments.json", arguments.model_dump_json(indent=1))
        writer.text("result.json", result.model_dump_json())
        provenance = _provenance(about, model.info, prompts, text, started, estimated)
        if dictionary is not None:
            provenance = {**provenance, "dictionary": dictionary.info.model_dump()}
        writer.text("provenance.json", json.dumps(provenance, indent=1))
    final = store.get(writer.id)
    result = track(result, arguments.model_dump(mode="json"), final.picture, store.folder.parent, tracker)
    return KeptRun(writer.id, result, final.picture)


def _watched(technique: str, writer: RunWriter, progress: Progress) -> Progress:
    """The same progress, also noted where someone who looks at the workspace finds it."""
    noted = float("-inf")

    def report(done: float, total: float, what: str) -> None:
        nonlocal noted
        if time.monotonic() - noted >= NOTED_EVERY:
            noted = time.monotonic()
            writer.progress(technique, done, total, what)
        progress(done, total, what)

    return report


def _random_twin(model: Model, seed: int) -> Model:
    from .model.loading import random_twin  # torch and the frameworks, only where a technique asks for a twin

    return random_twin(model, seed)


def _compute(entry: Entry, context: Context, arguments: Arguments) -> Result:
    try:
        return entry.module.run(context, arguments)
    except ValidationError as error:
        places = [".".join(map(str, e["loc"])) for e in error.errors() if e["type"] in _NOT_FINITE]
        if not places:
            raise
        raise NotFinite(
            f"{entry.name} came to NaN or infinity at {', '.join(places[:5])}"
            f"{f' and {len(places) - 5} more places' if len(places) > 5 else ''}. Check the model's weights and the "
            "prompts (check_prompts), or load the model with dtype='float32'."
        ) from error


def _draw(entry: Entry, result: Result, writer: RunWriter) -> Result:
    """Keep the picture; numbers that cannot be drawn are kept all the same, and say so."""
    from .drawing import png  # the drawing library takes a while to import

    try:
        figure = entry.module.plot(result)
        writer.text("figure.json", figure.model_dump_json())
        writer.data("picture.png", png(figure))
    except Exception as error:
        log.exception("the picture of %s could not be drawn", writer.id)
        warning = f"The picture could not be drawn ({type(error).__name__}: {error}); the numbers are complete."
        return result.model_copy(update={"warnings": (*result.warnings, warning)})
    return result


def _about(
    entry: Entry, arguments: Arguments, run_id: str, handle: str, info: ModelInfo,
    prompts: ResolvedPrompts | None, seconds: float, estimated: Cost | None,
) -> About:  # fmt: skip
    n = len(prompts.chosen.prompts) if prompts else None
    bos = getattr(arguments, "bos", None)
    return About(
        run=run_id,
        technique=entry.name,
        model=handle if handle == info.source else f"{handle} ({info.source})",
        backend=info.backend,
        dtype=info.dtype,
        device=info.device,
        bos=info.adds_bos if bos is None else bos,
        seed=arguments.seed,
        n=n,
        exploratory=n is None or n < CONFIRMATORY,
        seconds=seconds,
        estimated_seconds=estimated.seconds if estimated else None,
        versions=versions(),
    )


def _provenance(
    about: About, info: ModelInfo, prompts: ResolvedPrompts | None, text: Corpus | None, started: datetime,
    estimated: Cost | None,
) -> Mapping[str, object]:  # fmt: skip
    return {
        "about": about.model_dump(),
        "started": started.isoformat(),
        "model": info.model_dump(),
        "prompts": _prompts_provenance(prompts) if prompts else None,
        "text": _text_provenance(text) if text else None,
        "estimate": estimated.model_dump() if estimated else None,
        "machine": machine(),
        "git": git_state(Path.cwd()),
    }


def _prompts_provenance(prompts: ResolvedPrompts) -> Mapping[str, object]:
    chosen = prompts.chosen
    text = chosen.model_dump_json(exclude={"handle"})
    return {
        "source": prompts.source,
        "task": chosen.task,
        "split": chosen.split,
        "seed": chosen.seed,
        "n": len(chosen.prompts),
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
    }


def _text_provenance(text: Corpus) -> Mapping[str, object]:
    digest = hashlib.sha256("\0".join(text.documents).encode()).hexdigest()
    return {"source": text.name, "documents": len(text.documents), "characters": text.characters, "sha256": digest}


def _saved(store: Store, run: str, name: str) -> KeptArray:
    """An array of an earlier run, as a tensor."""
    import torch

    array, values = store.get(run).array(name)
    return KeptArray(torch.from_numpy(as_floats(array, values).copy()), tuple(array.axes), array.unit)


def _listed(prompts: object) -> Sequence[Prompt]:
    assert isinstance(prompts, Sequence)  # the arguments' schema has seen to it
    return prompts


def _threads() -> None:
    """As many as are fastest now, where a model computes."""
    if "torch" in sys.modules:
        from .model.threads import reconsider_threads

        reconsider_threads()


def _seed(seed: int) -> None:
    """Seed every generator that is loaded; techniques draw from generators of their own besides."""
    random.seed(seed)
    if numpy := sys.modules.get("numpy"):
        numpy.random.seed(seed)
    if torch := sys.modules.get("torch"):
        torch.manual_seed(seed)
