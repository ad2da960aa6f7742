"""Load a sparse autoencoder or transcoder for a model, and measure it there; returns its handle and its figures.

Accepts a shipped name, a folder with cfg.json and sae_weights.safetensors, or 'release:id' of SAELens's directory.
After every load L0, explained variance, cross-entropy recovered and dead share are measured on a few hundred tokens of
the model in hand and held against the release; a wrong hook, activation function, normalisation or BOS is called out in
words. Pickles are refused. list_saes shows what exists; techniques that take `sae` load it themselves as well.
"""

from __future__ import annotations

from pydantic import Field

from ..dictionaries.held import DictionaryRequest
from ..dictionaries.protocol import DictionaryInfo
from ..dictionaries.quality import Quality
from ..estimate.sizes import Dtype
from ..host import Host
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import ModelHandle, Progress, TextArgument

TITLE = "Load an SAE or transcoder"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    sae: str = Field(min_length=1, description="Shipped name, folder, or 'release:id' as list_saes shows it.")
    model: ModelHandle
    site: str | None = Field(
        default=None, description="Site that overrules the metadata, e.g. 'blocks.15.resid_post'."
    )
    dtype: Dtype | None = Field(default=None, description="Number format; the model's own when absent.")
    text: TextArgument = "python"
    other_model: bool = Field(
        default=False, description="Load it though its metadata name another model (same weights, another name)."
    )


class LoadedSae(Outcome):
    """A dictionary that is ready."""

    handle: str = Field(description="Pass it as `sae`.")
    info: DictionaryInfo
    quality: Quality | None = Field(description="Measured on this model; absent where the text could not be read.")


def run(host: Host, arguments: Arguments, progress: Progress) -> LoadedSae:
    request = DictionaryRequest(
        sae=arguments.sae, site=arguments.site, dtype=arguments.dtype, other_model=arguments.other_model
    )
    loaded = host.load_dictionary(request, arguments.model, arguments.text, progress)
    info = loaded.info
    where = info.site if info.site == info.site_out else f"{info.site} to {info.site_out}"
    progress(1, 1, f"loaded {loaded.handle}")
    return LoadedSae(
        summary=(
            f"{loaded.handle}: {info.architecture} {info.kind} of {info.d_dict:,} features at {where} "
            f"({info.d_in} wide{'' if info.input == 'plain' else f', {info.input} input'}). {measured(loaded.quality)} "
            f"{stated(info)} Next: encode_sae or sae_feature_search with sae='{loaded.handle}'."
        ),
        warnings=info.cautions,
        handle=loaded.handle,
        info=info,
        quality=loaded.quality,
    )


def measured(quality: Quality | None) -> str:
    """The figures in a sentence, massive-norm tokens apart."""
    if quality is None:
        return "Not measured."
    ordinary = quality.ordinary
    recovered = "" if ordinary.ce_recovered is None else f", {ordinary.ce_recovered:.0%} of the cross-entropy recovered"
    apart = (
        f" ({quality.massive_tokens} massive-norm tokens, which hold {quality.massive_variance_share:.0%} of the "
        "variance, left out)"
        if quality.massive_tokens
        else ""
    )
    return (
        f"Here, on {ordinary.tokens} tokens{apart}: L0 {ordinary.l0:.1f}, explained variance "
        f"{ordinary.explained_variance:.3f}{recovered}, {ordinary.dead_share:.0%} of the features silent."
    )


def stated(info: DictionaryInfo) -> str:
    """What the release says."""
    release = info.release
    parts = [
        f"{name} {value:.3g}"
        for name, value in (
            ("L0", release.l0), ("explained variance", release.explained_variance),
            ("cross-entropy recovered", release.ce_recovered), ("dead share", release.dead_share),
        )
        if value is not None
    ]  # fmt: skip
    return f"The release states {', '.join(parts)}." if parts else "The release states no figures."
