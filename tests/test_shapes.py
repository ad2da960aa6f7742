"""The shapes in signatures are real under pytest."""

from __future__ import annotations

import jaxtyping
import pytest
import torch
from anatomist.model.protocol import Norm


def test_a_scale_of_the_wrong_shape_raises() -> None:
    norm = Norm(kind="rms", weight=torch.ones(4), bias=None, eps=0.0)
    assert norm.scale(torch.tensor([[2.0, 2.0, 2.0, 2.0]])).item() == 2.0
    with pytest.raises(jaxtyping.TypeCheckError):
        norm.frozen(torch.ones(2, 4, dtype=torch.int64), torch.ones(2, 1))


def test_torch_is_not_imported_by_the_faces() -> None:
    import subprocess
    import sys

    code = "import sys, anatomist.technique; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
