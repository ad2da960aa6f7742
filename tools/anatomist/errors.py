"""Every deliberate error, in one tree.

AnatomistError
    InputError              something the caller gave cannot be used
        UnknownName         a name that is not in a closed list (model, technique, site, task, run, ...)
        BadSite             a place that this model does not have
        BadPosition         a position outside the prompt, or a token text that is ambiguous
        BadPrompts          prompts that are misaligned, empty, or whose answers are not single tokens
        BadArguments        arguments that do not fit the schema
        OutsideRoots        a path outside the folders that may be read or written
    Unsupported             this backend or architecture cannot do it; the text says which can
    WouldNotFit             refused before running: the figures and the next step are in the text
    Unavailable             a file or a network that is not there
    CorruptFile             a file that does not hold what it should
    EditDidNotFire          an edit that changed nothing because its place was never computed
    NotFinite               NaN or infinity where a number is needed
    ParityError             a loaded model disagrees with its plain reference
    Cancelled               the caller asked to stop
    WorkerDied              the process that holds the models ended

Each text has three parts: the value, what is allowed, the next step.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class AnatomistError(Exception):
    """Base of all deliberate errors: the text is meant for the person or assistant who made the call."""


class InputError(AnatomistError):
    """Something the caller gave cannot be used."""


class UnknownName(InputError):
    """A name that is not in a closed list."""

    @classmethod
    def of(cls, what: str, name: object, allowed: Iterable[str], next_step: str = "") -> UnknownName:
        """Say which names exist, the nearest first where one is near."""
        names = list(allowed)
        near = difflib.get_close_matches(str(name), names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        listed = ", ".join(names[:60]) + (f" and {len(names) - 60} more" if len(names) > 60 else "")
        return cls(f"unknown {what} {name!r}.{hint} Known: {listed or 'none'}. {next_step}".strip())


class BadSite(InputError):
    """A place that this model does not have."""


class BadPosition(InputError):
    """A position outside the prompt, or a token text that is ambiguous."""


class BadPrompts(InputError):
    """Prompts that are misaligned, empty, or whose answers are not single tokens."""


class BadArguments(InputError):
    """Arguments that do not fit the schema."""


class OutsideRoots(InputError):
    """A path outside the folders that may be read or written."""


class Unsupported(AnatomistError):
    """This backend or architecture cannot do it."""


class WouldNotFit(AnatomistError):
    """Refused before running: it would not fit in memory."""


class Unavailable(AnatomistError):
    """A file or a network that is not there."""


class CorruptFile(AnatomistError):
    """A file that does not hold what it should."""


class EditDidNotFire(AnatomistError):
    """An edit whose place was never computed, or whose selection was empty."""


class NotFinite(AnatomistError):
    """NaN or infinity where a number is needed."""


class ParityError(AnatomistError):
    """A loaded model disagrees with its plain reference."""


class Cancelled(AnatomistError):
    """The caller asked to stop."""


class WorkerDied(AnatomistError):
    """The process that holds the models ended."""
