"""Train a toy model, name its heads, and ablate the ones that should matter."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Training, detection, causal test."""
    training = {"kind": config["kind"], "steps": config["steps"], "seed": config["seed"], "name": "grown"}
    trained = host.call("train_toy_model", training).result
    detecting = {"model": trained.model, "seed": config["seed"], "rows": 16, "length": 20}
    scores = host.call("detect_heads", detecting).result
    heads = sorted({top.head for kind in scores.kinds if kind.kind == "induction" for top in kind.top[:2]})
    made = {"task": "induction", "model": trained.model, "n": config["prompts"], "seed": config["seed"]}
    on = {"model": trained.model, "prompts": host.call("make_prompts", made).result.handle, "seed": config["seed"]}
    test = {**on, "heads": heads, "together": True, "split": "held_out", "controls": config["controls"]}
    removed = host.call("ablate", {**test, "ablation": "resample"}).result
    return {
        "trained": {"summary": trained.summary, "model": trained.model, "seconds": trained.seconds},
        "heads": {"named": heads, "summary": scores.summary, "run": scores.about.run},
        "without_them": {
            "summary": removed.summary, "fraction_lost": removed.joint[0].fraction, "p": removed.joint[0].p,
            "run": removed.about.run,
        },
    }


if __name__ == "__main__":
    from journal import main

    main(study)
