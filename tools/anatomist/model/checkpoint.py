"""Find a checkpoint by name, folder or hub id, and read it: a plain Hugging Face model and its tokenizer.

Only safetensors and GGUF are read, never pickles; no code that comes with a model is run. Weights are memory-mapped,
so that reading costs what is touched.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from ..errors import BadArguments, CorruptFile, OutsideRoots, Unavailable, UnknownName, Unsupported
from .offline import OFFLINE, Progress, converted_gguf, file_sha256, offline_folder, recorded_sha256
from .quiet import quiet

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json", "vocab.txt")
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.h5", "*.msgpack")
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.model", "*.txt", "*.jinja"]
NOT_FROM_HUB = ["*/*", "consolidated*"]  # other formats of the same weights


@dataclass(frozen=True)
class Source:
    """A checkpoint that lies in a folder."""

    name: str  # the handle
    given: str  # what the caller named
    folder: Path
    revision: str | None = None  # commit of a hub id
    ours: bool = False  # in our own cache, so that it can be made anew


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """A plain model as Hugging Face loads it."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase | None


def find(
    name: str,
    *,
    known: Sequence[str],
    revision: str | None,
    roots: Sequence[str | Path] | None,
    progress: Progress | None,
) -> Source:
    """The folder of a checkpoint, fetched first where it is an offline name or a hub id.

    Raises:
        UnknownName, Unavailable, OutsideRoots, CorruptFile, Unsupported, BadArguments: see `load_model`.
    """
    if name in OFFLINE:
        return Source(name, name, offline_folder(name, progress), ours=True)
    if not name.strip():
        raise _unknown(name, known, "the name is empty")
    if _looks_like_path(name):
        return _local(name, roots, progress)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.8)
    if near:
        raise UnknownName.of("model", name, known, "A local folder or a hub id ('owner/name') also works.")
    return _from_hub(name, known, revision)


def read_checkpoint(source: Source, dtype: torch.dtype | None, device: torch.device) -> Checkpoint:
    """Read the weights and the tokenizer of a folder. `dtype` None keeps the checkpoint's own.

    Raises:
        CorruptFile: weights that are damaged, incomplete, or not those that were written.
        Unsupported: no code for this architecture without running the checkpoint's own.
    """
    from transformers import AutoModelForCausalLM

    again = _again(source)
    _check_weights(source.folder, again)
    with ThreadPoolExecutor(1) as pool, quiet():
        # Hashing lets other threads run: it costs next to nothing beside the reading, which needs the same pages.
        sha256 = pool.submit(_weights_sha256, source) if source.ours else None
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                source.folder, dtype=dtype or "auto", attn_implementation="eager", use_safetensors=True,
                trust_remote_code=False, local_files_only=True, output_loading_info=True,
                ignore_mismatched_sizes=True,  # reported below, by name
            )  # fmt: skip
        except (OSError, SafetensorError, json.JSONDecodeError) as error:
            raise CorruptFile(f"{source.folder} could not be read: {_first_line(error)} {again}") from error
        except (ValueError, KeyError, ImportError) as error:
            raise Unsupported(
                f"transformers cannot load {source.given!r} as a causal language model without running code of its "
                f"own: {_first_line(error)} Choose a model of an architecture that transformers knows."
            ) from error
        tokenizer = _tokenizer(source, again)
        if sha256 is not None and sha256.result() != recorded_sha256(source.folder):
            raise CorruptFile(f"the weights in {source.folder} are not those that were written there. {again}")
    model, report = loaded
    _check_complete(report, source, again)
    return Checkpoint(model.to(device).eval(), tokenizer)


def _looks_like_path(name: str) -> bool:
    """Paths say so by their first character or their suffix; a bare name is one only if such a folder exists."""
    return name.startswith(("/", ".", "~")) or name.endswith(".gguf") or "\\" in name or Path(name).is_dir()


def inside(name: str, roots: Sequence[str | Path] | None) -> Path:
    """The real path of a place on disk.

    Raises:
        OutsideRoots: it lies in none of the folders.
    """
    path = Path(name).expanduser().resolve()
    allowed = None if roots is None else [Path(root).expanduser().resolve() for root in roots]
    if allowed is not None and not any(path.is_relative_to(root) for root in allowed):
        raise OutsideRoots(
            f"{name!r} is outside the folders that models may be read from: {', '.join(map(str, allowed))}. Copy it "
            "into one of them, or allow its folder."
        )
    return path


def _local(name: str, roots: Sequence[str | Path] | None, progress: Progress | None) -> Source:
    """A folder or a GGUF file on this machine."""
    path = inside(name, roots)
    if path.is_file() and path.suffix == ".gguf":
        return Source(path.stem, name, converted_gguf(path, progress), ours=True)
    if not path.is_dir():
        raise Unavailable(
            f"there is no model folder {name!r} (looked at {path}). Give a folder with config.json and safetensors, or "
            "a .gguf file; known names need no path."
        )
    if not any(path.glob("*.safetensors")):
        return _only_gguf(path, name, progress)
    if not (path / "config.json").is_file():
        raise CorruptFile(f"{path} holds weights but no config.json; copy the whole folder of the model.")
    return Source(path.name, name, path)


