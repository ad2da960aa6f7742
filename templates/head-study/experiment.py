"""What a head is, by its scores, its attention, its weights, and by what is lost without it."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """From the kind of the head to the ablation that tests it."""
    model, seed = config["model"], config["seed"]
    scores = host.call("detect_heads", {"model": model, "seed": seed, **config["random_tokens"]}).result
    kind = next(k for k in scores.kinds if k.kind == config["kind"])
    head = config["head"] or kind.top[0].head
    made = {"task": config["task"], "model": model, "n": config["prompts"], "seed": seed}
    on = {"model": model, "prompts": host.call("make_prompts", made).result.handle, "seed": seed}
    looks = host.call("attention_patterns", {**on, "heads": [head]}).result
    writes = host.call("ov_circuit", {"model": model, "head": head, "seed": seed}).result
    test = {**on, "heads": [head], "together": True, "split": "held_out", "controls": config["controls"]}
    removed = host.call("ablate", {**test, "ablation": "resample"}).result
    joint = removed.joint[0]
    return {
        "head": head,
        "kind": {"summary": scores.summary, "run": scores.about.run, "warnings": list(scores.warnings)},
        "looks": {"summary": looks.summary, "run": looks.about.run},
        "writes": {"summary": writes.summary, "run": writes.about.run},
        "without_it": {
            "summary": removed.summary, "fraction_lost": joint.fraction, "p": joint.p, "run": removed.about.run,
            "warnings": list(removed.warnings),
        },
    }


if __name__ == "__main__":
    from journal import main

    main(study)
