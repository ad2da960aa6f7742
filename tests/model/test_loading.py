"""One call for every kind of source; each thing that can be wrong with one is a clear error."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from anatomist.errors import (
    AnatomistError,
    BadArguments,
    CorruptFile,
    NotFinite,
    OutsideRoots,
    ParityError,
    Unavailable,
    UnknownName,
    Unsupported,
)
from anatomist.model import placement
from anatomist.model.loading import Reference, known_names, load_model, random_twin, wrap_model
from anatomist.model.protocol import Model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.backends.families import FAMILIES
from tests.model.tiny_gguf import write_tiny_gguf

IDS = (3, 17, 42, 9, 88)


@pytest.fixture(autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch):
    if "smollm2" not in request.fixturenames:
        monkeypatch.setenv("ANATOMIST_HOME", str(tmp_path_factory.mktemp("home")))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "tiny-llama"
    FAMILIES["llama"]().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(saved, tmp_path / "tiny-llama"))


def logits_of(model: Model) -> torch.Tensor:
    logits = model.run(model.tokenize([IDS]), logits_at="all").logits
    assert logits is not None
    return logits


@pytest.mark.positive_control
@pytest.mark.parametrize("backend", ["local", "nnsight"])
def test_a_folder_gives_the_plain_models_numbers(saved: Path, backend: str) -> None:
    plain = LlamaForCausalLM.from_pretrained(saved, attn_implementation="eager")
    model = load_model(str(saved), backend=backend)
    with torch.no_grad():
        expected = plain(torch.tensor([IDS])).logits
    assert float((logits_of(model) - expected).abs().max()) < 1e-5
    assert (model.info.name, model.info.source, model.info.backend) == ("tiny-llama", str(saved), backend)
    assert model.info.parity is not None
    assert model.info.parity.max_logprob_difference < 1e-5
    assert model.info.parity.text.startswith("ids "), "there is no tokenizer to write a sentence with"
    assert model.info.tokenizer is None
    assert model.info.load_seconds > 0


@pytest.mark.positive_control
def test_the_offline_model_completes_the_sentence_with_the_known_probability(smollm2: Model) -> None:
    # An independent run of the same weights gives ' Mary' 0.842.
    tokens = smollm2.tokenize(["When John and Mary went to the shops, John gave the bag to"])
    assert tokens.n_rows == 1
    assert tokens.width == 14, "no BOS token is put first"
    logits = smollm2.run(tokens, logits_at=tokens.last).logits
    assert logits is not None
    (mary,) = smollm2.token_ids(" Mary")
    assert float(logits[0].softmax(-1)[mary]) == pytest.approx(0.842, abs=1e-3)
    assert "user\nMary" in smollm2.chat("Mary")


def test_a_gguf_file_and_its_folder_are_the_same_model(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "tiny.gguf")
    by_file, by_folder = load_model(str(tmp_path / "tiny.gguf")), load_model(str(tmp_path))
    assert by_file.info.weights_hash == by_folder.info.weights_hash
    assert by_file.tokenize(["abcab"]).ids == ((11, 3, 11),)  # 'ab' is one token


def test_the_hash_follows_the_weights_not_the_backend(folder: Path) -> None:
    before = {load_model(str(folder), backend=backend).info.weights_hash for backend in ("local", "nnsight")}
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] += 1e-3
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    assert len(before) == 1
    assert load_model(str(folder)).info.weights_hash not in before


def test_the_dtype_asked_for_is_the_dtype_computed_in(saved: Path) -> None:
    model = load_model(str(saved), dtype="bfloat16")
    assert model.info.dtype == "bfloat16"
    assert logits_of(model).dtype == torch.bfloat16
    assert model.info.weight_bytes * 2 == load_model(str(saved)).info.weight_bytes


def test_progress_rises_to_the_end(saved: Path) -> None:
    told: list[tuple[float, str]] = []
    load_model(str(saved), progress=lambda done, total, what: told.append((done / total, what)))
    assert [share for share, _ in told] == sorted(share for share, _ in told)
    assert told[-1] == (1.0, "tiny-llama is loaded")


def test_known_names_are_offline_models_and_toys() -> None:
    assert {"smollm2-135m", "gemma3-270m", "toy-induction", "toy-induction-soft"} <= set(known_names())


@pytest.mark.parametrize("name", ["toy-induction", "toy-induction-soft"])
def test_toys_load_by_name(name: str) -> None:
    assert load_model(name).info.backend == "toy"


# --- random twins ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["local", "nnsight"])
def test_a_random_twin_has_the_shape_but_not_the_weights(backend: str) -> None:
    model = wrap_model(FAMILIES["qwen3"](), name="q", backend=backend)
    state = torch.random.get_rng_state()
    twin, same, other = random_twin(model, 1), random_twin(model, 1), random_twin(model, 2)
    assert torch.equal(state, torch.random.get_rng_state()), "the caller's random numbers are left alone"
    assert twin.info.shape == model.info.shape
    assert twin.info.parameters == model.info.parameters
    assert twin.info.weights_hash == same.info.weights_hash
    assert len({model.info.weights_hash, twin.info.weights_hash, other.info.weights_hash}) == 3


@pytest.mark.bad_input
def test_a_toy_has_no_random_twin(toy: Model) -> None:
    with pytest.raises(Unsupported, match="toy-induction has no configuration to draw random weights"):
        random_twin(toy, 0)


# --- parity ---------------------------------------------------------------------------------------------------------


@pytest.mark.positive_control
def test_parity_sees_a_model_that_is_not_its_reference() -> None:
    """Rules out a reference that is compared with itself."""
    model = wrap_model(FAMILIES["llama"](), name="one")
    other = FAMILIES["llama"]()
    other.get_parameter("model.layers.2.mlp.down_proj.weight").mul_(1.5)
    parity = Reference.of(other, None).compare(model, None)
    assert parity.max_logprob_difference > 100 * parity.tolerance
    assert Reference.of(FAMILIES["llama"](), None).compare(model, None).max_logprob_difference < 1e-5


@pytest.mark.bad_input
def test_a_model_outside_the_tolerance_is_refused_unless_asked_for(saved: Path) -> None:
    with pytest.raises(ParityError, match=r"tiny-llama.*nats.*check_parity=False"):
        load_model(str(saved), parity_tolerance=-1.0)
    model = load_model(str(saved), parity_tolerance=-1.0, check_parity=False)
    assert model.info.parity is not None
    assert model.info.parity.tolerance == -1.0


# --- damaged and foreign files --------------------------------------------------------------------------------------


def cut_short(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def header_only(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"\x08\x00\x00\x00\x00\x00\x00\x00{not js}")


def one_weight_less(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def other_shape(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def broken_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def foreign_code(folder: Path) -> None:
    (folder / "config.json").write_text(
        '{"model_type": "unheard-of", "auto_map": {"AutoModelForCausalLM": "code.Model", "AutoConfig": "code.Config"}}'
    )


def only_pickles(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def two_ggufs(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    for name in ("a.gguf", "b.gguf"):
        (folder / name).touch()


def not_a_number(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("damage", "error", "text"),
    [
        (cut_short, CorruptFile, r"model\.safetensors is damaged or cut short.*Copy the model's folder again"),
        (header_only, CorruptFile, r"model\.safetensors is damaged or cut short"),
        (one_weight_less, CorruptFile, r"lacks 1 of the model's weights \(model\.layers\.1\.mlp\.down_proj\.weight\)"),
        (other_shape, CorruptFile, r"model\.norm\.weight has shape \[7\], not \[32\]"),
        (no_config, CorruptFile, "no config.json"),
        (broken_config, CorruptFile, r"config\.json"),
        (broken_tokenizer, CorruptFile, "the tokenizer in"),
        (no_weights, CorruptFile, r"holds no weights \(\*\.safetensors or \*\.gguf\)"),
        (foreign_code, Unsupported, "without running code of its own"),
        (only_pickles, Unsupported, r"only pickled weights \(pytorch_model\.bin\).*save_pretrained"),
        (two_ggufs, BadArguments, r"2 GGUF files \(a\.gguf, b\.gguf\)"),
        (not_a_number, NotFinite, r"NaN or infinity stands in model\.layers\.1\.mlp\.down_proj\.weight"),
    ],
    ids=lambda x: getattr(x, "__name__", None),
)
def test_a_damaged_folder_is_a_clear_error(
    folder: Path, damage: Callable[[Path], None], error: type[AnatomistError], text: str
) -> None:
    damage(folder)
    with pytest.raises(error, match=text):
        load_model(str(folder))


@pytest.mark.bad_input
def test_a_changed_file_in_our_own_cache_is_found_and_the_next_step_named(tmp_path: Path) -> None:
    """A flipped bit keeps length and format, so only the recorded sha256 shows it."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf")
    load_model(str(path))
    from anatomist.model.offline import converted_gguf

    weights = converted_gguf(path) / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(CorruptFile, match=r"not those that were written there\. Delete the folder .* made anew"):
        load_model(str(path))


