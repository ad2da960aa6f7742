"""Train a sparse autoencoder, and judge it against baselines before any feature is looked at."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host
from anatomist.prompts.corpus import corpus_of

TRAINING = 0.7  # share of the documents


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Train, then judge on documents that the training never saw."""
    training_text, judged_text = parted(host, config["text"], config["seed"])
    shared = {key: config[key] for key in ("model", "site", "architecture", "features", "k", "seed")}
    sizes = {key: config[key] for key in ("tokens", "steps", "width")}
    trained = host.call("train_sae", {**shared, **sizes, "text": training_text, "name": "study"}).result
    judging = {"model": config["model"], "sae": trained.folder, "text": judged_text, "seed": config["seed"]}
    sizes = {"tokens": config["judged_on"], "width": config["width"], "baseline_tokens": 2 * config["judged_on"]}
    baselines = {"baselines": ["pca", "random_decoder"], "baseline_steps": 50, "probing": False}
    judged = host.call("evaluate_sae", {**judging, **sizes, **baselines}).result
    return {
        "trained": {
            "summary": trained.summary, "folder": trained.folder, "seconds": trained.seconds,
            "warnings": list(trained.warnings),
        },
        "judged": {
            "summary": judged.summary, "run": judged.about.run, "verdict": list(judged.verdict),
            "warnings": list(judged.warnings),
        },
    }  # fmt: skip


def parted(host: Host, text: str | list[str], seed: int) -> list[str]:
    """Files with the documents to train on and with those to judge on."""
    folder = host.workspace / "text"
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / "training.txt", folder / "judging.txt"]
    for file, part in zip(files, corpus_of(text, host.roots).split(TRAINING, seed), strict=True):
        file.write_text("\n\n".join(part.documents), encoding="utf-8")
    return [str(file) for file in files]


if __name__ == "__main__":
    from journal import main

    main(study)
