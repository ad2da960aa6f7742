"""Load a dictionary in SAELens's formats: a local folder (ours too), a released one, or the one that ships.

SAELens does the mathematics of encoding; here it is checked and made explicit. Every load proves on random input that
scale(x) * (f @ directions) + offset(x) is what SAELens itself reconstructs, and refuses a dictionary where it is not.
Only safetensors (and NumPy's array files of Gemma Scope) are read, never pickles.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from ..errors import BadArguments, CorruptFile, NotFinite, Unsupported
from ..model.quiet import quiet
from .hooks import Place, in_model, place_of
from .protocol import DictionaryInfo, Input, Kind, ReleaseFigures
from .toy import TOYS, toy_sae

if TYPE_CHECKING:
    from collections.abc import Mapping

    from jaxtyping import Float
    from torch import Tensor

    from ..model.protocol import Model, Norm
    from ..model.sites import Site
    from .sources import Found

Given = Callable[["Tensor"], "Tensor"]
CONTEXTUAL = frozenset({"temporal"})  # architectures whose features at a token depend on other tokens
PROOF = 1e-4  # relative difference accepted between our reconstruction and SAELens's on random input, in float32
TOLD = (  # metadata that have a field of their own
    "model_name", "hook_name", "hook_name_out", "prepend_bos", "context_size", "hf_hook_name", "hf_hook_name_out",
)  # fmt: skip


class SAELensDictionary:
    """A dictionary whose encoder is SAELens's."""

    def __init__(self, sae: Any, info: DictionaryInfo, *, given: Given | None = None) -> None:
        """`given`: what makes of the site's activation what the dictionary was trained on (info.input says which)."""
        self._sae = sae
        self._given = given
        self.info = info
        self.directions = _directions(sae)
        self._bias = _bias(sae)

    def encode(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest f"]:
        self._check_width(x)
        features = self._sae.encode(self._input(x))
        for kept in ("ln_mu", "ln_std", "x_norm_coeff"):  # statistics of x that SAELens would keep for its own decode
            self._sae.__dict__.pop(kept, None)
        return features

    def decode(
        self, f: Float[Tensor, "*rest f"], x: Float[Tensor, "*rest d_in"] | None = None
    ) -> Float[Tensor, "*rest d_out"]:
        if f.shape[-1] != self.info.d_dict:
            raise BadArguments(f"{self.info.name} has {self.info.d_dict} features; {f.shape[-1]} were given.")
        plain = f.to(self.directions.dtype) @ self.directions
        if not self.info.needs_input:
            return plain + self._bias
        if x is None:
            raise BadArguments(
                f"{self.info.name} normalises or passes on every token's own activation ({self.info.normalisation}, "
                f"{self.info.input} input, {self.info.architecture}): decode it with x, the activation it encoded."
            )
        return self.scale(x) * plain + self.offset(x)

    def scale(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest 1"]:
        if self.info.kind == "transcoder" or self.info.normalisation not in _PER_TOKEN:
            return x.new_ones((*x.shape[:-1], 1), dtype=self.directions.dtype)
        return _PER_TOKEN[self.info.normalisation](self._input(x))

    def offset(self, x: Float[Tensor, "*rest d_in"]) -> Float[Tensor, "*rest d_out"]:
        bias = self._bias * self.scale(x)
        if self.info.kind == "transcoder":
            skip = getattr(self._sae, "W_skip", None)
            return bias if skip is None else bias + self._input(x) @ skip.T
        if self.info.normalisation == "layer_norm":
            bias = bias + self._input(x).mean(-1, keepdim=True)
        return bias + x.mean(-1, keepdim=True) if self.info.input == "centred" else bias

    def close(self) -> None:
        """Free the weights."""
        for name in ("_sae", "directions", "_bias"):
            self.__dict__.pop(name, None)

    def _input(self, x: Tensor) -> Tensor:
        given = x if self._given is None else self._given(x)
        return given.to(self.directions.dtype)

    def _check_width(self, x: Tensor) -> None:
        if x.shape[-1] != self.info.d_in:
            raise BadArguments(
                f"{self.info.name} reads {self.info.d_in} numbers a token at {self.info.site}; {x.shape[-1]} were "
                "given. It belongs to another site or another model."
            )


def wrap_sae(
    sae: Any,
    *,
    name: str,
    source: str = "in memory",
    model: Model | None = None,
    site: Site | None = None,
    release: ReleaseFigures | None = None,
) -> SAELensDictionary:
    """A SAELens object in memory as a Dictionary. Training classes should be turned into inference ones first.

    model: needed where the dictionary reads through a norm, to take that norm from. site: overrules the metadata.

    Raises:
        CorruptFile: the metadata name no hook and no site was given, or the widths disagree.
        BadSite: a hook that has no site, or a place that the model does not have.
        NotFinite: NaN or infinity in the weights.
        Unsupported: an architecture whose features are not those of one token.
    """
    sae = sae.eval().requires_grad_(False)
    sae.turn_off_forward_pass_hook_z_reshaping()  # heads come side by side here
    meta = _metadata(sae)
    if sae.cfg.architecture() in CONTEXTUAL:
        raise Unsupported(
            f"{name} is a {sae.cfg.architecture()} dictionary: its features at a token depend on the tokens before it. "
            "Choose one that encodes each token by itself (standard, topk, jumprelu, gated, matryoshka, transcoder)."
        )
    _check_finite(sae, name)
    place, out = _places(sae, meta, site, name)
    if model is not None:
        place, out = in_model(place, model.info.shape), in_model(out, model.info.shape)
    info = _info(sae, meta, name, source, place, out.site, release or ReleaseFigures())
    found = SAELensDictionary(sae, info, given=_given(place, model, name))
    _prove(found, sae)
    return found


def load_dictionary(
    name: str,
    *,
    model: Model | None = None,
    site: Site | None = None,
    dtype: str | None = None,
    device: str | None = None,
    handle: str | None = None,
) -> SAELensDictionary:
    """Load by name: a shipped dictionary, a folder with cfg.json and sae_weights.safetensors, or 'release:id'.

    dtype, device: the model's own when absent; float32 on the CPU where there is no model either.

    Raises:
        UnknownName: neither. Unavailable: a release that is not in the cache, and no network. CorruptFile: damaged or
        incomplete. Unsupported: pickles. And all of `wrap_sae`.
    """
    from .sources import find

    found = find(name)
    kind = dtype or (model.info.dtype if model is not None else "float32")
    place = device or (model.info.device if model is not None else "cpu")
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what they say is in the info or measured at load
        sae = _read(found, kind, place)
    return wrap_sae(
        sae, name=handle or found.name, source=found.given, model=model, site=site, release=found.figures
    )


def _read(found: Found, dtype: str, device: str) -> Any:
    """The SAELens object of a folder or a release."""
    from sae_lens import SAE
    from safetensors import SafetensorError

    if found.name in TOYS:
        return toy_sae(found.name).to(device=device, dtype=getattr(torch, dtype))
    try:
        if found.folder is not None:
            return SAE.load_from_disk(found.folder, device=device, dtype=dtype)
        assert found.release is not None
        return SAE.from_pretrained(found.release.release, found.release.id, device=device, dtype=dtype)
    except SafetensorError as error:
        raise CorruptFile(
            f"the weights of {found.given!r} are not safetensors, or damaged: {error}. Get the folder again; pickles "
            "are not read."
        ) from error
    except OSError as error:
        raise found.unreachable(error) from error
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptFile(
            f"{found.given!r} cannot be read as a SAELens dictionary: {_first(error)} Its cfg.json must name the "
            "architecture, d_in and d_sae, and agree with the weights; get the folder again."
        ) from error


def _places(sae: Any, meta: Mapping[str, Any], site: Site | None, name: str) -> tuple[Place, Place]:
    """Where it reads and where it writes."""
    hook = meta.get("hook_name")
    if site is None and not hook:
        raise CorruptFile(
            f"the metadata of {name} name no hook, so it cannot be known what it reads. Give the site yourself, e.g. "
            "site='blocks.15.resid_post', and look at the explained variance that is measured at load."
        )
    centred = bool((meta.get("model_from_pretrained_kwargs") or {}).get("center_writing_weights"))
    reads = Place(site, "plain") if site is not None else place_of(str(hook), hf_hook=meta.get("hf_hook_name"))
    if centred and reads.input == "plain" and reads.site.kind.startswith(("resid", "embed", "mlp_out", "attn_out")):
        reads = reads._replace(input="centred")
    out = meta.get("hook_name_out")
    if "transcoder" not in sae.cfg.architecture():
        return reads, Place(reads.site, "plain")
    if not out:
        raise CorruptFile(f"the metadata of the transcoder {name} do not name the hook it explains (hook_name_out).")
    return reads, Place(place_of(str(out)).site, "plain")


def _given(place: Place, model: Model | None, name: str) -> Given | None:
    """What the dictionary is given of the activation at the site it reads."""
    if place.input == "plain":
        return None
    if place.input == "centred":
        return lambda x: x - x.mean(-1, keepdim=True)
    if model is None:
        raise Unsupported(f"{name} reads {place.site} through the norm before the MLP: load it together with a model.")
    assert place.site.layer is not None
    norm = model.weights.mlp_norm(place.site.layer)
    return norm if place.input == "normed" else _scaled(norm)


def _scaled(norm: Norm) -> Given:
    bare = type(norm)(norm.kind, None, None, norm.eps)
    return bare.__call__


def _info(
    sae: Any, meta: Mapping[str, Any], name: str, source: str, place: Place, out: Site, release: ReleaseFigures
) -> DictionaryInfo:
    cfg = sae.cfg
    kind: Kind = "transcoder" if "transcoder" in cfg.architecture() else "sae"
    given: Input = place.input
    return DictionaryInfo(
        name=name, source=source, kind=kind, architecture=cfg.architecture(),
        model=meta.get("model_name"), site=str(place.site), site_out=str(out), hook=str(meta.get("hook_name") or ""),
        input=given, d_in=cfg.d_in, d_out=getattr(cfg, "d_out", cfg.d_in), d_dict=cfg.d_sae,
        dtype=str(sae.dtype).removeprefix("torch."), device=str(sae.device), normalisation=cfg.normalize_activations,
        needs_input=(kind == "sae" and (cfg.normalize_activations in _PER_TOKEN or given == "centred"))
        or hasattr(sae, "W_skip"),
        bos=meta.get("prepend_bos"), context_size=meta.get("context_size"), release=release,
        weights_hash=_hash(sae),
        metadata={k: str(v) for k, v in meta.items() if k not in TOLD and v is not None},
    )  # fmt: skip


def _metadata(sae: Any) -> Mapping[str, Any]:
    """What the metadata really hold: SAELens answers None for any name that is missing."""
    return dict(sae.cfg.metadata.items())


def _directions(sae: Any) -> Float[Tensor, "f d_out"]:
    """Decoder rows, divided by their norms where the architecture does so when it decodes."""
    rows = sae.W_dec.detach()
    if getattr(sae.cfg, "rescale_acts_by_decoder_norm", False):
        rows = rows / rows.norm(dim=-1, keepdim=True)
    return rows


def _bias(sae: Any) -> Float[Tensor, " d_out"]:
    """The decoder's bias; matching pursuit adds it only where it took it away before."""
    bias = sae.b_dec.detach()
    tied = sae.cfg.architecture() == "matching_pursuit" and not sae.cfg.apply_b_dec_to_input
    return bias * 0 if tied else bias


def _layer_norm_scale(x: Tensor) -> Tensor:
    return x.std(-1, keepdim=True)  # what SAELens multiplies its reconstruction by


def _constant_norm_scale(x: Tensor) -> Tensor:
    return x.norm(dim=-1, keepdim=True) / x.shape[-1] ** 0.5


_PER_TOKEN: Mapping[str, Given] = {
    "layer_norm": _layer_norm_scale,
    "constant_norm_rescale": _constant_norm_scale,
}


def _prove(found: SAELensDictionary, sae: Any) -> None:
    """Our reconstruction against SAELens's own forward on four random tokens.

    Raises:
        Unsupported: they differ: the architecture decodes in a way that is not a sum of directions.
    """
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, found.info.d_in, generator=generator).to(found.directions)
    with torch.no_grad():
        given = found._input(x)
        theirs = sae(given)
        ours = found.decode(found.encode(x), x)
    if found.info.input == "centred" and found.info.kind == "sae":
        theirs = theirs + x.mean(-1, keepdim=True)
    size = float(theirs.abs().max()) or 1.0
    worst = float((ours - theirs).abs().max()) / size
    tolerance = PROOF if found.info.dtype in ("float32", "float64") else 5e-2
    if not worst <= tolerance:
        raise Unsupported(
            f"{found.info.name} ({found.info.architecture}, normalisation {found.info.normalisation}) does not "
            f"reconstruct as a sum of directions: {worst:.2g} away from SAELens's own. Choose another dictionary."
        )


def _check_finite(sae: Any, name: str) -> None:
    bad = [key for key, weight in sae.state_dict().items() if not weight.isfinite().all()]
    if bad:
        raise NotFinite(
            f"the weights {', '.join(bad)} of {name} hold NaN or infinity; get the file again, or load it in a wider "
            "dtype (float32)."
        )


def _hash(sae: Any) -> str:
    digest = hashlib.sha256()
    for key, weight in sorted(sae.state_dict().items()):
        digest.update(key.encode())
        digest.update(weight.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def _first(error: BaseException) -> str:
    line = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
    return line if line.endswith((".", "!", "?")) else line + "."