def _only_gguf(path: Path, name: str, progress: Progress | None) -> Source:
    """A folder without safetensors: it may hold one GGUF file."""
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return Source(path.name, name, converted_gguf(files[0], progress), ours=True)
    if files:
        names = ", ".join(file.name for file in files)
        raise BadArguments(f"{path} holds {len(files)} GGUF files ({names}); name one of them by its path.")
    raise _no_weights(path, f"the folder {path}")


def _no_weights(folder: Path, what: str) -> CorruptFile | Unsupported:
    pickles = sorted(file.name for pattern in PICKLES for file in folder.glob(pattern))
    if pickles:
        return Unsupported(
            f"{what} holds only pickled weights ({', '.join(pickles[:3])}), which can run code when they are read. "
            "Give safetensors or GGUF: load the model once where you trust it and call save_pretrained(folder)."
        )
    return CorruptFile(f"{what} holds no weights (*.safetensors or *.gguf); copy the whole folder of the model.")


def _from_hub(name: str, known: Sequence[str], revision: str | None) -> Source:
    """A hub id: its files in Hugging Face's own cache, fetched if they are not there."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        with quiet():
            folder = Path(
                snapshot_download(name, revision=revision, allow_patterns=HUB_FILES, ignore_patterns=NOT_FROM_HUB)
            )
    except GatedRepoError as error:
        raise Unavailable(
            f"{name!r} is gated on the Hugging Face hub: accept its terms there, run `hf auth login`, and load again."
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownName(
            f"the hub model {name!r} has no revision {revision!r}; leave it out, or look up its branches and commits."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise _unknown(name, known, "the Hugging Face hub has no such model") from error
    except OSError as error:  # no network, or told to stay offline
        raise _unreachable(name, known, error) from error
    if not any(folder.glob("*.safetensors")):
        raise _no_weights(folder, f"the hub model {name!r}")
    return Source(name, name, folder, revision=folder.name)


def _unreachable(name: str, known: Sequence[str], error: OSError) -> Unavailable | UnknownName:
    """A name with an owner may well exist on the hub; a bare one is more likely mistaken."""
    if "/" not in name:
        return _unknown(name, known, "it is no folder, and the Hugging Face hub cannot be reached")
    return Unavailable(
        f"{name!r} is not in the Hugging Face cache and the hub cannot be reached: {_first_line(error)} Next: load it "
        "once with a network, give a local folder, or use a model that needs no hub: " + ", ".join(known) + "."
    )


def _unknown(name: str, known: Sequence[str], why: str) -> UnknownName:
    return UnknownName.of("model", name, known, f"({why}.) Give one of these, a folder or a hub id ('owner/name').")


def _again(source: Source) -> str:
    """What to do about a damaged checkpoint."""
    if source.ours:
        return f"Delete the folder {source.folder} and load {source.given!r} again: it will be made anew."
    if source.revision:
        return f"Delete {source.folder.parent.parent} and load {source.given!r} again: it will be fetched anew."
    return "Copy the model's folder again from where it came."


def _check_weights(folder: Path, again: str) -> None:
    """Read the header of every safetensors file, which says how long the file must be."""
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt"):
                pass
        except (SafetensorError, OSError) as error:
            raise CorruptFile(f"{file} is damaged or cut short: {_first_line(error)} {again}") from error


def _check_complete(report: dict[str, Any], source: Source, again: str) -> None:
    """Transformers fills missing weights with random numbers; we do not."""
    missing = sorted(str(name) for name in report.get("missing_keys") or ())
    misshapen = sorted(f"{name} has shape {list(found)}, not {list(wanted)}" for name, found, wanted in
                       report.get("mismatched_keys") or ())  # fmt: skip
    if missing or misshapen:
        wrong = f"lacks {len(missing)} of the model's weights ({', '.join(missing[:3])})" if missing else misshapen[0]
        raise CorruptFile(f"{source.folder}: {wrong}; such weights would be drawn at random. {again}")


def _weights_sha256(source: Source) -> str:
    return file_sha256(source.folder / "model.safetensors")


def _tokenizer(source: Source, again: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder; none where it has no tokenizer files."""
    from transformers import AutoTokenizer

    if not any((source.folder / name).is_file() for name in TOKENIZER_FILES):
        return None
    try:
        return AutoTokenizer.from_pretrained(source.folder, trust_remote_code=False, local_files_only=True)
    except Exception as error:  # tokenizers raises its own classes, some of them plain Exception
        raise CorruptFile(f"the tokenizer in {source.folder} cannot be read: {_first_line(error)} {again}") from error


def _first_line(error: BaseException) -> str:
    """The first line of an error, as a sentence."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith((".", "!", "?")) else line + "."