# --- names and arguments --------------------------------------------------------------------------------------------


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["smollm2-135", "smollm2_135m", "toy-inductoin"])
def test_a_name_nearly_right_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(UnknownName, match=r"Did you mean '(smollm2-135m|toy-induction)'"):
        load_model(name)


@pytest.mark.bad_input
@pytest.mark.parametrize("name", ["", " ", "no such model!!", "a/b/c"])
def test_a_name_that_cannot_be_a_hub_id_is_unknown(name: str) -> None:
    with pytest.raises(UnknownName, match="Known: smollm2-135m, gemma3-270m"):
        load_model(name)


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub's client, which is told that there is no network."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


def cached(hub_cache: Path, commit: str) -> Path:
    """Where the hub's client keeps the files of one commit of owner/name."""
    repository = hub_cache / "models--owner--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    (repository / "snapshots").mkdir()
    return repository / "snapshots" / commit


def test_a_hub_id_in_the_cache_needs_no_network_and_its_commit_is_told(hub_cache: Path, saved: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    shutil.copytree(saved, cached(hub_cache, commit))
    info = load_model("owner/name").info
    assert (info.name, info.source, info.revision) == ("owner/name", "owner/name", commit)


@pytest.mark.bad_input
def test_a_hub_model_of_pickles_is_refused(hub_cache: Path, saved: Path) -> None:
    folder = Path(shutil.copytree(saved, cached(hub_cache, "a" * 40)))
    only_pickles(folder)
    with pytest.raises(Unsupported, match=r"the hub model 'owner/name' holds only pickled weights"):
        load_model("owner/name")


@pytest.mark.bad_input
def test_a_hub_id_without_network_or_cache_says_what_needs_no_hub(hub_cache: Path) -> None:
    with pytest.raises(Unavailable, match=r"'owner/name' is not in the Hugging Face cache.*smollm2-135m, gemma3-270m"):
        load_model("owner/name")
    with pytest.raises(UnknownName, match=r"unknown model 'gpt22'.*cannot be reached"):
        load_model("gpt22")


@pytest.mark.bad_input
def test_a_folder_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="no model folder"):
        load_model(str(tmp_path / "absent"))


