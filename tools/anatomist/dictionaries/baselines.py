"""What a dictionary must beat: principal components, a decoder that learned nothing, a model that learned nothing.

- Per-token top-k PCA: each token keeps the k principal components that are largest on it, k the dictionary's L0. As
  many numbers a token as the dictionary, none of them a feature.
- Frozen random decoder: the same number of features, their directions drawn at random and never trained, only the
  encoder and the bias are. Much of what a trained dictionary scores, such a one scores too.
- The same training on a model of the same configuration with random weights: features that are found there are
  features of the architecture and the text, not of what was learned.

Source: Korznikov et al., "Sanity checks for sparse autoencoders", arXiv 2602.14111 (frozen decoder); Heap et al.,
arXiv 2501.17727 (SAEs of random transformers); Karvonen et al., SAEBench, arXiv 2503.09532 (PCA).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..model.protocol import Model
from ..model.sites import Site
from ..model.tokens import Tokens
from .protocol import Dictionary, DictionaryInfo
from .reading import read_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from jaxtyping import Float
    from torch import Tensor

    from .saelens import SAELensDictionary
    from .training.recipe import Recipe


class PrincipalComponents:
    """The k components that are largest on each token: a dictionary with signed activations."""

    def __init__(self, x: Float[Tensor, "n d"], k: int, info: DictionaryInfo) -> None:
        """x: tokens the components are taken from, massive-norm tokens left out. info: of the dictionary beside it."""
        from scipy.linalg import eigh

        self._mean = x.mean(0)
        centred = (x - self._mean).double()
        _, vectors = eigh((centred.T @ centred).cpu().numpy())
        self.directions = x.new_tensor(vectors.T.copy())
        self._k = max(1, min(k, x.shape[1]))
        self.info = info.model_copy(
            update={
                "name": f"PCA, top {self._k} a token", "source": "baseline", "architecture": "pca", "kind": "sae",
                "site": info.site_out, "d_in": x.shape[1], "d_out": x.shape[1], "d_dict": x.shape[1],
                "input": "plain", "normalisation": "none", "needs_input": False, "dtype": str(x.dtype)[6:],
            }
        )  # fmt: skip

    def encode(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest d"]:
        all_of_them = (x.to(self.directions.dtype) - self._mean) @ self.directions.T
        least = all_of_them.abs().topk(self._k, dim=-1).values[..., -1:]
        return all_of_them * (all_of_them.abs() >= least)

    def decode(
        self, f: Float[Tensor, "*rest d"], x: Float[Tensor, "*rest d"] | None = None
    ) -> Float[Tensor, "*rest d"]:
        return f @ self.directions + self._mean

    def scale(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest 1"]:
        return x.new_ones((*x.shape[:-1], 1))

    def offset(self, x: Float[Tensor, "*rest d"]) -> Float[Tensor, "*rest d"]:
        return self._mean.expand(x.shape)

    def close(self) -> None:
        del self.directions, self._mean


def trained_on(
    x: Float[Tensor, "n d"], recipe: Recipe, *, name: str, site: Site, progress: Callable[[float, float, str], None]
) -> SAELensDictionary:
    """A dictionary trained on activations that are held in memory.

    Raises:
        BadPrompts: fewer tokens than a batch.
    """
    import numpy as np

    from .saelens import wrap_sae
    from .training.order import InMemory, Shuffled
    from .training.trainer import train

    batches = Shuffled(InMemory(x), np.arange(len(x)), batch=recipe.batch, seed=recipe.seed, device=str(x.device))

    def say(done: float, total: float, what: str) -> None:
        progress(done, total, f"{name}: {what}")

    return wrap_sae(for_inference(train(recipe, batches, progress=say).sae), name=name, source="baseline", site=site)


def for_inference(sae):
    """SAELens's inference class of a training class, in memory."""
    from sae_lens import SAE

    state = {key: value.detach().clone() for key, value in sae.state_dict().items()}
    sae.process_state_dict_for_saving_inference(state)
    found = SAE.from_dict(sae.cfg.get_inference_sae_cfg_dict())
    found.load_state_dict(state)
    return found


def ordinary_activations(
    model: Model, site: Site, tokens: Tokens, *, times: float, budget: int
) -> Float[Tensor, "n d"]:
    """What stands at a place on all tokens whose norm is at most so many times the median, in float32."""
    import torch

    from ..model.batches import batches

    found = []
    for part in batches(model.info, tokens, [site], budget, in_order=True):
        rows = tokens.rows(part)
        x = read_of(model.run(rows, read=[site]), site)
        found += [x[i, :n].float() for i, n in enumerate(rows.lengths)]
    every = torch.cat(found)
    norms = every.norm(dim=-1)
    return every[norms <= times * norms.median()]


def same_size(dictionary: Dictionary, l0: float, *, steps: int, batch: int, seed: int, frozen: bool) -> Recipe:
    """The settings of a baseline: as many features, as many of them active at a token."""
    from .training.recipe import Recipe

    return Recipe(
        architecture="topk", d_dict=dictionary.info.d_dict, k=max(1, min(round(l0), dictionary.info.d_dict)),
        batch=batch, steps=steps, lr=1e-3, dead_after=max(10, steps // 5), freeze_decoder=frozen, seed=seed,
    )  # fmt: skip

