"""Train a sparse autoencoder, and judge it against baselines before any feature is looked at."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Estimate, train, judge."""
    shared = {key: config[key] for key in ("model", "site", "text", "architecture", "features", "k", "seed")}
    training = {**shared, "name": "study", **{key: config[key] for key in ("tokens", "steps", "width")}}
    trained = host.call("train_sae", training).result
    judging = {"model": config["model"], "sae": trained.folder, "text": config["text"], "seed": config["seed"]}
    sizes = {"tokens": config["judged_on"], "width": config["width"], "baseline_tokens": 2 * config["judged_on"]}
    baselines = {"baselines": ["pca", "random_decoder"], "baseline_steps": 50, "probing": False}
    judged = host.call("evaluate_sae", {**judging, **sizes, **baselines}).result
    return {
        "trained": {"summary": trained.summary, "folder": trained.folder, "seconds": trained.seconds},
        "judged": {"summary": judged.summary, "run": judged.about.run, "warnings": list(judged.warnings)},
    }


if __name__ == "__main__":
    from journal import main

    main(study)
