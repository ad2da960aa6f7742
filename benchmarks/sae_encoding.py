"""What encoding text with an SAE costs beside what it cannot avoid: the forward pass to its layer and its arithmetic.

    python -m benchmarks.sae_encoding [tokens] [sae]

Measured in turns on the same rows: (a) the model's own pass to the layer, read; (b) the dictionary's products alone on
those activations (encode and decode, dense); (c) `encode_tokens`, which gives sparse features, errors and norms. The
goal is c <= 1.2 (a + b). Without a name a random top-k dictionary of 4,608 features at the middle layer is used.
"""

from __future__ import annotations

import sys
import time
from statistics import median
from typing import Any

import torch
from anatomist.dictionaries.protocol import Dictionary
from anatomist.dictionaries.reading import activations, encode_tokens
from anatomist.dictionaries.saelens import load_dictionary, wrap_sae
from anatomist.model.loading import load_model
from anatomist.model.protocol import Model
from anatomist.prompts.corpus import corpus_of, rows
from anatomist.roots import Roots

WIDTH, TURNS, LIMIT = 128, 3, 1.2


def random_dictionary(model: Model) -> Dictionary:
    """As large as a useful one; what it finds does not matter here."""
    from sae_lens import TopKSAE, TopKSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    layer = model.info.n_layers // 2
    metadata = SAEMetadata(model_name=model.info.name, hook_name=f"blocks.{layer}.hook_resid_post", prepend_bos=False)
    torch.manual_seed(0)
    sae: Any = TopKSAE(TopKSAEConfig(model.info.d_model, 8 * model.info.d_model, k=32, metadata=metadata))
    return wrap_sae(sae, name="random top-k", model=model)


def measured(model: Model, dictionary: Dictionary, n_tokens: int) -> tuple[float, float, float]:
    """Seconds of the pass, of the dictionary's products, and of the whole; medians over turns."""
    tokens = rows(corpus_of("python", Roots([])), model, width=WIDTH, n_tokens=n_tokens)
    site = dictionary.info.reads
    seconds: list[tuple[float, float, float]] = []
    for _ in range(TURNS):
        start = time.perf_counter()
        held = [batch.x for batch in activations(model, dictionary, tokens, in_order=True)]
        passed = time.perf_counter()
        for x in held:
            dictionary.decode(dictionary.encode(x), x)
        multiplied = time.perf_counter()
        encode_tokens(model, dictionary, tokens)
        done = time.perf_counter()
        seconds.append((passed - start, multiplied - passed, done - multiplied))
    print(f"{sum(tokens.lengths)} tokens of {WIDTH}, {dictionary.info.name} at {site}, {TURNS} turns")
    a, b, c = (median(turn[k] for turn in seconds) for k in range(3))
    return a, b, c


def main() -> None:
    n_tokens = int(sys.argv[1]) if sys.argv[1:] else 10_000
    model = load_model("smollm2-135m")
    dictionary = load_dictionary(sys.argv[2], model=model) if sys.argv[2:] else random_dictionary(model)
    with torch.no_grad():
        a, b, c = measured(model, dictionary, n_tokens)
    print(f"pass {a:.2f} s, products {b:.2f} s, encode_tokens {c:.2f} s: ratio {c / (a + b):.3f} (at most {LIMIT})")


if __name__ == "__main__":
    main()
