"""The lint: each rule finds its fault, keeps quiet on the right way, and names the fix."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from anatomist.__main__ import main
from anatomist.errors import BadArguments, CorruptFile, Unavailable
from anatomist.lint import RULES, check_file, check_source

from tests.docs_blocks import ROOT, blocks

FAULTS = {
    "hooked-transformer": "from transformer_lens import HookedTransformer",
    "transformer-lens-utils": "from transformer_lens import utils",
    "hooked-sae-transformer": "from sae_lens import HookedSAETransformer",
    "logit-attrs": "parts = cache.logit_attrs(stack, tokens)",
    "unknown-hook": "model.run_with_hooks(ids, fwd_hooks=[('blocks.3.hook_typo', f)])",
    "hook-result": "cache['blocks.0.attn.hook_result']",
    "kv-heads": "k = cache['blocks.0.attn.hook_k'][:, :, 7]",
    "start-at-layer": "model(ids, start_at_layer=3)",
    "compatibility-mode": "model.enable_compatibility_mode()",
    "batch-row": "import nnsight\nh = model.model.layers[3].output[0]",
    "trace-one-line": "with model.trace(text): x = model.lm_head.output.save()",
    "trace-unsaved": "import nnsight\nwith model.trace(text):\n    h = model.lm_head.output\nprint(h)",
    "trace-order": "import nnsight\nwith m.trace(text):\n    b = m.h[5].output.save()\n    a = m.h[3].output.save()",
    "trace-exec": "import nnsight\nexec(code)",
    "nnsight-threads": "import nnsight, threading\nthreading.Thread(target=f).start()",
    "no-attention-probabilities": "m = StandardizedTransformer('gpt2')\nm.attention_probabilities[0]",
    "sdpa-attentions": "m = AutoModelForCausalLM.from_pretrained('gpt2')\nm(ids, output_attentions=True)",
    "sae-tuple": "sae, cfg, sparsity = SAE.from_pretrained('release', 'id')",
    "sae-metadata": "name = sae.cfg.hook_name",
    "sae-extra": "# %pip install sae-lens[train]",
    "no-crosscoder": "from sae_lens import CrossCoder",
    "wandb-on": "LanguageModelSAERunnerConfig(sae=cfg)",
    "nnterp-pair": "# !pip install nnterp torch",
    "other-environment": "import circuit_tracer",
    "gguf-save": "m = AutoModelForCausalLM.from_pretrained(d, gguf_file='x.gguf')\nm.save_pretrained('out')",
    "unsafe-load": "torch.load('weights.pt')",
    "trust-remote-code": "AutoModel.from_pretrained('x', trust_remote_code=True)",
    "mps": "TransformerBridge.boot_transformers('gpt2', device='mps')",
    "fastmcp-import": "from mcp.server.fastmcp import FastMCP",
    "camel-hints": "@mcp.tool(annotations=ToolAnnotations(readOnlyHint=True))\ndef f(): ...",
    "bare-decorator": "@mcp.tool\ndef f(): ...",
}
RIGHT = '''
import nnsight
import torch
from mcp.server import MCPServer
from sae_lens import SAE, LanguageModelSAERunnerConfig, LoggingConfig, SAETransformerBridge
from transformer_lens.model_bridge import TransformerBridge

model = TransformerBridge.boot_transformers("gpt2", device="cpu")
model.set_use_attn_result(True)
logits, cache = model.run_with_cache(ids, names_filter=["blocks.0.attn.hook_result", "blocks.3.hook_resid_post"])
model.run_with_hooks(ids, fwd_hooks=[("blocks.3.attn.hook_z", f), ("hook_embed", f)], stop_at_layer=4)
sae = SAE.from_pretrained("release", "id")
name = sae.cfg.metadata.hook_name
config = LanguageModelSAERunnerConfig(sae=c, logger=LoggingConfig(log_to_wandb=False))
weights = torch.load("weights.pt", weights_only=True)
hf = AutoModelForCausalLM.from_pretrained("gpt2", attn_implementation="eager")
hf(ids, output_attentions=True)
m = StandardizedTransformer("gpt2", enable_attention_probs=True)
with m.trace("text"):
    h = m.layers_output[3].save()
    a = m.model.layers[3].self_attn.output[0].save()
    b = m.model.layers[5].output.save()
p = m.attention_probabilities[0]

@mcp.tool()
def tool(): ...
'''

IDIOMS = '''
# %pip install nnterp "nnsight>=0.7,<0.8" sae-lens
import nnsight
from functools import partial
from transformer_lens.model_bridge import TransformerBridge

model.run_with_hooks(ids, fwd_hooks=[(f"blocks.{layer}.attn.hook_z", partial(edit, name="head"))])
model.run_with_hooks(ids, fwd_hooks=[(f"blocks.{i}.hook_resid_post", f) for i in range(3)])
model.run_with_hooks(ids, fwd_hooks=[(name_of("resid_post", 3), f), (lambda name: name.endswith("z"), f)])
names = [f"blocks.{i}.hook_mlp_out" for i in range(model.cfg.n_layers)]
model.run_with_cache(ids, names_filter=names)
model.run_with_cache(ids, names_filter=lambda name: "resid" in name)
k = cache["blocks.0.attn.hook_k"][:, -1]
acts = [1]
with model.trace(ids):
    low = model.layers[3].output
    acts.append(low.save())
    inner = model.layers[4].output
    nnsight.save(inner)
    model.layers[7].output = model.layers[6].output
    logits = model.lm_head.output.save()
print(acts, inner, logits)
with model.trace() as tracer:
    with tracer.invoke(a):
        x = model.layers[5].output.save()
    with tracer.invoke(b):
        model.layers[2].output[:] = 0
tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file="x.gguf")
tokenizer.save_pretrained("out")
loaded = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
loaded.save_pretrained("out")
'''
VARIANTS = {  # other ways to write the same
    "import transformer_lens as tl\nm = tl.HookedTransformer.from_pretrained('gpt2')": "hooked-transformer",
    "from transformer_lens.HookedTransformer import HookedTransformer": "hooked-transformer",
    "import transformer_lens\nname = transformer_lens.utils.get_act_name('z', 1)": "transformer-lens-utils",
    "from transformer_lens import loading_from_pretrained as loading": "transformer-lens-utils",
    "import sae_lens\nsae_lens.HookedSAETransformer.from_pretrained('gpt2')": "hooked-sae-transformer",
    "m.run_with_hooks(ids, fwd_hooks=[(f'blocks.{i}.hook_resid', f) for i in range(9)])": "unknown-hook",
    "hooks = [(f'blocks.{i}.attn.hook_zz', f)]\nm.run_with_hooks(ids, fwd_hooks=hooks)": "unknown-hook",
    "m.run_with_cache(ids, names_filter='blocks.0.resid_post')": "unknown-hook",
    "x = cache[f'blocks.{i}.attn.hook_result']": "hook-result",
    "import nnsight\nfor layer in m.layers:\n    x = layer.output[0]": "batch-row",
    "import nnsight\nx = m.transformer.h[3].output[0][:, -1]": "batch-row",
    "sae = SAE.from_pretrained('release', 'id')[0]": "sae-tuple",
    "c = my_sae.cfg.prepend_bos": "sae-metadata",
    "model.to('mps')": "mps",
    "d = torch.device('mps')": "mps",
    "import pickle\npickle.load(f)": "unsafe-load",
    "numpy.load('x.npy', allow_pickle=True)": "unsafe-load",
}


@pytest.mark.positive_control
@pytest.mark.parametrize("source", VARIANTS)
def test_other_ways_to_write_a_fault_are_found_once(source: str) -> None:
    assert [f.rule for f in check_source(source)] == [VARIANTS[source]]


@pytest.mark.negative_control
def test_common_idioms_that_are_right_are_left_alone() -> None:
    assert check_source(IDIOMS) == []


@pytest.mark.negative_control
def test_our_own_projects_and_pages_are_left_alone(tmp_path: Path) -> None:
    for file in sorted((ROOT / "templates").rglob("*")):
        if file.suffix in (".py", ".ipynb"):
            assert check_file(file) == [], file
    for block in blocks("python"):
        assert check_source(block.text, str(block)) == []


@pytest.mark.positive_control
@pytest.mark.parametrize("rule", [rule.name for rule in RULES])
def test_every_rule_finds_its_fault_and_names_the_fix(rule: str) -> None:
    found = [f for f in check_source(FAULTS[rule]) if f.rule == rule]
    assert len(found) == 1
    assert next(r.fix for r in RULES if r.name == rule) in found[0].message


@pytest.mark.negative_control
def test_the_right_way_is_left_alone() -> None:
    assert check_source(RIGHT) == []


@pytest.mark.hand_worked
def test_the_line_is_named_and_can_be_let_pass() -> None:
    source = "x = 1\n\ntorch.load('a')\ntorch.load('b')  # anatomist: ok\n"
    assert [(f.line, f.rule) for f in check_source(source)] == [(3, "unsafe-load")]


def test_a_notebook_is_read_cell_by_cell_without_its_magics(tmp_path: Path) -> None:
    cells = [
        {"cell_type": "markdown", "source": "torch.load('x')"},
        {"cell_type": "code", "source": ["%pip install x\n", "import torch\n"]},
        {"cell_type": "code", "source": "torch.load('x')"},
    ]
    (tmp_path / "n.ipynb").write_text(json.dumps({"cells": cells}))
    assert [(f.line, f.rule) for f in check_file(tmp_path / "n.ipynb")] == [(4, "unsafe-load")]


def test_the_command_fails_where_something_was_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad, good = tmp_path / "bad.py", tmp_path / "good.py"
    bad.write_text(FAULTS["sae-tuple"])
    good.write_text(RIGHT)
    assert main(["lint", str(good)]) == 0
    assert main(["lint", str(bad), str(good)]) == 1
    assert f"{bad}:1: sae-tuple: " in capsys.readouterr().out


@pytest.mark.bad_input
def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("")
    (tmp_path / "a.py").write_text("def (")
    (tmp_path / "a.ipynb").write_text("{}")
    with pytest.raises(BadArguments, match="neither"):
        check_file(tmp_path / "a.txt")
    with pytest.raises(CorruptFile, match="line 1 is not Python"):
        check_file(tmp_path / "a.py")
    with pytest.raises(CorruptFile, match="not a readable file"):
        check_file(tmp_path / "a.ipynb")
    with pytest.raises(Unavailable, match="No such file"):
        check_file(tmp_path / "none.py")
