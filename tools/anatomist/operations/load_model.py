"""Load a model: an offline name (smollm2-135m, gemma3-270m, toy-induction, tracr-reverse), one trained here, a local
folder (safetensors or GGUF), or a hub id.

Returns its handle, architecture, sizes, dtype, device, tokenizer and BOS policy, and how far it is from the plain
Hugging Face model (refused above tolerance). The same request again returns the model that is loaded. Techniques load
a model they are given by name themselves; use this to choose backend, dtype or device. list_models shows what is held.
"""

from __future__ import annotations

from pydantic import Field

from ..desk import LoadRequest
from ..estimate.cost import in_bytes
from ..estimate.sizes import Dtype
from ..host import Host
from ..model.protocol import Backend, ModelInfo
from ..operation import Outcome, Where
from ..result import Frozen
from ..technique import Progress

TITLE = "Load a model"
WHERE: Where = "worker"
READ_ONLY = False
DESTRUCTIVE = False


class Arguments(Frozen):
    name: str = Field(min_length=1, description="Offline name, local folder, or hub id such as EleutherAI/pythia-70m.")
    backend: Backend | None = Field(default=None, description="toy, local (default) or nnsight.")
    dtype: Dtype | None = Field(default=None, description="Number format; the model's own choice when absent.")
    device: str | None = Field(default=None, description="cpu, cuda:0, mps; chosen when absent.")
    revision: str | None = Field(default=None, description="Commit, tag or branch of a hub id.")
    check_parity: bool = Field(default=True, description="Refuse a model that differs from its plain reference.")


class Loaded(Outcome):
    """A model that is ready."""

    handle: str = Field(description="Pass it as `model`.")
    info: ModelInfo


def run(host: Host, arguments: Arguments, progress: Progress) -> Loaded:
    progress(0, 1, f"loading {arguments.name}")
    loaded = host.load(LoadRequest(**arguments.model_dump()), progress)
    info = loaded.info
    parity = info.parity
    proof = f"within {parity.max_logprob_difference:.1e} nats of the plain model" if parity else "no plain reference"
    progress(1, 1, f"loaded {loaded.handle}")
    return Loaded(
        summary=(
            f"{loaded.handle}: {info.architecture}, {info.n_layers} layers x {info.n_heads} heads, width "
            f"{info.d_model}, {info.parameters:,} parameters ({in_bytes(info.weight_bytes)}, {info.dtype} on "
            f"{info.device}, backend {info.backend}); {proof}; its tokenizer {'adds' if info.adds_bos else 'adds no'} "
            f"BOS. Loaded in {info.load_seconds:.1f} s. Next: make_prompts and check_prompts."
        ),
        handle=loaded.handle,
        info=info,
    )
