"""Which folders may be read or written: the workspace, the model cache, and what the user allows."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from .errors import OutsideRoots, Unavailable
from .model.offline import home

ALLOW_VARIABLE = "ANATOMIST_ALLOW"


class Roots:
    """A closed set of folders; every path from a caller goes through `check`."""

    def __init__(self, folders: Iterable[Path]) -> None:
        self.folders = tuple(dict.fromkeys(folder.expanduser().resolve() for folder in folders))

    @classmethod
    def of(cls, workspace: Path, allow: Iterable[str | Path] = ()) -> Roots:
        """The workspace, the model cache, `allow`, and the folders in ANATOMIST_ALLOW."""
        named = os.environ.get(ALLOW_VARIABLE, "").split(os.pathsep)
        return cls([workspace, home(), *(Path(a) for a in allow), *(Path(n) for n in named if n)])

    def check(self, path: str | Path) -> Path:
        """The real path (symbolic links followed) of something that exists inside the folders.

        A relative path is looked for in the current folder and then in each of the folders.

        Raises:
            OutsideRoots: it lies outside, or a link leads outside.
            Unavailable: inside, but nothing is there.
        """
        given = Path(path).expanduser()
        places = [given] if given.is_absolute() else [Path.cwd() / given, *(folder / given for folder in self.folders)]
        real = [place.resolve() for place in places]
        inside = [place for place in real if self.holds(place)]
        there = [place for place in real if place.exists()]
        for place in inside:
            if place in there:
                return place
        if there or not inside:
            raise OutsideRoots(
                f"{str(path)!r} is outside the folders that may be read: {', '.join(map(str, self.folders))}. Copy it "
                f"into one of them, or allow its folder with --allow or the variable {ALLOW_VARIABLE}."
            )
        raise Unavailable(f"{str(path)!r} does not exist (looked for {', '.join(map(str, inside))}); check the name.")

    def holds(self, real: Path) -> bool:
        """Whether a resolved path lies inside."""
        return any(real == folder or folder in real.parents for folder in self.folders)
