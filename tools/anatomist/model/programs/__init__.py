"""Compiled programs: transformers whose weights were compiled from a RASP program, so that their circuit is known.

Each is a toy file beside this one, converted from what Tracr compiles (Lindner et al., arXiv 2301.05062). They see the
whole row at once, their token 0 is the BOS that the compiler needs, and rows hold up to five tokens after it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

PROGRAMS: Mapping[str, str] = {
    "tracr-reverse": "compiled program: the row backwards",
    "tracr-frac-prevs": "compiled program: at each position, the share of x among the tokens so far",
    "tracr-hist": "compiled program: how often each token occurs in the row",
    "tracr-sort-unique": "compiled program: the row's tokens, all different, in order",
}


def program_file(name: str) -> Path:
    """The toy file of a program."""
    return Path(__file__).parent / f"{name}.safetensors"
