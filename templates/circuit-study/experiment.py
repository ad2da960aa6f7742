"""Find the heads a behaviour needs on discovery prompts, and test them together on held-out ones."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """The whole study; every number comes with the id of the run that made it."""
    model, seed = config["model"], config["seed"]
    made = {"task": config["task"], "model": model, "n": config["prompts"], "seed": seed}
    handle = host.call("make_prompts", made).result.handle
    on = {"model": model, "prompts": handle, "seed": seed}
    check = host.call("check_prompts", on).result
    if not check.worth_going_on:
        return {"stopped": check.summary, "run": check.about.run}
    at = {"positions": config["positions"]} if config["positions"] else {}
    found = host.call("patch_activations", {**on, **at, "site": "head", "direction": "noising"}).result
    named = needed(found)[: config["heads"]]
    if not named:
        return {"check": check.summary, "stopped": "no head stands out", "run": found.about.run}
    alone = host.call("ablate", {**on, **at, "heads": named, "together": False, "ablation": "resample"}).result
    heads = [head for head in named if head in needed(alone)]
    if not heads:
        return {"check": check.summary, "stopped": f"none of {named} is missed alone", "run": alone.about.run}
    test = {**on, **at, "heads": heads, "together": True, "split": "held_out", "controls": config["controls"]}
    removed = {kind: host.call("ablate", {**test, "ablation": kind}).result for kind in ("mean", "resample")}
    return {
        "check": {"summary": check.summary, "run": check.about.run},
        "found": {"heads": named, "summary": found.summary, "run": found.about.run},
        "alone": {"heads": heads, "summary": alone.summary, "run": alone.about.run},
        "tested": {kind: tested(result) for kind, result in removed.items()},
    }


def needed(result: Any) -> list[str]:
    """The heads without which the answer loses, beyond the correction for the number of heads; largest loss first."""
    return [s.cell for s in result.stand_out if s.change.mean < 0]


def tested(result: Any) -> dict[str, Any]:
    """What ablating the heads together did on the held-out prompts."""
    joint = result.joint[0]
    return {
        "fraction_lost": joint.fraction,
        "change": joint.change.model_dump(),
        "p": joint.p,
        "run": result.about.run,
        "warnings": list(result.warnings),
    }


if __name__ == "__main__":
    from journal import main

    main(study)
