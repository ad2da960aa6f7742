"""Features of a concept: found on one part of the prompts, tested on the other, and taken away."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host
from anatomist.prompts.prompt_set import PromptSet


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """Measure the dictionary, search, take away."""
    model, seed = config["model"], config["seed"]
    loaded = host.call("load_sae", {"sae": config["sae"], "model": model}).result
    made = {"task": config["task"], "model": model, "n": config["prompts"], "seed": seed}
    handle = host.call("make_prompts", made).result.handle
    on = {"model": model, "sae": loaded.handle, "prompts": handle, "seed": seed}
    active = host.call("encode_sae", on).result
    sides = with_concept_first(host, handle, config["concept"]) if config["concept"] else handle
    search = host.call("sae_feature_search", {**on, "prompts": sides, "position": config["read_at"], "show": 0}).result
    at = {"positions": config["taken_away_at"]} if config["taken_away_at"] else {}
    needed = host.call("sae_attribution", {**on, **at, "top": 5, "sample": 5, "controls": config["controls"]}).result
    return {
        "dictionary": {"summary": loaded.summary, "warnings": list(loaded.warnings)},
        "active": {"summary": active.summary, "run": active.about.run},
        "search": {"summary": search.summary, "run": search.about.run, "warnings": list(search.warnings)},
        "needed": {"summary": needed.summary, "run": needed.about.run, "warnings": list(needed.warnings)},
    }


def with_concept_first(host: Host, handle: str, answer: str) -> str:
    """The same prompts with the side that calls for `answer` always as the clean one, each pair of texts once.

    A search sets clean texts against corrupted ones. In a task whose answers take turns the concept is on both sides,
    and no feature could tell them apart.
    """
    pair = host.shelf.get(handle)
    discovery, held_out = (turned(part, answer) for part in (pair.discovery, pair.held_out))
    return host.shelf.put(discovery, held_out, task=pair.task, seed=pair.seed, model=pair.model).handle


def turned(part: PromptSet, answer: str) -> PromptSet:
    kept = {}
    for prompt in part.prompts:
        if prompt.wrong == answer:
            other = {"clean": prompt.corrupted, "corrupted": prompt.clean, "answer": answer, "wrong": prompt.answer}
            prompt = prompt.model_copy(update=other)
        if prompt.answer == answer:
            kept[prompt.clean, prompt.corrupted] = prompt
    return part.model_copy(update={"prompts": tuple(kept.values())})


if __name__ == "__main__":
    from journal import main

    main(study)
