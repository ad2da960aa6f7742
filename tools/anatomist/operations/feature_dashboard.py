"""Write one self-contained HTML page of SAE features: logits, histograms, neighbours, and text by strength.

For one feature or a set, in the look Neuronpedia and SAEDashboard users know; opens without a network. Comes back: the
file, and each feature in a line. sae_feature_search gives the same as data, and finds features of a
concept.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from ..causal.feature_pages import FeatureDescription, Looked, describe
from ..causal.features import parse_features
from ..host import Host
from ..operation import Outcome, Where
from ..prompts.corpus import corpus_of
from ..report.dashboard import dashboard
from ..result import Frozen
from ..technique import Bos, ModelHandle, Progress, SaeArgument, Seed, TextArgument

TITLE = "Feature dashboard"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    model: ModelHandle
    sae: SaeArgument
    features: tuple[int | str, ...] = Field(min_length=1, max_length=50, description="Numbers or names like L15F123.")
    text: TextArgument = "python"
    n_tokens: int = Field(default=20_000, ge=256, le=10_000_000, description="Tokens of text that are read.")
    width: int = Field(default=64, ge=8, le=4096, description="Tokens the model sees at a time.")
    examples: int = Field(default=10, ge=1, le=50, description="Examples of each kind.")
    bos: Bos = None
    seed: Seed = 0
    path: str | None = Field(default=None, description="HTML file in the workspace or an allowed folder.")


class Dashboard(Outcome):
    """The page."""

    html: str = Field(description="The file.")
    features: tuple[str, ...] = Field(description="Each feature in a line.")


def run(host: Host, arguments: Arguments, progress: Progress) -> Dashboard:
    """Read the text once and write the page in one step.

    Raises:
        BadArguments: features that do not exist. OutsideRoots: a file or text outside the allowed folders.
    """
    progress(0, arguments.n_tokens, f"preparing {arguments.sae}")
    model = host.model(arguments.model, progress)
    dictionary = host.named_dictionary(arguments.sae, arguments.model, progress)
    corpus = corpus_of(arguments.text, host.roots)
    looked = describe(
        model, dictionary, parse_features(arguments.features, dictionary), corpus, n_tokens=arguments.n_tokens,
        width=arguments.width, examples=arguments.examples, seed=arguments.seed, bos=arguments.bos,
        budget_bytes=host.budget_bytes,
        told=lambda n: progress(min(n, arguments.n_tokens), arguments.n_tokens, "text read"),
    )  # fmt: skip
    info = dictionary.info
    path = _path(host, arguments)
    read = f"{looked.tokens:,} tokens of {looked.documents} documents ({corpus.name})"
    what = (
        f"{info.architecture} {info.kind} of {info.d_dict:,} features at {info.site}"
        f"{'' if info.site == info.site_out else f' to {info.site_out}'}, model {arguments.model}. Text: {read}."
    )
    named = looked.features[0].feature if len(looked.features) == 1 else f"{len(looked.features)} features"
    _replace(path, dashboard(f"{info.name}: {named}", [what], info.cautions, looked.features))
    return Dashboard(
        summary=f"{len(looked.features)} features of {info.name} on {read}: {path}. Names are hypotheses until an "
        "intervention and unseen text bear them out (sae_attribution, steer).",
        warnings=(*info.cautions, *_silent(looked)),
        html=str(path),
        features=tuple(map(_line, looked.features)),
    )


def _line(one: FeatureDescription) -> str:
    top = ", ".join(dict.fromkeys(repr(e.tokens[e.focus]) for e in one.examples if e.kind == "top"))
    up = " ".join(t.token for t in one.promotes[:5])
    said = f"promotes {up}" if up else "promotes nothing directly"
    return f"{one.feature}: active on {one.density:.3%}; strongest on {top or 'none'}; {said}"


def _silent(looked: Looked) -> tuple[str, ...]:
    silent = [f.feature for f in looked.features if not f.density]
    return (f"Active on no token of this text: {', '.join(silent)}; read more or other text.",) if silent else ()


def _path(host: Host, arguments: Arguments) -> Path:
    """Where the page goes: a file asked for, inside the allowed folders, or one named after the features."""
    if arguments.path is not None:
        given = Path(arguments.path).expanduser()
        folder = host.roots.check(given.parent if given.parent != Path() else host.workspace)
        return folder / given.name
    named = "-".join(str(f) for f in arguments.features[:4]) + ("-and-more" if arguments.features[4:] else "")
    safe = "".join(c if c.isalnum() or c in "-._" else "-" for c in f"{Path(arguments.sae).name}-{named}")
    return host.workspace / "dashboards" / f"{safe}.html"


def _replace(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.writing")
    scratch.write_text(text, encoding="utf-8")
    scratch.replace(path)
