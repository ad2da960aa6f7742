"""What a technique is: a module with Arguments, a Result, `run` and `plot`, and the words that help to find it.

A technique file `techniques/<name>.py` has, top to bottom: docstring (first line: what it does; then idea, source with
equation, what the result does not show), `TITLE`, `QUESTIONS`, `Arguments`, one subclass of `Result`, pure maths,
`run(context, arguments)` and `plot(result)`. Nothing else registers it: the catalog finds it, the server lists it, the
shell runs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Protocol

from pydantic import BeforeValidator, Field

from .dictionaries.protocol import Dictionary
from .figures import Figure
from .model.protocol import Model
from .model.tokens import PositionSpec
from .prompts.corpus import Corpus
from .prompts.prompt_set import Prompt, PromptSet
from .result import Frozen, Result

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[float, float, str], None]  # done, total, what; raises Cancelled when the caller asked to stop

ModelHandle = Annotated[str, Field(description="Model handle, or a name load_model accepts.")]
PromptsArgument = Annotated[
    str | tuple[Prompt, ...],
    Field(description="Handle, .jsonl file, or list of {clean, corrupted, answer, wrong, roles}."),
]
Layers = Annotated[tuple[int, ...] | None, Field(description="Layers; all when absent.")]
Heads = Annotated[tuple[str, ...] | None, Field(description="Heads written L23H3; all when absent.")]
def _as_tuple(given: object) -> object:
    """One position alone stands for a list of it."""
    return (given,) if isinstance(given, int) or (isinstance(given, str) and given != "all") else given


Positions = Annotated[
    tuple[PositionSpec, ...] | Literal["all"],
    BeforeValidator(_as_tuple),
    Field(description="Positions: integers (negative from the end), 'last', a role (S2) or a token's text; or 'all'."),
]
Metric = Annotated[
    Literal["logit_diff", "logit", "logprob", "prob", "kl", "loss"],
    Field(description="Measured at the last token; logit_diff: answer minus wrong."),
]
Direction = Annotated[
    Literal["denoising", "noising"],
    Field(description="denoising: clean into corrupted (sufficiency); noising: corrupted into clean (necessity)."),
]
Ablation = Annotated[
    Literal["zero", "mean", "resample"], Field(description="What replaces the activation.")
]
Seed = Annotated[int, Field(ge=0, le=2**31 - 1, description="Random seed.")]
Bos = Annotated[
    bool | None, Field(description="BOS token first; absent: as the tokenizer does.")
]
Split = Annotated[
    Literal["discovery", "held_out", "kept_back"],
    Field(description="Part of a generated set; kept_back: held out, of a template discovery never used."),
]


TextArgument = Annotated[
    str | tuple[str, ...],
    Field(description="'python', 'python-source', 'shakespeare', a file or folder, hf:owner/name, or a list of texts."),
]


SaeArgument = Annotated[str, Field(description="SAE or transcoder: a handle of load_sae, or a name it accepts.")]


class Arguments(Frozen):
    """Base of every technique's arguments."""

    model: ModelHandle
    seed: Seed = 0
    investigation: Annotated[str | None, Field(description="Investigation the run belongs to.")] = None


class OnPrompts(Arguments):
    """Arguments of techniques that look at prompts."""

    prompts: PromptsArgument
    split: Split = "discovery"
    bos: Bos = None


class OnText(Arguments):
    """Arguments of techniques that look at running text."""

    text: TextArgument = "python"
    bos: Bos = None


@dataclass(frozen=True)
class KeptArray:
    """A tensor kept with the run, and what its axes are."""

    tensor: Tensor
    axes: tuple[str, ...]
    unit: str


class ArrayStream(Protocol):
    """An array of a run that is written in pieces along its first axis."""

    def append(self, piece: Tensor) -> None: ...
    def close(self) -> None: ...


class OpenStream(Protocol):
    """Opens a stream: `shape` is that of the whole array, `dtype` its name ('float32')."""

    def __call__(
        self, name: str, *, shape: Sequence[int], dtype: str, axes: Sequence[str], unit: str
    ) -> ArrayStream: ...


class SavedArray(Protocol):
    """An array that an earlier run kept, by run and name; raises UnknownName or CorruptFile."""

    def __call__(self, run: str, name: str) -> KeptArray: ...


class KeepModel(Protocol):
    """Keep a model under a new name: `write` puts it into a folder of the workspace, from which it is then loaded.

    Gives back its handle and the loaded model. Where the name is taken: 'name-2' and so on if `numbered`, else
    BadArguments.
    """

    def __call__(
        self, name: str, write: Callable[[Path], None], *, numbered: bool = False
    ) -> tuple[str, Model]: ...


@dataclass
class Context:
    """What the runner hands to a technique."""

    model: Model
    prompts: PromptSet | None = None  # the chosen split, resolved from `arguments.prompts`
    held_out: PromptSet | None = None  # the part kept back, for techniques that find on one part and test on the other
    progress: Progress = lambda done, total, what: None
    budget_bytes: int = 2 * 1024**3  # memory a technique may plan with, beyond the weights
    arrays: dict[str, KeptArray] = field(default_factory=dict)
    stream: OpenStream | None = None  # for an array too big to keep in memory; None where nothing is stored
    text: Corpus | None = None  # resolved from `arguments.text`
    dictionary: Dictionary | None = None  # resolved from `arguments.sae`
    find_dictionary: Callable[[str], Dictionary] | None = None  # another one, by handle or name
    saved: SavedArray | None = None  # arrays of earlier runs; None where nothing is stored
    keep_model: KeepModel | None = None  # make a changed copy a model of its own; None where nothing is stored
    random_twin: Callable[[int], Model] | None = None  # seed -> a model of the same configuration, untrained

    def keep(self, name: str, tensor: Tensor, *, axes: tuple[str, ...], unit: str) -> None:
        """Keep a tensor with the run: it goes to the store as safetensors, not into the result."""
        if len(axes) != tensor.ndim:
            raise ValueError(f"array {name!r} has {tensor.ndim} axes, {len(axes)} were named")
        self.arrays[name] = KeptArray(tensor, axes, unit)


class TechniqueModule(Protocol):
    """The face of a technique file."""

    __name__: str
    __doc__: str | None
    TITLE: str
    QUESTIONS: tuple[str, ...]
    Arguments: type[Arguments]

    @staticmethod
    def run(context: Context, arguments: Arguments) -> Result: ...
    @staticmethod
    def plot(result: Result) -> Figure: ...
