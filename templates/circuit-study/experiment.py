"""Find the heads a behaviour needs on discovery prompts, and test them together on held-out ones."""

from __future__ import annotations

import json
import sys
import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

from anatomist.host import Host

HERE = Path(__file__).parent


def study(config: dict[str, Any], workspace: Path) -> dict[str, Any]:
    """The whole study; every number comes with the id of the run that made it."""
    host = Host(workspace)
    model, seed = config["model"], config["seed"]
    made = host.call(
        "make_prompts", {"task": config["task"], "model": model, "n": config["prompts"], "seed": seed}
    ).result
    on = {"model": model, "prompts": made.handle, "seed": seed}
    check = host.call("check_prompts", on).result
    if not check.worth_going_on:
        return {"config": config, "stopped": check.summary}
    at = {"positions": config["positions"]} if config["positions"] else {}
    found = host.call("patch_activations", {**on, **at, "site": "head", "direction": "noising"}).result
    heads = [s.cell for s in found.stand_out if s.change.mean < 0][: config["heads"]]
    if not heads:
        return {"config": config, "check": check.summary, "stopped": "no head stands out"}
    test = {**on, **at, "heads": heads, "split": "held_out", "controls": config["controls"]}
    removed = {kind: host.call("ablate", {**test, "ablation": kind}).result for kind in ("mean", "resample")}
    return {
        "config": config,
        "check": {"summary": check.summary, "run": check.about.run},
        "found": {"heads": heads, "summary": found.summary, "run": found.about.run},
        "tested": {
            kind: {
                "fraction_lost": result.joint[0].fraction,
                "change": result.joint[0].change.model_dump(),
                "p": result.joint[0].p,
                "run": result.about.run,
                "warnings": list(result.warnings),
            }
            for kind, result in removed.items()
        },
    }


def main() -> None:
    config = tomllib.loads((HERE / "config.toml").read_text())
    result = study(config, HERE / ".anatomist")
    path = HERE / "results" / f"{datetime.now():%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1))
    sys.stdout.write(f"{json.dumps(result, indent=1)}\nwritten to {path}\n")


if __name__ == "__main__":
    main()
