"""The in-process entry: everything that can be called by name, on models that are held here.

    answer = host.call("logit_lens", {"model": "smollm2-135m", "prompts": "ioi-7f3a"}, progress)
    answer.result       the technique's own frozen Result (its About says what it depends on)
    answer.run_id       'r-0012', or None for operations
    answer.png_path     the picture of the run, or None
    host.state()        WorkerState: send it to the server after each call, which gives it to `desk.note(state)`

To send an answer to another process: `answer.result.model_dump_json()`, and on the other side
`catalog.find(answer.name).result.model_validate_json(text)`. To start again after a crash:
`host.restore(state.models)`.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil

from .catalog import CATALOG, Catalog, Entry, parse_arguments
from .desk import Answer, Desk, LoadedModel, LoadRequest, WorkerState, is_place, quiet
from .devices import existing, free_bytes, memory_available, probe
from .dictionaries.held import DictionaryRequest, Held, LoadedDictionary
from .dictionaries.protocol import Dictionary
from .dictionaries.sources import is_folder
from .errors import AnatomistError, BadArguments, UnknownName, WouldNotFit
from .estimate.calibration import measured_rate
from .estimate.cost import Cost, in_bytes
from .estimate.extent import Extent
from .estimate.sizes import Sizes, bytes_to_load
from .estimate.techniques import cost_of_technique
from .handles import Handles, free_name
from .host_bench import HostBench
from .investigation.noting import admit, note
from .model.protocol import Model
from .model.tokens import first_difference
from .prompts.corpus import Corpus, corpus_of
from .prompts.prompt_set import PromptSet
from .result import Result
from .runner import ResolvedPrompts, prompts_of, run_technique
from .technique import Arguments, OnText, Progress, TextArgument


class Host(Desk):
    """A desk that holds models and runs techniques. One thread of work at a time."""

    def __init__(
        self,
        workspace: Path | str | None = None,
        *,
        allow: Iterable[str | Path] = (),
        catalog: Catalog = CATALOG,
        budget_bytes: int | None = None,
    ) -> None:
        super().__init__(workspace, allow=allow, catalog=catalog, budget_bytes=budget_bytes)
        self._models: dict[str, tuple[LoadedModel, Model]] = {}
        self._handles = Handles(self.workspace / "handles", LoadRequest, "load_model")
        self._dictionaries = Held(self.workspace)

    def state(self) -> WorkerState:
        return WorkerState(
            models=tuple(loaded for loaded, _ in self._models.values()),
            dictionaries=self._dictionaries.loaded(),
            compute=probe(),
            pid=os.getpid(),
            resident_bytes=psutil.Process().memory_info().rss,
        )

    def loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(loaded for loaded, _ in self._models.values())

    def call(
        self, name: str, arguments: Mapping[str, object], progress: Progress = quiet, *, purpose: str = ""
    ) -> Answer:
        """Answer an operation, or run a technique and keep the run; `purpose` names the check a run is made for.

        Raises:
            AnatomistError: every deliberate error, also for memory that ran out on the way.
        """
        entry = self.catalog.find(name)
        parsed = parse_arguments(entry, arguments)
        try:
            if entry.kind == "operation":
                return self._operate(entry, parsed, progress)
            assert isinstance(parsed, Arguments)
            return self._run_noted(entry, parsed, progress, purpose)
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, AnatomistError) or not _ran_out(error):
                raise
            raise self._no_memory(name, error) from error

    def load(self, request: LoadRequest, progress: Progress = quiet) -> LoadedModel:
        """Load a model, or return the one that the same request loaded before.

        Raises:
            WouldNotFit: the weights are larger than the free memory.
            OutsideRoots: a folder that may not be read.
            UnknownName, Unavailable, CorruptFile, ParityError: from the loader.
        """
        for loaded, _ in self._models.values():
            if loaded.request == request:
                return loaded
        self._check_room_to_load(request)
        model = self._load(request, progress)
        loaded = self._loaded_as(free_name(model.info.name, self._models.__contains__), request, model)
        self._models[loaded.handle] = (loaded, model)
        if is_place(request.name):
            self._handles.remember(loaded.handle, request, place="name")
        return loaded

    def model(self, handle: str, progress: Progress = quiet) -> Model:
        """A loaded model by handle, or one that load_model accepts by that name, loaded now.

        Raises:
            UnknownName: neither; the handles and names that exist are listed.
        """
        if handle not in self._models:
            handle = self.load(self._request(handle), progress).handle
        return self._models[handle][1]

    def keep_model(
        self, name: str, write: Callable[[Path], None], like: LoadedModel, progress: Progress = quiet, *,
        numbered: bool = False,
    ) -> tuple[str, Model]:  # fmt: skip
        """Write a model into the workspace under a new name, and load it from there as its original was loaded.

        numbered: where the name is taken, 'name-2' and so on.

        Raises:
            BadArguments: the name is taken, or is none. And all of `load`.
        """
        free = free_name(name, lambda n: self.trained.folder(n).exists() or n in self._models)
        if free != name and not numbered:
            raise BadArguments(f"there is a model {name!r} already; choose another name.")
        name, folder = free, self.trained.folder(free)
        from .model.quiet import quiet as silent  # transformers has progress bars of its own

        scratch = folder.with_name(f".{name}.{os.getpid()}")
        try:
            with silent():
                write(scratch / name)
            (scratch / name).rename(folder)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        backend, info = like.info.backend, like.info
        request = LoadRequest(name=str(folder))
        if backend != "toy":
            request = LoadRequest(name=str(folder), backend=backend, dtype=info.dtype, device=info.device)
        handle = self.load(request, progress).handle
        return handle, self._models[handle][1]

    def unload(self, handle: str) -> LoadedModel:
        """Free a model.

        Raises:
            UnknownName: no model of that handle is loaded.
        """
        if handle not in self._models:
            raise UnknownName.of("loaded model", handle, self._models, "Call list_models.")
        loaded, model = self._models.pop(handle)
        self._dictionaries.drop(handle)
        model.close()
        del model
        gc.collect()  # parameter cycles would keep the weights otherwise
        return loaded

    def load_dictionary(
        self, request: DictionaryRequest, model: str, text: TextArgument = "python", progress: Progress = quiet
    ) -> LoadedDictionary:
        """Load an SAE or transcoder for a model, and measure it there on some text.

        Raises:
            OutsideRoots: a folder that may not be read. And all of `Held.load`.
        """
        if is_folder(request.sae):
            request = request.model_copy(update={"sae": str(self.roots.check(request.sae))})
        held, handle = self.model(model, progress), self._loaded(model).handle
        return self._dictionaries.load(request, held, handle, corpus_of(text, self.roots), progress)

    def unload_dictionary(self, handle: str) -> LoadedDictionary:
        """Free an SAE or transcoder.

        Raises:
            UnknownName: none of that handle is loaded.
        """
        return self._dictionaries.unload(handle)

    def restore(self, models: Iterable[LoadedModel], progress: Progress = quiet) -> None:
        """Load what another worker held, under the same handles."""
        for old in models:
            if old.handle not in self._models:
                model = self._load(old.request, progress)
                self._models[old.handle] = (self._loaded_as(old.handle, old.request, model), model)

    def resolve(self, prompts: object, split: str) -> ResolvedPrompts:
        """Prompts from a handle, a JSONL file in the allowed folders, or a list."""
        return prompts_of(prompts, split, shelf=self.shelf, roots=self.roots)

    def text(self, arguments: Arguments) -> Corpus | None:
        """The running text that a call names."""
        return corpus_of(arguments.text, self.roots) if isinstance(arguments, OnText) else None

    def dictionary(self, arguments: Arguments, progress: Progress = quiet) -> Dictionary | None:
        """The SAE or transcoder that a call names, loaded and measured now if it is not."""
        name = getattr(arguments, "sae", None)
        return self.named_dictionary(name, arguments.model, progress) if name else None

    def named_dictionary(self, name: str, model: str, progress: Progress = quiet) -> Dictionary:
        """A dictionary by handle, or by a name that load_sae accepts, for a model."""
        name = str(self.roots.check(name)) if is_folder(name) else name
        held, handle = self.model(model, progress), self._loaded(model).handle
        return self._dictionaries.get(name, held, handle, corpus_of("python", self.roots), progress)

    def cost(self, entry: Entry, arguments: Arguments, prompts: PromptSet | None) -> Cost:
        """What a technique would take on a loaded model."""
        loaded = self._loaded(arguments.model)
        budget, bos = self._budget(loaded.info.device), getattr(arguments, "bos", None)
        on = Extent(1, 1, budget=budget)
        if prompts is not None:
            on = _extent(self.model(arguments.model), prompts, bos, budget)
        return cost_of_technique(entry.module, arguments, Sizes.of_info(loaded.info), on, loaded.rate)

    def bench(self, investigation: str, finding: str, progress: Progress) -> HostBench:
        """What the checks of a finding work on."""
        return HostBench(
            self.call, lambda model: self.model(model).info.shape, investigation, f"check of {finding}", progress
        )

    def _run_noted(self, entry: Entry, arguments: Arguments, progress: Progress, purpose: str) -> Answer:
        """Run a technique; within an investigation the run is written into its record."""
        if arguments.investigation is None:
            return self._run(entry, arguments, progress)
        split = getattr(arguments, "split", None)
        label = admit(self.ledger, arguments.investigation, split)
        answer = self._run(entry, arguments, progress)
        assert isinstance(answer.result, Result)
        note(self.ledger, arguments.investigation, answer.result, label=label, split=split, purpose=purpose)
        return answer

    def _run(self, entry: Entry, arguments: Arguments, progress: Progress) -> Answer:
        progress(0, 1, f"{entry.name}: preparing {arguments.model}")
        model = self.model(arguments.model, progress)
        loaded = self._loaded(arguments.model)
        named = getattr(arguments, "prompts", None)
        prompts = None if named is None else self.resolve(named, getattr(arguments, "split", "discovery"))
        cost = self.cost(entry, arguments, prompts.chosen if prompts else None)
        self._check_room_to_run(entry, cost, loaded.info.device)
        kept = run_technique(
            entry, arguments, model=model, handle=loaded.handle, prompts=prompts, store=self.store,
            progress=progress, budget_bytes=self._budget(loaded.info.device), text=self.text(arguments),
            dictionary=self.dictionary(arguments, progress),
            find_dictionary=lambda name: self.named_dictionary(name, arguments.model, progress),
            keep_model=lambda name, write, *, numbered=False: self.keep_model(
                name, write, loaded, progress, numbered=numbered
            ),
            estimated=cost,
        )  # fmt: skip
        return Answer(entry.name, kept.result, kept.run_id, kept.png_path)

    def _loaded(self, name: str) -> LoadedModel:
        """The loaded model that a handle, or the name it was loaded by, stands for."""
        if name in self._models:
            return self._models[name][0]
        request = self._request(name)
        return next(loaded for loaded, _ in self._models.values() if loaded.request == request)

    def _load(self, request: LoadRequest, progress: Progress) -> Model:
        from .model.loading import load_model  # torch and the frameworks, only in the process that holds models

        try:
            return load_model(
                self.place(request.name),
                backend=request.backend,
                dtype=request.dtype,
                device=request.device,
                revision=request.revision,
                check_parity=request.check_parity,
                progress=progress,
                roots=self.roots.folders,
            )
        except UnknownName as error:
            held, trained = ", ".join(self._models) or "none", ", ".join(self.trained.names()) or "none"
            raise UnknownName(f"{error} Loaded handles: {held}. Trained in this workspace: {trained}.") from None

    def _loaded_as(self, handle: str, request: LoadRequest, model: Model) -> LoadedModel:
        info = model.info.model_copy(update={"name": handle})
        return LoadedModel(handle=handle, request=request, info=info, rate=measured_rate(model))

    def _request(self, name: str) -> LoadRequest:
        """The name itself where load_model knows it; else what was asked for when a model was given this handle."""
        from .model.loading import known_names

        known = is_place(name) or name in known_names()
        return (None if known else self._handles.recall(name)) or LoadRequest(name=name)

    def _check_room_to_load(self, request: LoadRequest) -> None:
        need = bytes_to_load(self.place(request.name), request.dtype)
        free = memory_available() if request.device in (None, "cpu") else free_bytes(request.device)
        if need is not None and need > free:
            raise WouldNotFit(
                f"loading {request.name!r} needs about {in_bytes(need)}; {in_bytes(free)} are free. "
                f"Unload a model ({', '.join(self._models) or 'none is loaded'}), or ask for dtype='bfloat16'."
            )

    def _check_room_to_run(self, entry: Entry, cost: Cost, device: str) -> None:
        free, disk = free_bytes(device), shutil.disk_usage(existing(self.workspace)).free
        if cost.disk_bytes > disk:
            raise WouldNotFit(
                f"{entry.name} would write about {in_bytes(cost.disk_bytes)} ({cost.largest()}); {in_bytes(disk)} are "
                f"free where the workspace is ({self.workspace}). Keep fewer places or prompts, or free some space."
            )
        if cost.peak_bytes > free:
            raise WouldNotFit(
                f"{entry.name} needs about {in_bytes(cost.peak_bytes)} ({cost.largest()}); {in_bytes(free)} are free "
                f"on {device}. Use fewer or shorter prompts or fewer places, or unload a model; estimate_compute "
                "shows each part."
            )

    def _budget(self, device: str) -> int:
        """The setting, or half of what is free where that is less."""
        return min(self.budget_bytes, free_bytes(device) // 2)

    def _no_memory(self, name: str, error: BaseException) -> WouldNotFit:
        gc.collect()
        return WouldNotFit(
            f"{name} ran out of memory ({in_bytes(memory_available())} free now): {str(error).splitlines()[0][:200]}. "
            "Use fewer or shorter prompts, or unload a model; estimate_compute shows what it takes."
        )


def _extent(model: Model, prompts: PromptSet, bos: bool | None, budget: int) -> Extent:
    """The size of the work on some prompts."""
    clean = model.tokenize([p.clean for p in prompts.prompts], bos=bos)
    others = [p.corrupted for p in prompts.prompts if p.corrupted is not None]
    if len(others) < clean.n_rows:
        return Extent(clean.n_rows, clean.width, budget=budget)
    corrupted = model.tokenize(others, bos=bos)
    alike = [first_difference(a, b) for a, b in zip(clean.ids, corrupted.ids, strict=True)]
    return Extent(clean.n_rows, clean.width, sum(alike) / len(alike), budget)


def _ran_out(error: BaseException) -> bool:
    text = str(error).lower()
    return isinstance(error, MemoryError) or "out of memory" in text or "can't allocate memory" in text
