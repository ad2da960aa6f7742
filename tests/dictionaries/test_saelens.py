"""Dictionaries of every type: the same numbers as SAELens's own and as a plain NumPy encoder; errors that say why."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from anatomist.dictionaries.fit import check_fit
from anatomist.dictionaries.protocol import Dictionary
from anatomist.dictionaries.reading import activations, encode_tokens
from anatomist.dictionaries.saelens import load_dictionary, wrap_sae
from anatomist.errors import BadArguments, BadSite, CorruptFile, NotFinite, UnknownName, Unsupported
from anatomist.model.edits import Edit
from anatomist.model.loading import wrap_model
from anatomist.model.sites import Site

from tests.backends.families import FAMILIES
from tests.dictionaries import small

if TYPE_CHECKING:
    from anatomist.model.protocol import Model

PROMPTS = [[5, 17, 3, 44, 8, 21], [9, 2, 60, 31]]


@pytest.fixture(scope="module")
def llama() -> Model:
    return wrap_model(FAMILIES["llama"](), None, name="llama")


def made(kind: str, folder: Path) -> Any:
    if kind in ("batchtopk", "matryoshka"):
        return getattr(small, kind)(folder)
    return small.KINDS[kind]()


@pytest.mark.hand_worked
@pytest.mark.parametrize("kind", [*small.KINDS, "batchtopk", "matryoshka"])
def test_a_numpy_encoder_of_each_type_agrees(kind: str, tmp_path: Path) -> None:
    # Rules out a forgotten bias, threshold, gate, norm or decoder norm: the splice with its error would hide each.
    sae = made(kind, tmp_path)
    x = torch.randn(50, small.D_IN, generator=torch.Generator().manual_seed(1)) * 2 + 0.3
    found = wrap_sae(sae, name=kind)
    assert isinstance(found, Dictionary)
    f, y = small.by_hand(sae, x.double().numpy())
    assert 0 < (f != 0).mean() < 1
    np.testing.assert_allclose(found.encode(x).numpy(), f, atol=1e-5)
    np.testing.assert_allclose(found.decode(found.encode(x), x).numpy(), y, atol=1e-5)
    rebuilt = found.scale(x) * (found.encode(x) @ found.directions) + found.offset(x)
    np.testing.assert_allclose(rebuilt.numpy(), y, atol=1e-5)


def test_batchtopk_and_matryoshka_are_saved_as_jumprelu(tmp_path: Path) -> None:
    assert wrap_sae(made("batchtopk", tmp_path / "a"), name="b").info.architecture == "jumprelu"
    assert wrap_sae(made("matryoshka", tmp_path / "b"), name="m").info.architecture == "jumprelu"


@pytest.mark.positive_control
@pytest.mark.parametrize("kind", ["standard", "topk", "jumprelu", "gated", "standard_layer_norm"])
def test_the_encoding_of_a_prompt_is_saelens_own(kind: str, llama: Model) -> None:
    # SAELens on the plain model's own hidden states: hidden_states[2] is what leaves block 1.
    sae = small.KINDS[kind]()
    dictionary = wrap_sae(sae, name=kind, model=llama)
    tokens = llama.tokenize(PROMPTS)
    encoded = encode_tokens(llama, dictionary, tokens)
    dense = np.zeros((encoded.n_tokens, small.D_DICT))
    dense[encoded.token, encoded.feature] = encoded.value
    plain = FAMILIES["llama"]()
    for row, ids in enumerate(PROMPTS):
        with torch.no_grad():
            hidden = plain(torch.tensor([ids]), output_hidden_states=True).hidden_states[2][0]
            theirs = sae.encode(hidden)
        np.testing.assert_allclose(dense[encoded.rows == row], theirs.numpy(), atol=1e-5)


@pytest.mark.positive_control
@pytest.mark.parametrize("kind", ["standard", "topk", "standard_layer_norm", "transcoder", "skip_transcoder"])
def test_reconstruction_plus_error_gives_the_models_logits_and_alone_it_does_not(kind: str, llama: Model) -> None:
    dictionary = wrap_sae(small.KINDS[kind](), name=kind, model=llama)
    tokens = llama.tokenize([PROMPTS[0]])
    own = llama.run(tokens, logits_at="all").logits
    (batch,) = activations(llama, dictionary, tokens)
    rebuilt = dictionary.decode(dictionary.encode(batch.x), batch.x)
    whole, alone = rebuilt + (batch.y - rebuilt), rebuilt
    spliced, without = (
        llama.run(tokens, edits=[Edit(site=dictionary.info.writes, rule="set", value=v)], logits_at="all").logits
        for v in (whole, alone)
    )
    torch.testing.assert_close(spliced, own, atol=1e-4, rtol=0)
    assert (without - own).abs().max() > 0.05


def test_heads_are_read_side_by_side(llama: Model) -> None:
    # 4 heads of 8 dimensions: hook_z flattened is [B, T, 32], heads first.
    dictionary = wrap_sae(
        small.drawn(small.StandardSAE(small.StandardSAEConfig(
            32, 40, reshape_activations="hook_z", metadata=small.metadata("blocks.2.attn.hook_z"),
        ))), name="z", model=llama,
    )  # fmt: skip
    tokens = llama.tokenize([PROMPTS[0]])
    z = llama.run(tokens, read=[Site("head", 2)]).reads[Site("head", 2)]
    (batch,) = activations(llama, dictionary, tokens)
    assert dictionary.info.site == "blocks.2.head"
    torch.testing.assert_close(batch.x, z.reshape(1, 6, 32))


def test_a_transcoder_reads_through_the_norm_before_the_mlp(llama: Model) -> None:
    normed = wrap_sae(small.transcoder("blocks.1.mlp.hook_in"), name="t", model=llama)
    scaled = wrap_sae(small.transcoder("blocks.1.ln2.hook_normalized"), name="t", model=llama)
    assert (normed.info.site, normed.info.input) == ("blocks.1.resid_mid", "normed")
    x = torch.randn(3, 32)
    norm = llama.weights.mlp_norm(1)
    torch.testing.assert_close(normed.encode(x), normed._sae.encode(norm(x)))
    bare = x / (x.square().mean(-1, keepdim=True) + norm.eps).sqrt()
    torch.testing.assert_close(scaled.encode(x), scaled._sae.encode(bare))
    with pytest.raises(Unsupported, match="load it together with a model"):
        wrap_sae(small.transcoder("blocks.1.mlp.hook_in"), name="t")


def test_centred_writing_weights_are_honoured(llama: Model) -> None:
    # Trained on a residual stream whose mean over the width is 0: x - mean goes in, the mean comes back out.
    sae = small.drawn(small.StandardSAE(small.StandardSAEConfig(
        32, 40, metadata=small.metadata(model_from_pretrained_kwargs={"center_writing_weights": True}),
    )))  # fmt: skip
    dictionary = wrap_sae(sae, name="c", model=llama)
    x = torch.randn(4, 32) + 3.0
    centred = x - x.mean(-1, keepdim=True)
    assert dictionary.info.input == "centred"
    torch.testing.assert_close(dictionary.encode(x), sae.encode(centred))
    torch.testing.assert_close(dictionary.decode(dictionary.encode(x), x), sae(centred) + x.mean(-1, keepdim=True))
    with pytest.raises(BadArguments, match="decode it with x"):
        dictionary.decode(dictionary.encode(x))


def saved(folder: Path, sae: Any = None) -> Path:
    (sae or small.standard()).save_model(folder)
    return folder


@pytest.mark.positive_control
def test_a_folder_is_loaded_by_path(tmp_path: Path, llama: Model) -> None:
    sae = small.topk()
    dictionary = load_dictionary(str(saved(tmp_path / "mine", sae)), model=llama)
    x = torch.randn(3, 32)
    assert (dictionary.info.name, dictionary.info.architecture) == ("mine", "topk")
    torch.testing.assert_close(dictionary.encode(x), sae.encode(x))


def test_figures_beside_the_weights_are_what_the_release_states(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine")
    (folder / "figures.json").write_text(json.dumps({"l0": 30.0, "explained_variance": 0.8, "other": "text"}))
    assert load_dictionary(str(folder)).info.release.l0 == 30.0


@pytest.mark.bad_input
def test_nan_weights_are_refused_by_name(tmp_path: Path) -> None:
    sae = small.standard()
    sae.W_dec.data[3, 4] = float("nan")
    with pytest.raises(NotFinite, match="W_dec"):
        load_dictionary(str(saved(tmp_path / "nan", sae)))


@pytest.mark.bad_input
def test_missing_metadata_are_told_and_a_site_mends_them(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine")
    config = json.loads((folder / "cfg.json").read_text())
    config["metadata"] = {"sae_lens_version": "6.54.12"}
    (folder / "cfg.json").write_text(json.dumps(config))
    with pytest.raises(CorruptFile, match=r"name no hook.*site='blocks"):
        load_dictionary(str(folder))
    assert load_dictionary(str(folder), site=Site("resid_post", 2)).info.site == "blocks.2.resid_post"


@pytest.mark.bad_input
def test_pickles_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "pickled"
    folder.mkdir()
    torch.save({"W_enc": torch.zeros(2)}, folder / "ae.pt")
    with pytest.raises(Unsupported, match=r"only pickles \(ae.pt\)"):
        load_dictionary(str(folder))
    disguised = saved(tmp_path / "disguised")
    torch.save({"W_enc": torch.zeros(2)}, disguised / "sae_weights.safetensors")
    with pytest.raises(CorruptFile, match="not safetensors, or damaged"):
        load_dictionary(str(disguised))
    with pytest.raises(Unsupported, match="published as a pickle"):
        load_dictionary("gpt2-small-hook-z-kk:blocks.11.hook_z")


@pytest.mark.bad_input
def test_a_folder_that_lacks_a_file_or_disagrees_says_so(tmp_path: Path) -> None:
    folder = saved(tmp_path / "mine")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps({**config, "d_sae": 41}))
    with pytest.raises(CorruptFile, match="cannot be read as a SAELens dictionary"):
        load_dictionary(str(folder))
    (folder / "cfg.json").unlink()
    with pytest.raises(CorruptFile, match=r"holds weights but no cfg.json"):
        load_dictionary(str(folder))
    (folder / "sae_weights.safetensors").unlink()
    with pytest.raises(CorruptFile, match=r"holds no sae_weights.safetensors"):
        load_dictionary(str(folder))


@pytest.mark.bad_input
def test_names_that_do_not_exist_bring_the_nearest() -> None:
    with pytest.raises(UnknownName, match="toy-induction-l0"):
        load_dictionary("toy-induction-10")
    with pytest.raises(UnknownName, match="gpt2-small-res-jb"):
        load_dictionary("gpt2-small-res-jp:blocks.3.hook_resid_pre")
    with pytest.raises(UnknownName, match=r"blocks.3.hook_resid_pre"):
        load_dictionary("gpt2-small-res-jb:blocks.3.hook_resid_pro")


@pytest.mark.bad_input
def test_a_dictionary_of_another_model_width_or_site_is_refused(llama: Model) -> None:
    info = wrap_sae(small.standard(), name="mine").info
    assert check_fit(info, llama.info) == ()
    with pytest.raises(BadArguments, match=r"has width 48 at blocks.1.resid_post; llama has 32 there"):
        check_fit(info.model_copy(update={"d_in": 48}), llama.info)
    with pytest.raises(BadSite, match="layers are 0 to 2"):
        check_fit(info.model_copy(update={"site": "blocks.7.resid_post"}), llama.info)
    hub = llama.info.model_copy(update={"name": "pythia-70m", "source": "EleutherAI/pythia-70m"})
    with pytest.raises(BadArguments, match="was trained on llama; the model here is EleutherAI/pythia-70m"):
        check_fit(info, hub)
    (told,) = check_fit(info, hub, other_model=True)
    assert "judge by what is measured" in told
    (bos,) = check_fit(info.model_copy(update={"bos": True}), llama.info)
    assert "pass bos=true" in bos
    with pytest.raises(BadArguments, match="reads 32 numbers a token"):
        wrap_sae(small.standard(), name="mine").encode(torch.zeros(2, 31))


@pytest.mark.bad_input
def test_a_hook_without_a_site_is_refused() -> None:
    queries = small.metadata("blocks.1.attn.hook_q")
    sae = small.drawn(small.StandardSAE(small.StandardSAEConfig(32, 40, metadata=queries)))
    with pytest.raises(BadSite, match="for which there is no site"):
        wrap_sae(sae, name="q")
