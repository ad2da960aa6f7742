"""Train a toy model, name its heads by their attention, and test how theory says they work together."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host

NAMED = 0.3  # attention score above which a head is called by its kind


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Training, detection, and two causal tests: of the paths between the heads, and of the heads themselves."""
    seed = config["seed"]
    training = {"kind": config["kind"], "steps": config["steps"], "seed": seed, "name": "grown"}
    trained = host.call("train_toy_model", training).result
    scores = host.call("detect_heads", {"model": trained.model, "seed": seed, "rows": 16, "length": 20}).result
    named = {kind.kind: sorted(top.head for top in kind.top if top.score > NAMED) for kind in scores.kinds}
    first = [head for head in named["previous_token"] if head.startswith("L0")]
    second = [head for head in named["induction"] if head.startswith("L1")]
    result = {
        "trained": {"summary": trained.summary, "model": trained.model, "seconds": trained.seconds},
        "heads": {"previous_token": first, "induction": second, "summary": scores.summary, "run": scores.about.run},
    }
    if not (first and second):
        return {**result, "stopped": f"no head of a kind scores above {NAMED}: train longer"}
    made = {"task": "induction", "model": trained.model, "n": config["prompts"], "seed": seed}
    on = {"model": trained.model, "prompts": host.call("make_prompts", made).result.handle, "seed": seed}
    paths = {
        side: fed(host, {**on, "senders": first, "receivers": [f"{head}.{side}" for head in second]}) for side in "qkv"
    }
    test = {**on, "heads": second, "together": True, "split": "held_out", "ablation": "resample", "controls": 0}
    removed = host.call("ablate", test).result
    return {
        **result,
        "paths_into": paths,
        "without_induction_heads": {
            "summary": removed.summary, "fraction_lost": removed.joint[0].fraction, "run": removed.about.run,
            "warnings": list(removed.warnings),
        },
    }


def fed(host: Host, paths: dict[str, Any]) -> dict[str, Any]:
    """What is lost, on average over the paths, when a sender reaches one side of a receiver from another prompt."""
    found = host.call("path_patching", {**paths, "direction": "noising", "split": "held_out"}).result
    changes = [change for change in found.effects.change.values if change is not None]
    return {"mean_change": sum(changes) / len(changes), "summary": found.summary, "run": found.about.run}


if __name__ == "__main__":
    from journal import main

    main(study)
