"""Where a model's numbers live and how wide they are: names to torch's devices and dtypes, checked."""

from __future__ import annotations

import warnings

import torch

from ..errors import BadArguments, Unsupported

DTYPES = ("float32", "bfloat16", "float16")
INVERTED_ON_MPS = "2.8."  # torch versions whose IOI logit differences come out inverted on MPS, without an error


def torch_device(device: str | None) -> torch.device:
    """The device of a name, or the best one where none is named: the first CUDA device, else the CPU.

    Raises:
        BadArguments: not a device of this machine; those that are, are listed.
        Unsupported: MPS with a torch that computes wrongly there.
    """
    there = devices()
    if device is None:
        return torch.device(next((name for name in there if name.startswith("cuda")), there[0]))
    name = f"{device}:0" if device == "cuda" else device
    if name not in there:
        raise BadArguments(
            f"device {device!r} is not on this machine; it has {', '.join(there)}. Name one of them, or leave it out."
        )
    if name == "mps":
        _beware_of_mps(torch.__version__)
    return torch.device(name)


def devices() -> list[str]:
    """Names of this machine's devices, the CPU first."""
    found = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
    return [*found, "mps"] if torch.backends.mps.is_available() else found


def torch_dtype(dtype: str | None, device: torch.device) -> torch.dtype | None:
    """The dtype of a name; where none is named, single precision on the CPU and None, the checkpoint's own, elsewhere.

    Raises:
        BadArguments: not one of the three names.
    """
    if dtype is None:
        return torch.get_default_dtype() if device.type == "cpu" else None
    if dtype not in DTYPES:
        raise BadArguments(f"dtype {dtype!r} cannot be loaded; choose one of {', '.join(DTYPES)}, or leave it out.")
    return getattr(torch, dtype)


def _beware_of_mps(version: str) -> None:
    if version.startswith(INVERTED_ON_MPS):
        raise Unsupported(
            f"torch {version} computes wrongly on MPS: logit differences come out inverted, without an error "
            "(TransformerLens issue 1178). Load with device='cpu', or install another torch."
        )
    warnings.warn(
        "models on MPS are not tested here, and torch 2.8 was silently wrong there: compare a result with device='cpu' "
        "before you rely on it.",
        stacklevel=3,
    )
