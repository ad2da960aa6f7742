"""Which versions are installed, and which of them are known not to work together. Nothing is imported to find out."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from importlib import metadata
from typing import NamedTuple

from .provenance import COMPUTES, versions

Version = tuple[int, ...]
WATCHED = (
    *COMPUTES, "mcp", "pydantic", "safetensors", "gguf", "einops", "jaxtyping", "scipy", "altair", "vl-convert-python",
    "circuit-tracer", "sae-dashboard",
)  # fmt: skip


class BadPair(NamedTuple):
    """Two packages that fail together from some version on."""

    one: str
    one_from: Version
    one_below: Version
    other: str
    other_from: Version
    effect: str
    remedy: str


_ANY: Version = (10**6,)
BAD_PAIRS = (
    BadPair(
        "nnterp", (0,), (2,), "nnsight", (0, 8),
        "`import nnterp` fails: No module named 'nnsight.intervention.tracing'",
        "pip install 'nnsight>=0.7,<0.8'",
    ),
    BadPair(
        "sae-lens", (0,), (7,), "transformer-lens", (4,),
        "sae-lens needs modules that transformer-lens 4 removed",
        "pip install 'transformer-lens>=3.9,<4'",
    ),
    BadPair(
        "circuit-tracer", (0,), _ANY, "transformers", (4, 58),
        "circuit-tracer pins transformers to 4.57 or lower",
        "install circuit-tracer in an environment of its own",
    ),
    BadPair(
        "sae-dashboard", (0,), _ANY, "transformers", (4, 58),
        "sae-dashboard pins transformers to 4.57 or lower",
        "install sae-dashboard in an environment of its own",
    ),
)  # fmt: skip


def installed() -> dict[str, str]:
    """Versions of the packages that matter, those that are installed."""
    return versions(WATCHED)


def faults(found: Mapping[str, str], *, system: str | None = None) -> list[str]:
    """Known-bad pairs and versions outside the ranges that were tried, each with its remedy."""
    return [*_bad_pairs(found), *_out_of_range(found), *_bad_system(found, system or platform.system())]


def _bad_pairs(found: Mapping[str, str]) -> Iterator[str]:
    for pair in BAD_PAIRS:
        if pair.one in found and pair.other in found:
            one, other = numbers(found[pair.one]), numbers(found[pair.other])
            if pair.one_from <= one < pair.one_below and other >= pair.other_from:
                yield (
                    f"{pair.one} {found[pair.one]} with {pair.other} {found[pair.other]}: {pair.effect}. "
                    f"Remedy: {pair.remedy}."
                )


def _out_of_range(found: Mapping[str, str]) -> Iterator[str]:
    from packaging.requirements import Requirement

    try:
        required = [Requirement(text) for text in metadata.requires("anatomist") or ()]
    except metadata.PackageNotFoundError:
        required = []
    for requirement in required:
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        version = found.get(requirement.name) or versions([requirement.name]).get(requirement.name)
        if version is None:
            yield f"{requirement.name} is not installed. Remedy: pip install '{requirement}'."
        elif not requirement.specifier.contains(version, prereleases=True):
            yield (
                f"{requirement.name} {version} is outside {requirement.specifier}, the range that was tried. "
                f"Remedy: pip install '{requirement}'."
            )


def _bad_system(found: Mapping[str, str], system: str) -> Iterator[str]:
    if system == "Darwin" and numbers(found.get("torch", ""))[:2] == (2, 8):
        yield (
            f"torch {found['torch']} on MPS gives inverted logit differences without any error "
            "(TransformerLens #1178). Remedy: load models with device='cpu', or upgrade torch."
        )


def numbers(version: str) -> Version:
    """(0, 7, 1) from '0.7.1rc2+cpu'."""
    parts: list[int] = []
    for part in version.partition("+")[0].split("."):
        digits = part[: next((i for i, c in enumerate(part) if not c.isdigit()), len(part))]
        if not digits:
            break
        parts.append(int(digits))
        if digits != part:
            break
    return tuple(parts)
