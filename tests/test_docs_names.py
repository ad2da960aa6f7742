"""The table of names in references/tools.md: what one library calls a place is what the others call it."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import torch
from anatomist.model.offline import offline_folder
from anatomist.model.protocol import Model
from anatomist.model.sites import parse_site

from tests.docs_blocks import REFERENCES

PROMPT = "The capital of France is"


class Names(NamedTuple):
    """A place as three libraries call it; nnterp has no name for some."""

    here: str
    transformer_lens: str
    nnterp: str | None


def table() -> Iterator[Names]:
    part = (REFERENCES / "tools.md").read_text().split("## One thing, four names")[1]
    for line in part.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]]
        if line.startswith("| ") and cells[0] != "place":
            here, lens, nnterp = (re.findall(r"`([^`]+)`", cell)[:1] for cell in cells[1:4])
            yield Names(here[0], lens[0], nnterp[0] if nnterp else None)


@pytest.mark.slow
def test_the_names_of_a_place_mean_the_same(smollm2: Model) -> None:
    rows = list(table())
    assert len(rows) == 7
    sites = [parse_site(row.here) for row in rows]
    ours = smollm2.run(smollm2.tokenize([PROMPT]), read=sites).reads
    lens, nnterp = by_transformer_lens(rows), by_nnterp([row.nnterp for row in rows if row.nnterp])
    for row, site in zip(rows, sites, strict=True):
        mine = ours[site]
        theirs = lens[row.transformer_lens]
        theirs = theirs[:, :, site.index] if site.index is not None else theirs
        assert torch.allclose(mine, theirs, atol=1e-5), row
        assert row.nnterp is None or torch.allclose(mine, nnterp[row.nnterp], atol=1e-5), row


def by_transformer_lens(rows: list[Names]) -> Any:
    from transformer_lens.model_bridge import TransformerBridge

    name = str(offline_folder("smollm2-135m"))
    model: Any = TransformerBridge.boot_transformers(name, device="cpu", dtype=torch.float32)
    tokens = model.to_tokens(PROMPT, prepend_bos=False)
    return model.run_with_cache(tokens, names_filter=[row.transformer_lens for row in rows])[1]


def by_nnterp(names: list[str]) -> dict[str, torch.Tensor]:
    """Each in a trace of its own: within one, places are read in the order they run."""
    from nnterp import StandardizedTransformer

    name = str(offline_folder("smollm2-135m"))
    model: Any = StandardizedTransformer(name, device_map="cpu", dtype=torch.float32, enable_attention_probs=True)
    found = {}
    for accessor, layer in (re.fullmatch(r"(\w+)\[(\d+)\]", n).groups() for n in names):  # type: ignore[union-attr]
        places = getattr(model, accessor)
        with model.trace(PROMPT):
            value = places[int(layer)].save()
        found[f"{accessor}[{layer}]"] = value
    return found
