"""Runs the study with the settings of config.toml, tells how it goes, and writes what came of it as JSON."""

from __future__ import annotations

import json
import os
import sys
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from anatomist.console import bar
from anatomist.desk import Answer, quiet
from anatomist.errors import AnatomistError
from anatomist.host import Host
from anatomist.technique import Progress

HERE = Path(__file__).resolve().parent
WORKSPACE = HERE / ".anatomist"
Study = Callable[[Host, dict[str, Any]], dict[str, Any]]


class TellingHost(Host):
    """A host that shows on stderr how far a call is, and then what came of it."""

    def call(
        self, name: str, arguments: Mapping[str, object], progress: Progress = quiet, *, purpose: str = ""
    ) -> Answer:
        if progress is not quiet:  # a call within a call: the outer one is shown
            return super().call(name, arguments, progress, purpose=purpose)
        with bar() as shown:
            answer = super().call(name, arguments, shown, purpose=purpose)
        sys.stderr.write(f"{answer.run_id or '-':<7} {name}: {getattr(answer.result, 'summary', '')}\n")
        return answer


def settings() -> dict[str, Any]:
    """What config.toml says; a tracker that it names is switched on."""
    config = tomllib.loads((HERE / "config.toml").read_text(encoding="utf-8"))
    if tracker := config.pop("tracking", ""):
        os.environ["ANATOMIST_TRACKING"] = tracker
    return config


def open_host() -> Host:
    """The host that keeps its runs beside this file and reads files of this folder only."""
    return TellingHost(WORKSPACE, allow=[HERE])


def run(study: Study) -> Path:
    """One run of the study; the file of its results comes back. It appears whole, or not at all."""
    config = settings()
    result = {"config": config, **study(open_host(), config)}
    path = HERE / "results" / f"{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    scratch = path.with_suffix(".writing")
    scratch.write_text(json.dumps(result, indent=1, ensure_ascii=False), encoding="utf-8")
    scratch.replace(path)
    return path


def main(study: Study) -> None:
    """Run it from the shell: the results on stdout, all else on stderr."""
    try:
        path = run(study)
    except AnatomistError as error:
        sys.exit(str(error))
    sys.stdout.write(path.read_text(encoding="utf-8") + "\n")
    sys.stderr.write(f"written to {path}; pictures and tables of each run: {WORKSPACE / 'runs'}\n")
