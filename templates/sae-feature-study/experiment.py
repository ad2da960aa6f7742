"""Features of a concept: found on one part of the prompts, tested on the other, and taken away."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Measure the dictionary, search, take away."""
    model, seed = config["model"], config["seed"]
    loaded = host.call("load_sae", {"sae": config["sae"], "model": model}).result
    made = {"task": config["task"], "model": model, "n": config["prompts"], "seed": seed}
    handle = host.call("make_prompts", made).result.handle
    on = {"model": model, "sae": loaded.handle, "prompts": handle, "seed": seed}
    active = host.call("encode_sae", on).result
    search = host.call("sae_feature_search", {**on, "position": "last", "show": 0}).result
    needed = host.call("sae_attribution", {**on, "top": 5, "sample": 5, "controls": 19}).result
    return {
        "dictionary": {"summary": loaded.summary, "warnings": list(loaded.warnings)},
        "active": {"summary": active.summary, "run": active.about.run},
        "search": {"summary": search.summary, "run": search.about.run, "warnings": list(search.warnings)},
        "needed": {"summary": needed.summary, "run": needed.about.run, "warnings": list(needed.warnings)},
    }


if __name__ == "__main__":
    from journal import main

    main(study)
