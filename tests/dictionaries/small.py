"""Small random dictionaries of every SAELens type, and what each computes written out in NumPy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy import ndarray
from sae_lens import (
    SAE,
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    GatedSAE,
    GatedSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
    SkipTranscoder,
    SkipTranscoderConfig,
    StandardSAE,
    StandardSAEConfig,
    TopKSAE,
    TopKSAEConfig,
    Transcoder,
    TranscoderConfig,
)
from sae_lens.saes.sae import SAEMetadata

HOOK = "blocks.1.hook_resid_post"
D_IN, D_DICT, K = 32, 40, 5


def metadata(hook: str = HOOK, **more: Any) -> SAEMetadata:
    return SAEMetadata(model_name="llama", hook_name=hook, prepend_bos=False, context_size=16, **more)


def drawn(sae: Any, seed: int = 0) -> Any:
    """Every weight drawn anew, biases and thresholds away from zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in sae.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            weight.copy_(0.4 + 0.1 * noise if name == "threshold" else 0.3 * noise if weight.dim() > 1 else 0.2 * noise)
    return sae


def standard(**more: Any) -> Any:
    return drawn(StandardSAE(StandardSAEConfig(D_IN, D_DICT, metadata=metadata(), **more)))


def topk(**more: Any) -> Any:
    return drawn(TopKSAE(TopKSAEConfig(D_IN, D_DICT, k=K, metadata=metadata(), **more)))


def topk_rescaled() -> Any:
    return topk(rescale_acts_by_decoder_norm=True)


def jumprelu(**more: Any) -> Any:
    return drawn(JumpReLUSAE(JumpReLUSAEConfig(D_IN, D_DICT, metadata=metadata(), **more)))


def gated() -> Any:
    return drawn(GatedSAE(GatedSAEConfig(D_IN, D_DICT, metadata=metadata())))


def transcoder(hook: str = HOOK, out: str = "blocks.1.hook_mlp_out") -> Any:
    told = metadata(hook, hook_name_out=out)
    return drawn(Transcoder(TranscoderConfig(D_IN, D_DICT, d_out=D_IN, apply_b_dec_to_input=False, metadata=told)))


def skip_transcoder() -> Any:
    told = metadata(HOOK, hook_name_out="blocks.1.hook_mlp_out")
    config = SkipTranscoderConfig(D_IN, D_DICT, d_out=D_IN, apply_b_dec_to_input=False, metadata=told)
    return drawn(SkipTranscoder(config))


def batchtopk(folder: Any) -> Any:
    """As training leaves it: saved as JumpReLU with one threshold for all."""
    config = BatchTopKTrainingSAEConfig(D_IN, D_DICT, k=K, metadata=metadata())
    return _as_inference(BatchTopKTrainingSAE(config), folder)


def matryoshka(folder: Any) -> Any:
    config = MatryoshkaBatchTopKTrainingSAEConfig(
        D_IN, D_DICT, k=K, matryoshka_widths=[10, 20, D_DICT], metadata=metadata()
    )  # fmt: skip
    return _as_inference(MatryoshkaBatchTopKTrainingSAE(config), folder)


def _as_inference(training: Any, folder: Any) -> Any:
    drawn(training)
    training.topk_threshold.fill_(0.7)
    training.save_inference_model(folder)
    return SAE.load_from_disk(folder)


KINDS: dict[str, Callable[[], Any]] = {
    "standard": standard, "topk": topk, "topk_rescaled": topk_rescaled, "jumprelu": jumprelu, "gated": gated,
    "transcoder": transcoder, "skip_transcoder": skip_transcoder,
    "standard_layer_norm": lambda: standard(normalize_activations="layer_norm"),
    "standard_constant_norm": lambda: standard(normalize_activations="constant_norm_rescale"),
    "standard_plain_input": lambda: standard(apply_b_dec_to_input=False),
}  # fmt: skip


def by_hand(sae: Any, x: ndarray) -> tuple[ndarray, ndarray]:
    """Features and reconstruction of x [n, D_IN], by the formulas of the papers, in double precision."""
    w = {name: weight.detach().double().numpy() for name, weight in sae.state_dict().items()}
    kind, norm = sae.cfg.architecture(), sae.cfg.normalize_activations
    mean, scale = np.zeros((len(x), 1)), np.ones((len(x), 1))
    if norm == "layer_norm":  # SAELens divides by the standard deviation plus 1e-5, with n - 1 below
        mean = x.mean(1, keepdims=True)
        scale = (x - mean).std(1, ddof=1, keepdims=True)
        given = (x - mean) / (scale + 1e-5)
    elif norm == "constant_norm_rescale":
        scale = np.linalg.norm(x, axis=1, keepdims=True) / x.shape[1] ** 0.5
        given = x / scale
    else:
        given = x
    centred = given - w["b_dec"] if sae.cfg.apply_b_dec_to_input else given
    pre = centred @ w["W_enc"] + w.get("b_enc", 0.0)
    rows = w["W_dec"]
    if kind == "jumprelu":
        f = np.where(pre > w["threshold"], np.maximum(pre, 0), 0)
    elif kind == "gated":
        gate = centred @ w["W_enc"] + w["b_gate"] > 0
        f = gate * np.maximum(centred @ (w["W_enc"] * np.exp(w["r_mag"])) + w["b_mag"], 0)
    elif kind == "topk":
        if sae.cfg.rescale_acts_by_decoder_norm:
            norms = np.linalg.norm(rows, axis=1)
            pre, rows = pre * norms, rows / norms[:, None]
        least = np.sort(pre, axis=1)[:, -sae.cfg.k][:, None]
        f = np.where(pre >= least, np.maximum(pre, 0), 0)
    else:
        f = np.maximum(pre, 0)
    out = (f @ rows + w["b_dec"]) * scale + mean
    return f, out + x @ w["W_skip"].T if "W_skip" in w else out
