"""A GGUF file of a few kilobytes: a random Llama of two layers with a byte-pair tokenizer of twelve tokens."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, MLP, HEADS, KV_HEADS, LAYERS = 32, 48, 4, 2, 2
TOKENS = ["<|endoftext|>", *"abcdefghij", "ab"]


def write_tiny_gguf(path: Path, seed: int = 0) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    _write_shape(writer)
    _write_tokenizer(writer)
    for name, tensor in _tensors(np.random.default_rng(seed)):
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _write_shape(writer: gguf.GGUFWriter) -> None:
    writer.add_name("tiny")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(MLP)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(TOKENS))


def _write_tokenizer(writer: gguf.GGUFWriter) -> None:
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3] + [1] * (len(TOKENS) - 1))
    writer.add_token_merges(["a b"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)


def _tensors(random: np.random.Generator) -> list[tuple[str, np.ndarray]]:
    kv = WIDTH // HEADS * KV_HEADS
    block = {
        "attn_norm": (WIDTH,), "ffn_norm": (WIDTH,), "attn_q": (WIDTH, WIDTH), "attn_k": (kv, WIDTH),
        "attn_v": (kv, WIDTH), "attn_output": (WIDTH, WIDTH), "ffn_gate": (MLP, WIDTH), "ffn_up": (MLP, WIDTH),
        "ffn_down": (WIDTH, MLP),
    }  # fmt: skip
    shapes = {"token_embd": (len(TOKENS), WIDTH), "output_norm": (WIDTH,)}
    shapes |= {f"blk.{i}.{name}": shape for i in range(LAYERS) for name, shape in block.items()}
    return [(f"{name}.weight", _draw(random, shape)) for name, shape in shapes.items()]


def _draw(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Matrices with gain one, norm weights about one."""
    noise = random.standard_normal(shape).astype(np.float32)
    return 1 + np.float32(0.1) * noise if len(shape) == 1 else noise / np.float32(shape[-1]) ** np.float32(0.5)
