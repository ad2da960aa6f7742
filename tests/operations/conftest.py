"""A host over the throw-away techniques, with one stored run."""

from __future__ import annotations

from pathlib import Path

import pytest
from anatomist.catalog import Catalog
from anatomist.desk import Answer
from anatomist.host import Host


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path, catalog=Catalog(techniques=("tests.throwaway",)))


@pytest.fixture
def kept(host: Host) -> Answer:
    """A run of two prompts of three and two tokens."""
    prompts = [{"clean": [1, 2, 3]}, {"clean": [4, 5]}]
    return host.call("count_tokens", {"model": "toy-induction", "prompts": prompts})
