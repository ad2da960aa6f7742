"""Locate heads behind a bias, remove them from a copy of the model, and measure what changed."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Find, remove, measure on the bias, on other tasks, on neutral text."""
    model, seed = config["model"], config["seed"]
    on = {"model": model, "prompts": prompts(host, config, config["task"]), "seed": seed}
    before = host.call("check_prompts", {**on, "split": "held_out"}).result
    found = host.call("patch_activations", {**on, "site": "head", "direction": "noising"}).result
    heads = [s.cell for s in found.stand_out if s.change.mean < 0][: config["heads"]]
    if not heads:
        return {"before": before.summary, "stopped": "no head stands out", "run": found.about.run}
    removal = {
        **on, "split": "held_out", "changes": [{"rule": "zero", "parts": heads}],
        "neutral_text": config["neutral"],
        "controls": config["controls"],
    }  # fmt: skip
    edited = host.call("edit_weights", removal).result
    others = {task: on_both(host, config, task, edited.handle) for task in config["others"]}
    return {
        "before": {"summary": before.summary, "run": before.about.run},
        "found": {"heads": heads, "summary": found.summary, "run": found.about.run},
        "removed": {"summary": edited.summary, "run": edited.about.run, "warnings": list(edited.warnings)},
        "others": others,
    }


def prompts(host: Host, config: dict[str, Any], task: str) -> str:
    made = {"task": task, "model": config["model"], "n": config["prompts"], "seed": config["seed"]}
    return str(host.call("make_prompts", made).result.handle)


def on_both(host: Host, config: dict[str, Any], task: str, edited: str) -> dict[str, Any]:
    """A task on the model as it was and as it is now."""
    on = {"prompts": prompts(host, config, task), "seed": config["seed"], "split": "held_out"}
    checks = {name: host.call("check_prompts", {**on, "model": name}).result for name in (config["model"], edited)}
    return {name: {"summary": check.summary, "run": check.about.run} for name, check in checks.items()}


if __name__ == "__main__":
    from journal import main

    main(study)
