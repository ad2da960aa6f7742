"""Sparse autoencoders: encoding against the model's own forward pass, training against SAELens called directly."""

from __future__ import annotations

import statistics
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from anatomist.dictionaries.baselines import for_inference
from anatomist.dictionaries.reading import encode_tokens
from anatomist.dictionaries.saelens import wrap_sae
from anatomist.dictionaries.training.cache import cached
from anatomist.dictionaries.training.order import InMemory, Shuffled
from anatomist.dictionaries.training.recipe import Recipe, training_config, untrained
from anatomist.dictionaries.training.trainer import _trainer, train
from anatomist.model.protocol import Model
from anatomist.model.sites import Site
from anatomist.model.tokens import Tokens

from .clock import timed

WIDTH, TOKENS, FEATURES, K = 128, 10_000, 4096, 32
BATCH, STEPS, REPEATS = 2048, 12, 2
SMALL = 8192  # tokens that both ways read and train on, from text to dictionary
BUDGET = 2**29


def measured(model: Model) -> list[dict[str, object]]:
    """Rows: what, seconds of ours, seconds it is held against, what that is."""
    site = Site("resid_post", model.info.n_layers // 2)
    rows = _rows(model, TOKENS)
    return [_encoding(model, site, rows), _stepping(model.info.d_model), _whole(model, site)]


def _rows(model: Model, tokens: int) -> Tokens:
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(model.info.d_vocab, (tokens // WIDTH, WIDTH), generator=draw)
    return model.tokenize([tuple(row) for row in ids.tolist()])


def _encoding(model: Model, site: Site, tokens: Tokens) -> dict[str, object]:
    """`encode_tokens` against the bare forward pass to the layer plus the products of encoding and decoding."""
    recipe = Recipe(architecture="topk", d_dict=FEATURES, k=K)
    sae = wrap_sae(for_inference(untrained(recipe, model.info.d_model, "cpu")), name="drawn", site=site, model=model)
    x = torch.randn(WIDTH * 8, model.info.d_model)
    f = torch.randn(len(x), FEATURES)

    def forward() -> None:
        for start in range(0, tokens.n_rows, 8):
            model.run(tokens.rows(range(start, min(start + 8, tokens.n_rows))), read=[site])

    def arithmetic() -> None:
        for _ in range(0, tokens.n_rows, 8):
            (x @ sae.directions.T).topk(K, dim=-1)
            f @ sae.directions

    ours, bare, products = [], [], []
    for _ in range(REPEATS):
        bare.append(timed(forward)[0])
        products.append(timed(arithmetic)[0])
        ours.append(timed(lambda: encode_tokens(model, sae, tokens, budget_bytes=BUDGET))[0])
    floor = [a + b for a, b in zip(bare, products, strict=True)]
    what = f"encode {tokens.n_rows * WIDTH} tokens, {FEATURES} features"
    return _row(what, ours, floor, "forward pass to the layer, and the products")


def _stepping(d: int) -> dict[str, object]:
    """Steps on activations that are there: our loop against SAELens's `SAETrainer.fit`, the same batches."""
    recipe = Recipe(architecture="topk", d_dict=FEATURES, k=K, steps=STEPS, batch=BATCH, normalise=False)
    source = InMemory(torch.randn(STEPS * BATCH, d, generator=torch.Generator().manual_seed(0)))

    def batches() -> Shuffled:
        return Shuffled(source, np.arange(source.tokens), batch=BATCH, seed=0, device="cpu")

    ours, theirs = [], []
    for _ in range(REPEATS):
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            theirs.append(timed(_trainer(recipe, batches()).fit)[0])
        ours.append(timed(lambda: train(recipe, batches()))[0])
    return _row(f"{STEPS} steps of {BATCH} tokens, {FEATURES} features", ours, theirs, "SAELens's SAETrainer.fit")


def _whole(model: Model, site: Site) -> dict[str, object]:
    """From tokens to a dictionary: reading and training, against SAELens's runner on the same model."""
    tokens = _rows(model, SMALL)
    recipe = Recipe(architecture="topk", d_dict=FEATURES, k=K, steps=SMALL // BATCH, batch=BATCH, normalise=False)
    theirs = timed(lambda: _runner(model, site, tokens, recipe))[0]
    with tempfile.TemporaryDirectory() as folder:

        def ours() -> None:
            found = cached(model, site, tokens, Path(folder), budget=BUDGET)
            train(recipe, Shuffled(found, np.arange(found.tokens), batch=BATCH, seed=0, device="cpu"))

        seconds = timed(ours)[0]
    return _row(f"{SMALL} tokens read and trained on, {FEATURES} features", [seconds], [theirs], "SAELens's runner")


def _runner(model: Model, site: Site, tokens: Tokens, recipe: Recipe) -> None:
    from anatomist.dictionaries.training.folder import hook_name
    from datasets import Dataset
    from sae_lens import LanguageModelSAERunnerConfig, LanguageModelSAETrainingRunner, LoggingConfig

    config = LanguageModelSAERunnerConfig(
        sae=training_config(recipe, model.info.d_model, "cpu"), model_name=model.info.name, hook_name=hook_name(site),
        dataset_path="", is_dataset_tokenized=True, context_size=WIDTH, training_tokens=SMALL, prepend_bos=False,
        streaming=False, store_batch_size_prompts=8, n_batches_in_buffer=16, train_batch_size_tokens=recipe.batch,
        lr=recipe.lr, logger=LoggingConfig(log_to_wandb=False), output_path=None, checkpoint_path=None, verbose=False,
    )  # fmt: skip
    data = Dataset.from_dict({"input_ids": [list(row) for row in tokens.ids] * 4})
    with warnings.catch_warnings(), torch.enable_grad():
        warnings.simplefilter("ignore")
        LanguageModelSAETrainingRunner(config, override_dataset=data, override_model=model._bridge).run()  # type: ignore[attr-defined]


def _row(what: str, ours: list[float], other: list[float], against: str) -> dict[str, object]:
    return {
        "what": what, "seconds": statistics.median(ours), "against": against, "their_seconds": statistics.median(other),
        "ratio": statistics.median(a / b for a, b in zip(ours, other, strict=True)), "n": len(ours),
    }  # fmt: skip
