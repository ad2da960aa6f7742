"""Probe a property at every layer, on words that the probe has not seen."""

from __future__ import annotations

from typing import Any

from anatomist.host import Host

# Each goes on after the word: at the last token nothing is left of the word but what the model has carried there.
TEMPLATES = (
    "Yesterday I saw a {} and", "They told me about the {} that", "She drew a picture of a {} because",
    "Nobody noticed the old {} until", "In the middle of the road stood a {} which", "We had never owned a {} but",
    "He wrote a long letter about his {} when", "The children pointed at the {} as",
)  # fmt: skip


def examples(words: dict[str, list[str]], templates: tuple[str, ...] = TEMPLATES) -> list[dict[str, str]]:
    """Every word in every template; a word's sentences stay on one side of each split."""
    return [
        {"text": template.format(word), "label": label, "group": word}
        for label, list_of_words in words.items()
        for word in list_of_words
        for template in templates
    ]


def study(host: Host, config: dict[str, Any]) -> dict[str, Any]:
    """One call: every layer, with its baselines."""
    given = {key: config[key] for key in ("model", "site", "position", "null_models", "seed")}
    result = host.call("probe", {**given, "examples": config.get("examples") or examples(config["words"])}).result
    return {"summary": result.summary, "run": result.about.run, "warnings": list(result.warnings)}


if __name__ == "__main__":
    from journal import main

    main(study)
