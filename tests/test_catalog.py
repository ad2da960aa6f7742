"""Discovery, faces, and what bad arguments are told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from anatomist.catalog import CATALOG, Catalog, Entry, parse_arguments
from anatomist.errors import BadArguments, UnknownName, Unsupported
from anatomist.operation import Outcome
from anatomist.technique import Arguments

THROWAWAY = Catalog(techniques=("tests.throwaway",))


def package(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, **files: str) -> str:
    """A package of technique files that can be imported."""
    (folder / name).mkdir()
    (folder / name / "__init__.py").touch()
    for file, text in files.items():
        (folder / name / f"{file}.py").write_text(text)
    monkeypatch.syspath_prepend(str(folder))
    return name


@pytest.fixture
def entry() -> Entry:
    return THROWAWAY.find("count_tokens")


@pytest.mark.positive_control
def test_a_file_in_the_package_is_in_the_catalog(entry: Entry) -> None:
    assert THROWAWAY.names("technique") == ("count_tokens", "hold_much")
    assert (entry.kind, entry.title, entry.where) == ("technique", "Count tokens", "worker")
    assert entry.headline == "Count the tokens of every prompt, and read one residual."
    assert issubclass(entry.arguments, Arguments)
    assert entry.result.__name__ == "Counted"
    assert set(entry.input_schema()["required"]) == {"model", "prompts"}  # type: ignore[call-overload]


def test_names_are_listed_without_importing_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(tmp_path, monkeypatch, "lazy_ones", explodes="raise RuntimeError('imported')")
    catalog = Catalog(techniques=(name,), operations=())
    assert catalog.names() == ("explodes",)
    with pytest.raises(RuntimeError, match="imported"):
        catalog.find("explodes")


def test_every_operation_has_its_face() -> None:
    operations = {e.name: e for e in CATALOG.entries("operation")}
    expected = {
        "check_environment", "estimate_compute", "load_model", "list_models", "unload_model", "make_prompts",
        "generate", "list_runs", "get_run", "open_reference", "list_techniques", "describe_technique",
    }  # fmt: skip
    assert expected <= operations.keys()
    for entry in operations.values():
        assert issubclass(entry.result, Outcome)
        described = {n: f.description for n, f in entry.arguments.model_fields.items()}
        assert all(described.values()), f"{entry.name}: {described}"


def test_the_catalog_imports_no_torch() -> None:
    code = (
        "import sys; from anatomist.catalog import CATALOG; CATALOG.entries(); import anatomist.host;"
        "print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


@pytest.mark.bad_input
def test_an_unknown_name_is_told_the_nearest() -> None:
    with pytest.raises(UnknownName, match=r"unknown technique 'count_token'\. Did you mean 'count_tokens'\?"):
        THROWAWAY.find("count_token", "technique")


@pytest.mark.bad_input
def test_a_file_without_its_face_is_refused_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = package(tmp_path, monkeypatch, "bare_ones", bare="TITLE = 'Bare'")
    with pytest.raises(Unsupported, match="lacks a docstring, Arguments, run, QUESTIONS, plot"):
        Catalog(techniques=(name,)).find("bare")


@pytest.mark.bad_input
def test_two_results_in_one_file_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        '"""Two."""\nfrom anatomist.result import Result\nfrom anatomist.technique import Arguments\n'
        "TITLE = 'Two'\nQUESTIONS = ()\nrun = plot = print\n"
        "class One(Result): pass\nclass Other(Result): pass\n"
    )
    name = package(tmp_path, monkeypatch, "double_ones", two=text)
    with pytest.raises(Unsupported, match="exactly one subclass of Result; it defines One, Other"):
        Catalog(techniques=(name,)).find("two")


@pytest.mark.bad_input
def test_the_same_name_twice_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = package(tmp_path, monkeypatch, "same_ones", count_tokens="")
    with pytest.raises(Unsupported, match="'count_tokens' exists twice"):
        Catalog(techniques=("tests.throwaway", name)).names()


@pytest.mark.positive_control
def test_good_arguments_become_the_techniques_own(entry: Entry) -> None:
    parsed = parse_arguments(entry, {"model": "m", "prompts": [{"clean": [1, 2], "answer": 3}], "layer": 1})
    assert parsed.model_dump()["prompts"][0]["clean"] == (1, 2)
    assert parsed == parse_arguments(entry, parsed.model_dump(mode="json"))


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"model": "m", "prompts": "p", "modle": "x"}, "unknown argument 'modle'. Did you mean 'model'?"),
        ({"model": "m"}, "argument 'prompts' is missing (Handle, .jsonl file, or list of"),
        ({"model": "m", "prompts": "p", "layer": 7}, "argument 'layer' is 7: input should be less than or equal to 1"),
        ({"model": "m", "prompts": "p", "layer": "x"}, "argument 'layer' is 'x': input should be a valid integer"),
        ({"model": "m", "prompts": "p", "ends": "badly"}, "argument 'ends' is 'badly': input should be 'well',"),
        ({"model": "m", "prompts": "p", "seed": -1}, "argument 'seed' is -1"),
        ({"model": "m", "prompts": [{"claen": "x"}]}, "argument 'prompts.0.claen'"),
        ({"model": "m", "prompts": [{"clean": 3.5}]}, "argument 'prompts.0.clean"),
        ({"model": 3, "prompts": 4}, "argument 'model' is 3"),
    ],
)
def test_bad_arguments_are_told_what_and_what_is_allowed(
    entry: Entry, arguments: dict[str, object], told: str
) -> None:
    with pytest.raises(BadArguments) as caught:
        parse_arguments(entry, arguments)
    text = str(caught.value)
    assert told in text
    assert text.endswith("Next: describe_technique(name='count_tokens') shows each.")
    assert "It takes: model, seed, investigation, prompts, split, bos, layer, ends." in text


@pytest.mark.bad_input
def test_all_faults_are_told_at_once(entry: Entry) -> None:
    with pytest.raises(BadArguments) as caught:
        parse_arguments(entry, {"layer": 9, "nonsense": 1, "also": 2})
    for part in ("'layer' is 9", "'nonsense'", "'also'", "'model' is missing", "'prompts' is missing"):
        assert part in str(caught.value)


def test_a_refused_value_is_not_repeated_at_length(entry: Entry) -> None:
    with pytest.raises(BadArguments) as caught:
        parse_arguments(entry, {"model": "m", "prompts": "p", "layer": "x" * 10_000})
    assert len(str(caught.value)) < 600