@pytest.mark.bad_input
def test_folders_outside_the_roots_are_refused_links_followed(saved: Path, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    inside.mkdir()
    (inside / "link").symlink_to(saved)
    for name in (saved, inside / "link", inside / ".." / ".." / "etc"):
        with pytest.raises(OutsideRoots, match="outside the folders"):
            load_model(str(name), roots=[inside])
    assert load_model(str(saved), roots=[inside, saved.parent]).info.name == "tiny-llama"


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"dtype": "int8"}, "'int8' cannot be loaded; choose one of float32, bfloat16, float16"),
        ({"device": "cuda:99"}, "device 'cuda:99' is not on this machine; it has cpu"),
        ({"device": "tpu"}, "device 'tpu' is not on this machine"),
        ({"backend": "jax"}, "backend 'jax' cannot load"),
        ({"backend": "toy"}, "backend 'toy' cannot load"),
        ({"threads": 0}, "threads=0"),
    ],
)
def test_arguments_that_cannot_be_used_are_refused_before_anything_is_read(
    saved: Path, arguments: dict[str, object], text: str
) -> None:
    with pytest.raises(BadArguments, match=text):
        load_model(str(saved), **arguments)  # type: ignore[arg-type]


@pytest.mark.bad_input
@pytest.mark.parametrize("arguments", [{"backend": "local"}, {"dtype": "bfloat16"}])
def test_a_toy_takes_no_other_backend_or_dtype(arguments: dict[str, str]) -> None:
    with pytest.raises(BadArguments, match="toy-induction"):
        load_model("toy-induction", **arguments)  # type: ignore[arg-type]


@pytest.mark.bad_input
def test_mps_is_refused_where_torch_is_silently_wrong_and_warned_of_elsewhere() -> None:
    with pytest.raises(Unsupported, match=r"torch 2\.8\.0 computes wrongly on MPS.*device='cpu'"):
        placement._beware_of_mps("2.8.0")
    with pytest.warns(UserWarning, match="compare a result with device='cpu'"):
        placement._beware_of_mps("2.13.0")


def test_the_default_device_is_the_cpu_where_there_is_no_cuda() -> None:
    expected = "cuda:0" if torch.cuda.is_available() else "cpu"
    assert str(placement.torch_device(None)) == expected
    assert placement.torch_dtype(None, torch.device("cpu")) == torch.float32
    assert placement.torch_dtype(None, torch.device("meta")) is None, "an accelerator keeps the checkpoint's dtype"
