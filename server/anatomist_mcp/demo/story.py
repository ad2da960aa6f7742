"""The demonstration as a page: five phases, every number with its run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from anatomist.causal.joint import JointEffect
from anatomist.figures import Figure
from anatomist.report.page import Page, Section
from anatomist.result import About, Estimate, Result
from anatomist.store import Store
from anatomist.techniques.ablate import AblationResult

from .steps import Demo

STRONG = 0.25  # share of the behaviour lost that the page calls large


def page(demo: Demo, store: Store, seconds: dict[str, float]) -> Page:
    """The whole report."""
    info = demo.model.info
    report = Page(
        title="How does SmolLM2 find the indirect object?",
        kicker="Anatomist · demonstration",
        lede=(
            f"An MCP client asked the Anatomist server. The model: {info.source}, {info.parameters:,} parameters, "
            f"{info.n_layers} layers of {info.n_heads} heads, {info.dtype} on {info.device}. "
            f"{demo.prompts.discovery} prompts to discover with, {demo.prompts.held_out} held out to test with."
        ),
        foot="Every figure on this page was computed in the runs listed under Provenance. Made with Anatomist.",
    )
    _answer(report.section("In short"), demo)
    _set_up(report.section("Set-up", "Phase 1"), demo)
    _design(report.section("Experiment design", "Phase 2"), demo, store)
    _look(report.section("Implementation", "Phase 3"), demo, store)
    _analyse(report.section("Analysis", "Phase 4"), demo, store)
    _validate(report.section("Validation", "Phase 5"), demo, store)
    _provenance(report.section("Provenance"), demo, seconds)
    return report


def _answer(section: Section, demo: Demo) -> None:
    mean, resample = (_joint(r) for r in demo.removed)
    heads = ", ".join(demo.chosen)
    lost = mean.fraction or 0.0
    beats = (mean.p or 1.0) <= 0.05 and (resample.p or 1.0) <= 0.05
    tone = "" if beats and lost >= STRONG else "weak"
    section.verdict(
        f"Removing {heads} together, on sentences with names that were not used to find them, costs {lost:.0%} of the "
        f"logit difference (mean ablation; {resample.fraction or 0.0:.0%} with resampling). "
        + (
            f"None of {len(mean.control_changes)} random sets of as many heads of the same layers does as much."
            if beats
            else "Random sets of as many heads are not clearly weaker, so this set is not shown to be special."
        ),
        tone,
    )
    section.note(
        "This is a demonstration, not a full validation: one seed, one task. It shows that the set is needed for this "
        "behaviour, not that it is enough, nor that it is the only such set."
    )


def _set_up(section: Section, demo: Demo) -> None:
    info = demo.model.info
    parity = info.parity
    section.text(demo.environment.summary, demo.model.summary)
    section.tiles(
        [
            (f"{info.parameters / 1e6:.0f}M", "parameters", None),
            (f"{info.n_layers} × {info.n_heads}", f"layers × heads ({info.n_kv_heads} key-value heads)", None),
            (f"{parity.max_logprob_difference:.1e}" if parity else "none",
             "nats at most from the plain Hugging Face model, measured at load", None),
            ("no" if not info.adds_bos else "yes", "beginning-of-sequence token before each prompt", None),
        ]
    )  # fmt: skip


def _design(section: Section, demo: Demo, store: Store) -> None:
    section.text(
        "Two names, one of them repeated: the sentence should end with the name that was not repeated. The corrupted "
        "twin repeats the other name, token for token aligned, so that the right answer flips."
    )
    rows = [[str(p.clean), str(p.corrupted), str(p.answer), str(p.wrong)] for p in demo.prompts.examples]
    section.table(["clean", "corrupted", "answer", "wrong"], rows)
    section.text(demo.check.summary)
    _picture(section, store, demo.check)


def _look(section: Section, demo: Demo, store: Store) -> None:
    section.heading("When does the answer become readable?").text(demo.lens.summary)
    _picture(section, store, demo.lens)
    section.heading("Which components write it?").text(demo.direct.summary)
    _picture(section, store, demo.direct)
    section.heading("Where does the difference between the two names pass?").text(demo.residual.summary)
    _picture(section, store, demo.residual)
    section.heading("The same, for one sentence, at every token").text(demo.one_prompt.summary)
    _picture(section, store, demo.one_prompt)
    section.heading("Which heads are needed?").text(demo.heads.summary)
    _picture(section, store, demo.heads)
    first = demo.heads.effects[0]
    rows = [
        [s.cell, _estimate(s.change), "" if s.fraction is None else f"{s.fraction:.2f}", _p(s.p_holm)]
        for s in demo.heads.stand_out
    ]
    section.table(
        ["head", f"change of {first.metric} ({first.unit}) when noised", "fraction of the gap", "p (Holm)"],
        rows,
        run=_about(demo.heads).run,
    )


def _analyse(section: Section, demo: Demo, store: Store) -> None:
    section.text(
        f"The heads whose noising costs most are {', '.join(demo.chosen)}. Where they look says what they could be "
        "doing; it does not show that they do it."
    )
    section.text(demo.attention.summary)
    _picture(section, store, demo.attention)
    section.verdict(
        f"Prediction, before the held-out prompts are used: ablating {', '.join(demo.chosen)} together will lower the "
        f"logit difference by at least {STRONG:.0%} of its value, and more than random sets of the same layers."
    )


def _validate(section: Section, demo: Demo, store: Store) -> None:
    for result in demo.removed:
        joint = _joint(result)
        section.heading(f"{result.ablation} ablation, held-out prompts").text(result.summary)
        lost = joint.fraction
        section.tiles(
            [
                ("withheld" if lost is None else f"{lost:.0%}", "of the logit difference lost", _about(result).run),
                (f"{joint.change.mean:+.2f}", f"{joint.unit}, {_interval(joint.change)}", _about(result).run),
                (f"{joint.control_mean or 0.0:+.2f}",
                 f"{joint.unit}, mean of {len(joint.control_changes)} random sets", _about(result).run),
                (_p(joint.p), f"share of sets, this one counted, with as large a change ({joint.drawn})",
                 _about(result).run),
            ]
        )  # fmt: skip
        _picture(section, store, result)


def _provenance(section: Section, demo: Demo, seconds: dict[str, float]) -> None:
    results: Sequence[Result] = (
        demo.check, demo.lens, demo.direct, demo.residual, demo.one_prompt, demo.heads, demo.attention, *demo.removed,
    )  # fmt: skip
    rows = [(_about(r).run, _row(_about(r))) for r in results]
    section.anchor_table(["run", "technique", "model", "backend", "dtype", "BOS", "seed", "n", "seconds"], rows)
    tests = [(t.name, t.found, t.tolerance, t.passed) for r in (demo.residual, demo.heads) for t in r.self_tests]
    section.heading("Self-tests of the sweeps")
    section.table(
        ["test", "found", "tolerance", ""],
        [[name, f"{found:.2g}", f"{tolerance:.1g}", "pass" if ok else "fail"] for name, found, tolerance, ok in tests],
    )
    section.heading("Time of each call")
    section.table(["call", "seconds"], [[name, f"{took:.1f}"] for name, took in seconds.items()])
    versions = ", ".join(f"{k} {v}" for k, v in _about(demo.heads).versions.items())
    weights = demo.model.info.weights_hash[:16]
    section.text(f"Versions: {versions}. Prompts {demo.prompts.handle}, weights {weights}.")


def _picture(section: Section, store: Store, result: Result) -> None:
    """The run's picture, and what it warns of."""
    run = _about(result).run
    section.figure(Figure.model_validate(store.get(run).json("figure.json")), run=run)
    for warning in result.warnings:
        section.note(warning)


def _joint(result: AblationResult) -> JointEffect:
    return result.joint[0]


def _about(result: Result) -> About:
    assert result.about is not None
    return result.about


def _row(about: About) -> list[str]:
    return [
        about.run, about.technique, about.model, about.backend, about.dtype, "yes" if about.bos else "no",
        str(about.seed), str(about.n or ""), f"{about.seconds:.1f}",
    ]  # fmt: skip


def _estimate(e: Estimate) -> str:
    return f"{e.mean:+.2f} {_interval(e)}".strip()


def _interval(e: Estimate) -> str:
    return "" if e.low is None or e.high is None else f"[{e.low:.2f}, {e.high:.2f}] (n={e.n})"


def _p(p: float | None) -> str:
    return "" if p is None else ("< 0.001" if p < 0.001 else f"{p:.3f}")


def write(report: Page, path: Path) -> None:
    """Write the page in one step."""
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(report.html(), encoding="utf-8")
    scratch.replace(path)
