"""Makes the tables of references/compute-awareness.md from the shapes below, by the estimator's own formulas.

`python -m tests.docs_tables` writes them anew. A shape is what a model's config.json says; the number of parameters is
the published one (of Gemma 3 from 4B on: the language model without its image encoder), held against a count in the
tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

from anatomist.estimate import formulas as f
from anatomist.estimate.calibration import Rate
from anatomist.estimate.named import Work, cost_of_named
from anatomist.estimate.sizes import ITEM_BYTES, Sizes

PROMPTS, TOKENS = 32, 128  # of the activations
SWEEP_TOKENS = 16  # of a sweep: the length of a task's prompts
FIT_PROMPTS = 8  # of 128 tokens, in what must fit beside the weights
EXPANSION = 16  # features a dimension
SAE_PROMPTS = 781_250  # of 128 tokens: 10^8 in all
USABLE = {"16 GB laptop": 12e9, "24 GB GPU": 21e9, "80 GB GPU": 72e9}  # bytes left by system, display, fragments
DTYPES = ("float32", "bfloat16")
LAPTOP = Rate(flops_per_second=1e11, bytes_per_second=5e10, how="assumed of a laptop's processor in float32")
GPU = Rate(flops_per_second=1e14, bytes_per_second=2e12, how="assumed of a large GPU in bfloat16")


class Known(NamedTuple):
    """A model people name: what its config says, and how many parameters it has."""

    name: str
    parameters: int
    config: Mapping[str, int | str | bool]

    def sizes(self, dtype: str = "float32") -> Sizes:
        shape = Sizes.of_config(self.config, item_bytes=ITEM_BYTES[dtype])
        return shape.model_copy(update={"parameters": self.parameters})


def _gpt2(name: str, parameters: int, layers: int, d: int, heads: int) -> Known:
    config = {"model_type": "gpt2", "n_layer": layers, "n_embd": d, "n_head": heads, "vocab_size": 50257}
    return Known(name, parameters, config)


def _pythia(name: str, parameters: int, layers: int, d: int, heads: int, vocabulary: int = 50304) -> Known:
    config = {
        "model_type": "gpt_neox", "num_hidden_layers": layers, "hidden_size": d, "num_attention_heads": heads,
        "intermediate_size": 4 * d, "vocab_size": vocabulary, "tie_word_embeddings": False,
    }  # fmt: skip
    return Known(f"pythia-{name}", parameters, config)


def _gated(
    kind: str, name: str, parameters: int, layers: int, d: int, heads: tuple[int, int, int], mlp: int, vocabulary: int,
    *, tied: bool = True,
) -> Known:  # fmt: skip
    """heads: query heads, key-value heads, width of a head."""
    config = {
        "model_type": kind, "num_hidden_layers": layers, "hidden_size": d, "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1], "head_dim": heads[2], "intermediate_size": mlp, "vocab_size": vocabulary,
        "tie_word_embeddings": tied,
    }  # fmt: skip
    return Known(name, parameters, config)


KNOWN: tuple[Known, ...] = (
    _gated("llama", "SmolLM2-135M", 134_515_008, 30, 576, (9, 3, 64), 1536, 49152),
    _gpt2("gpt2", 124_439_808, 12, 768, 12),
    _gpt2("gpt2-medium", 354_823_168, 24, 1024, 16),
    _gpt2("gpt2-large", 774_030_080, 36, 1280, 20),
    _gpt2("gpt2-xl", 1_557_611_200, 48, 1600, 25),
    _pythia("70m", 70_426_624, 6, 512, 8),
    _pythia("160m", 162_322_944, 12, 768, 12),
    _pythia("410m", 405_334_016, 24, 1024, 16),
    _pythia("1.4b", 1_414_647_808, 24, 2048, 16),
    _pythia("6.9b", 6_857_302_016, 32, 4096, 32, 50432),
    _pythia("12b", 11_846_072_320, 36, 5120, 40, 50688),
    _gated("llama", "Llama-3.2-1B", 1_235_814_400, 16, 2048, (32, 8, 64), 8192, 128256),
    _gated("llama", "Llama-3.2-3B", 3_212_749_824, 28, 3072, (24, 8, 128), 8192, 128256),
    _gated("llama", "Llama-3.1-8B", 8_030_261_248, 32, 4096, (32, 8, 128), 14336, 128256, tied=False),
    _gated("llama", "Llama-3-70B", 70_553_706_496, 80, 8192, (64, 8, 128), 28672, 128256, tied=False),
    _gated("gemma2", "gemma-2-2b", 2_614_341_888, 26, 2304, (8, 4, 256), 9216, 256000),
    _gated("gemma2", "gemma-2-9b", 9_241_705_984, 42, 3584, (16, 8, 256), 14336, 256000),
    _gated("gemma3_text", "gemma-3-270m", 268_098_176, 18, 640, (4, 1, 256), 2048, 262144),
    _gated("gemma3_text", "gemma-3-1b", 999_885_952, 26, 1152, (4, 1, 256), 6912, 262144),
    _gated("gemma3_text", "gemma-3-4b", 3_880_263_168, 34, 2560, (8, 4, 256), 10240, 262208),
    _gated("gemma3_text", "gemma-3-12b", 11_766_034_176, 48, 3840, (16, 8, 256), 15360, 262208),
    _gated("qwen2", "Qwen2.5-0.5B", 494_032_768, 24, 896, (14, 2, 64), 4864, 151936),
    _gated("qwen2", "Qwen2.5-1.5B", 1_543_714_304, 28, 1536, (12, 2, 128), 8960, 151936),
    _gated("qwen2", "Qwen2.5-7B", 7_615_616_512, 28, 3584, (28, 4, 128), 18944, 152064, tied=False),
    _gated("qwen3", "Qwen3-0.6B", 596_049_920, 28, 1024, (16, 8, 128), 3072, 151936),
    _gated("qwen3", "Qwen3-1.7B", 1_720_574_976, 28, 2048, (16, 8, 128), 6144, 151936),
    _gated("qwen3", "Qwen3-8B", 8_190_735_360, 36, 4096, (32, 8, 128), 12288, 151936, tied=False),
)

Row = Sequence[str | int]


def tables() -> dict[str, str]:
    """Every table by the name of its markers."""
    return {name: _table(heading, [make(k) for k in KNOWN]) for name, (heading, make) in _TABLES.items()}


def bytes_to_read(sizes: Sizes) -> int:
    """The weights and a forward pass over 8 prompts of 128 tokens with every logit: what must fit."""
    logits, work = (part(sizes, FIT_PROMPTS, TOKENS) for part in (f.logit_bytes, f.block_at_work_bytes))
    return f.weight_bytes(sizes) + logits + work


def pattern_bytes(sizes: Sizes, rows: int, tokens: int) -> int:
    """Attention patterns of every head: B L H T^2 s."""
    return rows * sizes.layers * sizes.heads * tokens**2 * sizes.item_bytes


def gradient_bytes(sizes: Sizes, rows: int, tokens: int) -> int:
    """What attribution patching holds: saved activations, and head outputs with their gradients."""
    saved = rows * tokens * f.autograd_bytes_per_token(sizes, tokens, eager=True)
    return saved + 2 * f.head_bytes(sizes, rows, tokens)


def dictionary(sizes: Sizes) -> int:
    """Parameters of a dictionary of 16 features a dimension."""
    return f.dictionary_parameters(sizes.d_model, EXPANSION * sizes.d_model)


def dictionary_flops(sizes: Sizes) -> float:
    """Reading 10^8 tokens and training on them once."""
    read = f.forward_flops(sizes, SAE_PROMPTS, TOKENS, logits_per_row=0)
    return read + 6.0 * dictionary(sizes) * SAE_PROMPTS * TOKENS


def fits(known: Known, usable: float) -> str:
    """The widest dtype in which a model can be read in so many bytes."""
    names = {"float32": "fp32", "bfloat16": "bf16"}
    return next((names[d] for d in DTYPES if bytes_to_read(known.sizes(d)) <= usable), "no")


WORK: Mapping[str, Callable[[Sizes], Work]] = {
    "forward": lambda s: Work(PROMPTS, TOKENS),
    "attribution_patching": lambda s: Work(PROMPTS, TOKENS),
    "residual_sweep": lambda s: Work(PROMPTS, SWEEP_TOKENS),
    "head_sweep": lambda s: Work(PROMPTS, SWEEP_TOKENS),
    "train_dictionary": lambda s: Work(SAE_PROMPTS, TOKENS, d_dictionary=EXPANSION * s.d_model),
}


def seconds(operation: str, sizes: Sizes, rate: Rate) -> float:
    """Time of some work at a rate, by the estimator."""
    return cost_of_named(operation, sizes, WORK[operation](sizes), rate).seconds


def _shape(known: Known) -> Row:
    s = known.sizes()
    form = f"{'gated' if s.gated else 'plain'}, {'tied' if s.tied else 'untied'}"
    numbers = (s.layers, s.d_model, s.heads, s.kv_heads, s.d_head, s.d_mlp, s.d_vocab)
    return (known.name, f"{known.parameters:,}", *numbers, form)


def _weights(known: Known) -> Row:
    weights = _both(known, f.weight_bytes, 1e9)
    return (known.name, weights, _both(known, f.kv_bytes_per_token, 1e3), *(fits(known, u) for u in USABLE.values()))


def _activations(known: Known) -> Row:
    parts = (f.residual_bytes, pattern_bytes, f.logit_bytes, gradient_bytes)
    return (known.name, *(_both(known, lambda s, part=part: part(s, PROMPTS, TOKENS), 1e9) for part in parts))


def _work(known: Known) -> Row:
    s = known.sizes()
    forward, gradients = f.forward_flops(s, PROMPTS, TOKENS), f.attribution_flops(s, PROMPTS, TOKENS)
    sweeps = (part(s, PROMPTS, SWEEP_TOKENS) for part in (f.residual_sweep_flops, f.head_sweep_flops))
    training = (f"{EXPANSION * s.d_model:,}", _short(16 * dictionary(s) / 1e9), _short(dictionary_flops(s) / 1e15))
    return (known.name, *(_short(x / 1e12) for x in (forward, gradients, *sweeps)), *training)


def _time(known: Known) -> Row:
    return (known.name, *(f"{_on_laptop(known, o)} / {_on_gpu(known, o)}" for o in WORK))


def _on_laptop(known: Known, operation: str) -> str:
    s = known.sizes("float32")
    return duration(seconds(operation, s, LAPTOP)) if bytes_to_read(s) <= USABLE["16 GB laptop"] else "no"


def _on_gpu(known: Known, operation: str) -> str:
    s = known.sizes("bfloat16")
    return duration(seconds(operation, s, GPU)) if bytes_to_read(s) <= USABLE["80 GB GPU"] else "no"


def duration(seconds: float) -> str:
    """Two figures: '0.29 s', '53 s', '14 min', '2.8 h', '12 d'."""
    for unit, size, most in (("s", 1, 100), ("min", 60, 6000), ("h", 3600, 172_800), ("d", 86_400, float("inf"))):
        if seconds < most:
            return f"{float(f'{seconds / size:.2g}'):g} {unit}"
    raise ValueError(f"{seconds} is no time")


_TABLES: dict[str, tuple[Row, Callable[[Known], Row]]] = {
    "shapes": (("model", "N", "L", "d", "H", "K", "h", "F", "V", "MLP, embedding"), _shape),
    "weights": (("model", "weights, GB", "KV cache a token, kB", *USABLE), _weights),
    "activations": (
        ("model", "residual, all layers", "patterns, all heads", "logits, all positions", "attribution patching"),
        _activations,
    ),
    "work": (
        ("model", "forward", "attribution patching", "residual sweep", "head sweep", "SAE features",
         "SAE training, GB", "10⁸ tokens, PFLOP"),
        _work,
    ),
    "time": (("model", "forward", "attribution patching", "residual sweep", "head sweep", "SAE, 10⁸ tokens"), _time),
}  # fmt: skip


def _both(known: Known, part: Callable[[Sizes], int], unit: float) -> str:
    """'0.5 / 0.25': in float32 and in bfloat16."""
    return " / ".join(_short(part(known.sizes(dtype)) / unit) for dtype in DTYPES)


def _short(number: float) -> str:
    """Three figures: '0.498', '14.2', '1,240'."""
    return f"{number:,.0f}" if number >= 999.5 else f"{number:.3g}"


def _table(heading: Row, rows: Sequence[Row]) -> str:
    return "\n".join(_lines(heading, rows))


def _lines(heading: Row, rows: Sequence[Row]) -> Iterator[str]:
    for i, row in enumerate((heading, *rows)):
        yield f"| {' | '.join(map(str, row))} |"
        if i == 0:
            yield f"|{'---|' * len(row)}"
