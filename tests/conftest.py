"""Shapes are checked in every test run; the models that many tests share are loaded once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest
import torch

import tests.shape_names

# Before anything of the library is imported: every function with shapes in its signature is checked when called.
tests.shape_names.install()

# Small models and several test processes: more threads on the same cores only wait for each other.
os.environ.setdefault("ANATOMIST_THREADS", "1")
torch.set_num_threads(1)

if TYPE_CHECKING:
    from anatomist.model.protocol import Model


@pytest.fixture(scope="session")
def smollm2() -> Model:
    """SmolLM2-135M through the local backend; fetched and converted on a machine's first run."""
    from anatomist.model.loading import load_model

    return load_model("smollm2-135m")


@pytest.fixture(scope="session")
def toy() -> Model:
    """The hand-set induction circuit with hard attention."""
    from anatomist.model.loading import load_model

    return load_model("toy-induction")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
