"""Runs the study with the settings of config.toml and writes what came of it, in one step, as JSON."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from anatomist.host import Host

HERE = Path(__file__).parent
Study = Callable[[Host, dict[str, Any]], dict[str, Any]]


def run(study: Study) -> Path:
    """One run of the study; the file of its results comes back."""
    config = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    if config.pop("tracking", ""):
        os.environ.setdefault("ANATOMIST_TRACKING", "wandb")
    result = {"config": config, **study(Host(HERE / ".anatomist", allow=[HERE]), config)}
    path = HERE / "results" / f"{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".writing")
    scratch.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    scratch.replace(path)
    return path


def main(study: Study) -> None:
    path = run(study)
    sys.stdout.write(f"{path.read_text(encoding='utf-8')}\nwritten to {path}\n")
