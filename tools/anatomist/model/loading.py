"""A name, a folder or a hub id -> Model. One call, whatever it is loaded from and whichever backend runs it.

Every Hugging Face model is measured once against itself: the log-probabilities of a short text by the plain model,
before anything wraps it, against those of our own `run` after. A model that disagrees is refused.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BadArguments, NotFinite, ParityError, Unsupported
from .backends.toy import ToyModel
from .backends.toy_circuits import TOYS
from .backends.toy_file import load_toy, untrained_twin
from .checkpoint import Source, find, inside, read_checkpoint
from .offline import OFFLINE, Progress
from .placement import torch_device, torch_dtype
from .programs import PROGRAMS, program_file
from .protocol import Model, Parity
from .quiet import quiet
from .threads import use_threads
from .trained import TOY_FILE

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PARITY_TEXT = "The quick brown fox jumps over the lazy dog, and then it rests."
# Largest difference of log-probabilities accepted at load (nats): what another order of summation does in each dtype.
TOLERANCE = {"float32": 5e-4, "float16": 5e-2, "bfloat16": 2.5e-1}


def known_names() -> tuple[str, ...]:
    """Names that `load_model` knows without a folder or a hub: offline models, toys and compiled programs."""
    return (*OFFLINE, *TOYS, *PROGRAMS)


def load_model(
    name: str,
    *,
    backend: str | None = None,
    dtype: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    check_parity: bool = True,
    parity_tolerance: float | None = None,
    progress: Progress | None = None,
    roots: Sequence[str | Path] | None = None,
    threads: int | None = None,
) -> Model:
    """Load a model.

    name: an offline name, toy or compiled program (`known_names()`), a local folder (safetensors, GGUF, a trained toy),
        or a hub id.
    backend: `local` (TransformerLens; the default), `nnsight`, or `toy` for toys.
    dtype: float32, bfloat16 or float16; absent: float32 on the CPU, the checkpoint's own on an accelerator.
    device: as torch writes it (cpu, cuda:0, mps); absent: the first CUDA device, else the CPU.
    revision: of a hub id. check_parity: False loads a model that disagrees with its plain reference all the same.
    parity_tolerance: in nats; absent: by dtype. roots: folders that local models must lie in; absent: anywhere.
    threads: compute threads; absent: the setting ANATOMIST_THREADS, or measured.

    Raises:
        UnknownName: no such model. BadArguments: an argument that cannot be used. OutsideRoots: a folder not allowed.
        Unavailable: a file or a network that is not there. CorruptFile: weights that are damaged or incomplete.
        Unsupported: pickled weights, or an architecture the backend does not know.
        NotFinite: the weights give NaN. ParityError: the model disagrees with its plain reference.
    """
    start = time.perf_counter()
    say = progress or _silent
    use_threads(threads)
    if (make := _toy_maker(name, roots)) is not None:
        return _toy(name, make, backend, dtype, device)
    chosen = _backend(name, backend)
    place = torch_device(device)
    kind = torch_dtype(dtype, place)
    source = find(
        name, known=known_names(), revision=revision, roots=roots,
        progress=lambda done, total, what: say(0.6 * done / total, 1.0, what),
    )  # fmt: skip
    say(0.6, 1.0, f"reading the weights of {source.name}")
    checkpoint = read_checkpoint(source, kind, place)
    say(0.8, 1.0, f"preparing {source.name} for the {chosen} backend")
    model = _wrap(checkpoint.model, checkpoint.tokenizer, source, chosen, start, check_parity, parity_tolerance)
    say(1.0, 1.0, f"{source.name} is loaded")
    return model


def wrap_model(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    name: str,
    backend: str | None = None,
    check_parity: bool = True,
    parity_tolerance: float | None = None,
) -> Model:
    """A Model over a Hugging Face model in memory, which is wrapped in place and belongs to it from now on.

    Raises:
        BadArguments, NotFinite, ParityError, Unsupported: as `load_model`.
    """
    source = Source(name, "in memory", Path())
    start = time.perf_counter()
    return _wrap(hf_model, tokenizer, source, _backend("", backend), start, check_parity, parity_tolerance)


def random_twin(model: Model, seed: int) -> Model:
    """A model of the same configuration with freshly drawn weights: the reference for scores that need no training.

    Raises:
        Unsupported: the model has no configuration to draw from (toys that were written or compiled).
    """
    if isinstance(model, ToyModel) and model.learned:
        return untrained_twin(model, seed)
    plain: Any = getattr(model, "_hf", None)
    if plain is None:
        raise Unsupported(
            f"{model.info.name} has no configuration to draw random weights from, for its own were written and not "
            "learned; use a trained toy, or a model of the local or nnsight backend that is loaded."
        )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        twin = type(plain)._from_config(
            copy.deepcopy(plain.config), dtype=plain.dtype, attn_implementation=model.info.attention
        )
    tokenizer = getattr(getattr(model, "text", None), "tokenizer", None)
    name = f"{model.info.name}-random-{seed}"
    return wrap_model(twin.to(plain.device).eval(), tokenizer, name=name, backend=model.info.backend)


def _backend(name: str, backend: str | None) -> str:
    """The backend to use, if there is such a one for this model."""
    if backend not in (None, *_BACKENDS):
        raise BadArguments(
            f"backend {backend!r} cannot load {name or 'this model'!r}; choose one of {', '.join(_BACKENDS)}, or leave "
            "it out."
        )
    return backend or "local"


def _toy_maker(name: str, roots: Sequence[str | Path] | None) -> Callable[[], ToyModel] | None:
    """What makes the toy of a name or a folder; None where it names no toy."""
    if name in TOYS:
        return TOYS[name]
    if name in PROGRAMS:
        return partial(load_toy, program_file(name))
    if name.strip() and (Path(name).expanduser() / TOY_FILE).is_file():
        return partial(load_toy, inside(name, roots) / TOY_FILE)
    return None


def _toy(
    name: str, make: Callable[[], ToyModel], backend: str | None, dtype: str | None, device: str | None
) -> Model:
    if backend not in (None, "toy"):
        raise BadArguments(f"{name!r} runs on the toy backend alone, not on {backend!r}; leave backend out.")
    place = torch_device(device or "cpu")
    if place.type != "cpu" or torch_dtype(dtype, place) != torch.get_default_dtype():
        raise BadArguments(f"{name!r} is made for float32 on the CPU; leave dtype out and device out or 'cpu'.")
    return make()


def _local(*arguments: Any, **named: Any) -> Model:
    from .backends.local import LocalModel  # TransformerLens takes seconds to import

    return LocalModel(*arguments, **named)


def _nnsight(*arguments: Any, **named: Any) -> Model:
    from .backends.nnsight import NNsightModel

    return NNsightModel(*arguments, **named)


_BACKENDS: dict[str, Callable[..., Model]] = {"local": _local, "nnsight": _nnsight}


def _wrap(
    hf_model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    source: Source,
    backend: str,
    start: float,
    check_parity: bool,
    tolerance: float | None,
) -> Model:
    """Measure the plain model, give it to the backend, and measure again."""
    reference = Reference.of(hf_model, tokenizer)
    with quiet():
        model: Any = _BACKENDS[backend](
            hf_model, tokenizer, name=source.name, source=source.given, revision=source.revision
        )
    parity = reference.compare(model, tolerance)
    if check_parity and parity.max_logprob_difference > parity.tolerance:
        raise ParityError(
            f"{source.name} through the {backend} backend differs from the plain model by "
            f"{parity.max_logprob_difference:.3g} nats on {parity.text!r}; at most {parity.tolerance:.3g} is accepted. "
            "Choose another backend or dtype, or load with check_parity=False and treat every number with suspicion."
        )
    model.info = model.info.model_copy(update={"parity": parity, "load_seconds": time.perf_counter() - start})
    return model


@dataclass(frozen=True, eq=False)
class Reference:
    """Log-probabilities of a short text by a plain model."""

    ids: tuple[int, ...]
    text: str
    logprobs: Float[Tensor, "T d_vocab"]

    @classmethod
    def of(cls, hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> Reference:
        """
        Raises:
            NotFinite: the plain model gives NaN or infinity; the weights that do are named.
        """
        ids, text = _text(hf_model, tokenizer)
        with torch.no_grad():
            logits = hf_model.eval()(torch.tensor([ids], device=hf_model.device), use_cache=False).logits[0]
        logprobs = _logprobs(logits)
        if not logprobs.isfinite().all():
            raise NotFinite(_not_finite(hf_model))
        return cls(ids, text, logprobs)

    def compare(self, model: Model, tolerance: float | None) -> Parity:
        """How far the wrapped model is from the plain one."""
        logits = model.run(model.tokenize([self.ids]), logits_at="all").logits
        assert logits is not None, "logits were asked for"
        difference = (_logprobs(logits[0]) - self.logprobs).abs().max()
        accepted = TOLERANCE[model.info.dtype] if tolerance is None else tolerance
        return Parity(max_logprob_difference=float(difference), tolerance=accepted, text=self.text)


def _text(hf_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> tuple[tuple[int, ...], str]:
    """What parity is measured on: a sentence, or ids spread over the vocabulary where no tokenizer can write it."""
    config = hf_model.config.get_text_config()
    longest = config.max_position_embeddings
    ids = tuple(tokenizer(PARITY_TEXT)["input_ids"])[:longest] if tokenizer is not None else ()
    if ids:
        return ids, PARITY_TEXT
    ids = tuple(i * 7919 % config.vocab_size for i in range(1, 1 + min(12, longest)))
    return ids, f"ids {' '.join(map(str, ids))}"


def _logprobs(logits: Float[Tensor, "T d_vocab"]) -> Float[Tensor, "T d_vocab"]:
    """In single precision at least, whatever the model computes in."""
    return logits.detach().to(torch.promote_types(logits.dtype, torch.get_default_dtype())).log_softmax(-1)


def _not_finite(hf_model: PreTrainedModel) -> str:
    """Which weights hold NaN or infinity."""
    bad = [name for name, weight in hf_model.named_parameters() if not weight.isfinite().all()]
    where = f"NaN or infinity stands in {', '.join(bad[:5])}" if bad else "its weights are finite, the dtype overflows"
    return (
        f"the plain model gives numbers that are not finite on {PARITY_TEXT!r}: {where} ({len(bad)} of its weights). "
        "Get the weights again, or load in a wider dtype (float32)."
    )


def _silent(done: float, total: float, what: str) -> None:
    """Progress nobody asked for."""
