"""Runs to an experiment tracker, where the user has named one: Weights & Biases, MLflow or trackio.

Every run is kept as plain JSON in the workspace whether or not it is tracked. `ANATOMIST_TRACKING` names the tracker
and `ANATOMIST_PROJECT` the project ('anatomist' otherwise); where a tracker writes to is its own setting (WANDB_MODE,
WANDB_DIR, MLFLOW_TRACKING_URI, TRACKIO_DIR), so that its offline modes work as its manual says. Without a setting
Weights & Biases and MLflow write into the workspace and send nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from .errors import UnknownName
from .result import Result

VARIABLE, PROJECT = "ANATOMIST_TRACKING", "ANATOMIST_PROJECT"
MOST_NUMBERS = 200  # of one run: grids and tables stay in the workspace
Config = Mapping[str, str | int | float | bool]
Track = Callable[[str, str, Config, Mapping[str, float], Path | None, Path], None]


def configured() -> str | None:
    """The tracker that the environment names, if any.

    Raises:
        UnknownName: there is no such tracker.
    """
    name = os.environ.get(VARIABLE, "")
    if name and name not in TRACKERS:
        raise UnknownName.of(f"tracker in {VARIABLE}", name, TRACKERS, "Unset it to track nothing.")
    return name or None


def track(
    result: Result, arguments: Mapping[str, object], picture: Path | None, workspace: Path, name: str | None
) -> Result:
    """Hand a stored run to a tracker. What fails there is a warning: the run itself is safe."""
    if name is None:
        return result
    assert result.about is not None
    project = os.environ.get(PROJECT) or "anatomist"
    config = dict(_flat({**arguments, "about": result.about.model_dump(mode="json")}))
    try:
        TRACKERS[name](project, result.about.run, config, numbers(result), picture, workspace)
    except Exception as error:  # each tracker raises its own kinds, and none of them may cost the run
        warning = (
            f"{result.about.run} is stored, but {name} did not take it ({type(error).__name__}: {str(error)[:200]}). "
            f"Install it (pip install {PACKAGES[name]}) or unset {VARIABLE}."
        )
        return result.model_copy(update={"warnings": (*result.warnings, warning)})
    return result


def numbers(result: Result) -> dict[str, float]:
    """The result's single numbers by their path ('joint.0.change.mean'); lists of numbers are left out."""
    found = _flat(result.model_dump(mode="json", exclude={"about"}))
    kept = ((k, float(v)) for k, v in found if isinstance(v, int | float) and not isinstance(v, bool))
    return dict(list(kept)[:MOST_NUMBERS])


def _flat(node: object, path: str = "") -> Iterator[tuple[str, str | int | float | bool]]:
    """Leaves by path; of lists only those of objects are entered."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    elif isinstance(node, list | tuple):
        if all(isinstance(part, Mapping) for part in node):
            for i, part in enumerate(node):
                yield from _flat(part, f"{path}.{i}")
        elif all(isinstance(part, str) for part in node):
            yield path, ", ".join(map(str, node))
    elif isinstance(node, str | int | float):
        yield path, node


def _wandb(
    project: str, run: str, config: Config, metrics: Mapping[str, float], picture: Path | None, workspace: Path
) -> None:
    import wandb

    mode = None if "WANDB_MODE" in os.environ else "offline"
    folder = os.environ.get("WANDB_DIR") or str(workspace)
    with wandb.init(
        project=project, name=run, config=dict(config), mode=mode, dir=folder, settings=wandb.Settings(silent=True)
    ) as opened:
        opened.log(dict(metrics))
        if picture:  # as a file: logging it as a picture would need another package
            opened.save(str(picture), base_path=str(picture.parent), policy="now")


def _mlflow(
    project: str, run: str, config: Config, metrics: Mapping[str, float], picture: Path | None, workspace: Path
) -> None:
    import mlflow  # pyright: ignore[reportMissingImports]  # one of the extras

    if "MLFLOW_TRACKING_URI" not in os.environ:
        mlflow.set_tracking_uri(f"sqlite:///{workspace / 'mlflow.db'}")
    mlflow.set_experiment(project)
    with mlflow.start_run(run_name=run):
        mlflow.log_params({name: str(value)[:500] for name, value in config.items()})
        mlflow.log_metrics(dict(metrics))
        if picture:
            mlflow.log_artifact(str(picture))


def _trackio(
    project: str, run: str, config: Config, metrics: Mapping[str, float], picture: Path | None, workspace: Path
) -> None:
    import trackio  # pyright: ignore[reportMissingImports]  # one of the extras

    trackio.init(project=project, name=run, config=dict(config), embed=False)
    try:
        trackio.log({**metrics, **({"picture": trackio.Image(str(picture))} if picture else {})})
    finally:
        trackio.finish()


TRACKERS: dict[str, Track] = {"wandb": _wandb, "mlflow": _mlflow, "trackio": _trackio}
PACKAGES: Mapping[str, str] = {"wandb": "wandb", "mlflow": "mlflow", "trackio": "trackio"}
