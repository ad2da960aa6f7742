"""Documents of a Hugging Face data set, streamed."""

from __future__ import annotations

from collections.abc import Iterator

from ..errors import BadPrompts, Unavailable

_COLUMN = "text"


def documents(name: str) -> Iterator[str]:
    """The column `text` of the training split of `owner/name`, or of `owner/name:configuration`.

    Raises:
        Unavailable: the hub cannot be reached, or has no such data set.
        BadPrompts: the data set has no such column.
    """
    from datasets import load_dataset

    place, _, configuration = name.partition(":")
    try:
        stream = iter(load_dataset(place, configuration or None, split="train", streaming=True))
        first = next(stream)
    except Exception as error:  # the library raises many kinds, one for each way a hub fails
        raise Unavailable(
            f"the data set {name!r} cannot be read ({type(error).__name__}: {str(error)[:200]}). Check the name and "
            "the network, or give a file or an offline corpus."
        ) from error
    if _COLUMN not in first:
        raise BadPrompts(f"the data set {name!r} has columns {', '.join(first)}; one called {_COLUMN!r} is needed.")
    yield first[_COLUMN]
    for row in stream:
        yield row[_COLUMN]
