"""A dictionary's name -> where it lies: one that ships with the package, a folder, or a release and an id.

The folder format is SAELens's: `cfg.json` and `sae_weights.safetensors`; our own training writes the same, with
`figures.json` (ReleaseFigures) beside it: what was measured on held-out text when it was made.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from ..errors import CorruptFile, Unavailable, UnknownName, Unsupported
from .protocol import ReleaseFigures
from .releases import Released, released, releases_for

CONFIG, WEIGHTS, FIGURES = "cfg.json", "sae_weights.safetensors", "figures.json"
SHIPPED = Path(__file__).parent / "shipped"  # one folder a dictionary
TOY_NAMES = ("toy-induction-l0", "toy-induction-l1")  # hand-set, made when they are asked for
_PICKLES = ("*.pt", "*.pth", "*.bin", "*.pkl", "*.ckpt")


@dataclass(frozen=True)
class Found:
    """A dictionary that can be read: a folder, or one of a release."""

    name: str  # the handle
    given: str  # what the caller named
    folder: Path | None
    release: Released | None
    figures: ReleaseFigures

    @property
    def weight_bytes(self) -> int:
        """Size of the weights' file; 0 where it is not on this disk."""
        return 0 if self.folder is None else (self.folder / WEIGHTS).stat().st_size

    def unreachable(self, error: OSError) -> Unavailable | CorruptFile:
        """What a failing read means."""
        line = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        if self.folder is not None:
            return CorruptFile(f"{self.folder} cannot be read: {line}. Get the folder again.")
        return Unavailable(
            f"{self.given!r} is not in the Hugging Face cache and the hub cannot be reached: {line}. Load it once with "
            f"a network, give a folder with {CONFIG} and {WEIGHTS}, or use one that ships: {', '.join(shipped())}."
        )


def shipped() -> tuple[str, ...]:
    """Names of the dictionaries that come with the package, hand-set ones of the toys last."""
    return (*sorted(p.parent.name for p in SHIPPED.glob(f"*/{CONFIG}")), *TOY_NAMES)


def find(name: str) -> Found:
    """The place of a dictionary.

    Raises:
        UnknownName: no shipped name, folder or release of that name.
        Unsupported: it is there, but pickled. CorruptFile: a folder that lacks a file.
    """
    if name in TOY_NAMES:
        return Found(name, name, None, None, ReleaseFigures())
    if name in shipped():
        return _in_folder(SHIPPED / name, name)
    if is_folder(name):
        return _in_folder(Path(name).expanduser().resolve(), name)
    release, colon, id = name.partition(":")
    if not colon:
        raise UnknownName.of(
            "sae", name, shipped(),
            "Give one of these, a folder (./my-sae), or a release and its id joined by a colon, as list_saes shows.",
        )  # fmt: skip
    row = released(release, id)
    if row.weights == "pickle":
        others = sorted({r.release for r in releases_for(row.model) if r.weights != "pickle"})
        raise Unsupported(
            f"{name} is published as a pickle, which can run code when it is read; only safetensors are. "
            f"Releases of {row.model} in another format: {', '.join(others) or 'none'}. Or convert it where you trust "
            "it: SAE.from_pretrained(...).save_model(folder), then load that folder."
        )
    figures = ReleaseFigures(l0=row.l0, explained_variance=row.explained_variance)
    return Found(name, name, None, row, figures)


def is_folder(name: str) -> bool:
    """Whether a name means a place on disk."""
    return name.startswith(("/", "./", "../", "~")) or Path(name).expanduser().is_dir()


def _in_folder(folder: Path, given: str) -> Found:
    if not folder.is_dir():
        raise Unavailable(f"there is no folder {given!r} (looked at {folder}); check the path.")
    if not (folder / WEIGHTS).is_file():
        pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
        if pickles:
            raise Unsupported(
                f"{folder} holds only pickles ({', '.join(pickles[:3])}), which can run code when they are read. Load "
                f"it once where you trust it and call save_model(folder): it writes {CONFIG} and {WEIGHTS}."
            )
        raise CorruptFile(f"{folder} holds no {WEIGHTS}; give the folder that SAELens's save_model wrote.")
    if not (folder / CONFIG).is_file():
        raise CorruptFile(f"{folder} holds weights but no {CONFIG}, so nothing is known of them: copy the folder.")
    return Found(folder.name, given, folder, None, _figures(folder / FIGURES))


def _figures(path: Path) -> ReleaseFigures:
    if not path.is_file():
        return ReleaseFigures()
    try:
        stated = json.loads(path.read_text(encoding="utf-8"))
        return ReleaseFigures.model_validate({k: v for k, v in stated.items() if k in ReleaseFigures.model_fields})
    except (OSError, json.JSONDecodeError, AttributeError, ValidationError) as error:
        raise CorruptFile(f"{path} does not hold the figures of a dictionary: {error}. Delete it.") from error
