"""Hand-set dictionaries of the toy induction circuit: one feature a token in each block of its residual.

    features 0 .. 19 'token t0' ..   20 .. 39 'buffer t0' ..   40 .. 59 'output t0' ..

Each reads and writes one dimension with weight one. Positions and junk have no features: they are the error term. So
it is known which features a prompt has, and which of them the circuit uses: 'A B C A' is continued with B because, at
the place of B, 'buffer A' is found and 'token B' copied.
"""

from __future__ import annotations

from typing import Any

import torch

from ..model.backends.toy_circuits import Blocks

TOYS = {"toy-induction-l0": 0, "toy-induction-l1": 1}  # name -> layer whose resid_post it reads
VOCABULARY, CONTEXT, JUNK = 20, 64, 8
TOKEN, BUFFER, OUTPUT = 0, VOCABULARY, 2 * VOCABULARY  # index of each block's first feature


def toy_sae(name: str) -> Any:
    """The SAELens object of a toy's name."""
    from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
    from sae_lens.saes.sae import SAEMetadata

    where = Blocks.of(VOCABULARY, CONTEXT, VOCABULARY, VOCABULARY, JUNK)
    width = where.junk.stop
    read = torch.zeros(3 * VOCABULARY, width)
    for first, block in ((TOKEN, where.token), (BUFFER, where.buffer), (OUTPUT, where.output)):
        read[first : first + VOCABULARY, block] = torch.eye(VOCABULARY)
    metadata = SAEMetadata(
        model_name="toy-induction", hook_name=f"blocks.{TOYS[name]}.hook_resid_post", prepend_bos=False,
        context_size=CONTEXT,
    )  # fmt: skip
    sae = JumpReLUSAE(JumpReLUSAEConfig(d_in=width, d_sae=3 * VOCABULARY, metadata=metadata))
    weights = {
        "W_enc": read.T.contiguous(), "b_enc": torch.zeros(3 * VOCABULARY), "W_dec": read, "b_dec": torch.zeros(width),
    }  # fmt: skip
    sae.load_state_dict({**weights, "threshold": torch.full((3 * VOCABULARY,), 0.5)})  # attention leaks of 1e-18
    return sae
