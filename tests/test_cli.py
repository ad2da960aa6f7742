"""The command line as a person or a script meets it: exit status, stdout, stderr."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from anatomist.__main__ import main

ANATOMIST = [sys.executable, "-m", "anatomist"]


def run(*arguments: str, cwd: Path, given: str | None = None, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **variables}
    return subprocess.run(
        [*ANATOMIST, *arguments], cwd=cwd, capture_output=True, text=True, input=given, env=environment, timeout=120
    )


@pytest.mark.positive_control
def test_list_names_techniques_and_tools_without_torch(tmp_path: Path) -> None:
    code = "import sys; from anatomist.__main__ import main; main(['list']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    lines = done.stdout.splitlines()
    assert lines[-1] == "False"
    assert lines[0] == "Techniques:"
    assert any(line.split()[0] == "patch_activations" for line in lines)
    assert any(line.split()[0] == "get_run" for line in lines)


def test_list_finds_by_a_question(tmp_path: Path) -> None:
    done = run("list", "where", "does", "a", "head", "attend", cwd=tmp_path)
    assert done.returncode == 0
    assert "attention_patterns" in [line.split()[0] for line in done.stdout.splitlines()[:3] if line]


def test_describe_shows_arguments_or_schemas(tmp_path: Path) -> None:
    plain = run("describe", "generate", cwd=tmp_path)
    assert "max_new_tokens (default 40): Tokens to add at most." in plain.stdout
    assert "model (required)" in plain.stdout
    schemas = json.loads(run("describe", "generate", "--schema", cwd=tmp_path).stdout)
    assert schemas["arguments"]["additionalProperties"] is False


@pytest.mark.positive_control
def test_options_may_stand_between_a_name_and_its_arguments(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", "list_techniques", "--workspace", str(tmp_path), '{"question": "which heads matter"}']
    assert main(words) == 0
    assert "which heads matter" not in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main([*words, "more"])


def test_run_writes_json_alone_to_stdout_and_keeps_the_run(tmp_path: Path) -> None:
    arguments = json.dumps({"model": "toy-induction", "prompt": [3, 5, 7, 9, 3, 5], "max_new_tokens": 1})
    done = run("run", "generate", arguments, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["tokens"] == ["t7"]
    listed = run("run", "list_runs", "--workspace", str(tmp_path / "other"), cwd=tmp_path)
    assert json.loads(listed.stdout)["total"] == 0
    assert "\x1b" not in done.stdout


def test_arguments_are_read_from_stdin_with_a_dash(tmp_path: Path) -> None:
    done = run("run", "list_runs", "-", cwd=tmp_path, given='{"limit": 3}')
    assert json.loads(done.stdout)["runs"] == []


@pytest.mark.bad_input
@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        (("run", "list_runz"), 1, "Did you mean 'list_runs'?"),
        (("run", "list_runs", "{"), 1, "is not JSON"),
        (("run", "list_runs", "[1]"), 1, "is not a JSON object"),
        (("run", "list_runs", '{"limt": 1}'), 1, "Did you mean 'limit'?"),
        (("run", "open_reference", '{"name": "nothing"}'), 1, "unknown reference 'nothing'"),
        (("describe", "nothing"), 1, "unknown technique or operation 'nothing'"),
        (("fly",), 2, "invalid choice"),
        ((), 2, "required"),
    ],
)
def test_what_cannot_be_done_is_one_line_on_stderr_and_a_status(
    tmp_path: Path, arguments: tuple[str, ...], status: int, told: str
) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == status
    assert done.stdout == ""
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    if status == 1:
        assert len(done.stderr.strip().splitlines()) == 1


def test_models_and_doctor_tell_what_is_there(tmp_path: Path) -> None:
    models = run("models", cwd=tmp_path)
    assert "smollm2-135m" in models.stdout
    doctor = run("doctor", cwd=tmp_path)
    assert "devices: cpu" in doctor.stdout
    assert doctor.returncode == (1 if "FAULT" in doctor.stdout else 0)


def test_the_workspace_may_be_named_before_or_after_the_command(tmp_path: Path) -> None:
    from anatomist.__main__ import command_line

    for words in (["--workspace", "w", "--allow", "a", "models"], ["models", "--workspace", "w", "--allow", "a"]):
        options = command_line().parse_args(words)
        assert (options.workspace, options.allow) == (Path("w"), [Path("a")])
    for words in (["models"], ["run", "list_runs", "--allow", "a", "--allow", "b"]):
        options = command_line().parse_args(words)
        assert options.workspace is None
        assert options.allow == [Path(p) for p in ("a", "b") if p in words]


def test_version(tmp_path: Path) -> None:
    assert run("--version", cwd=tmp_path).stdout == "anatomist 0.1.0\n"


def test_an_interrupt_ends_it_cleanly_and_nothing_is_stored(tmp_path: Path) -> None:
    arguments = {"model": "toy-induction", "prompt": [1, 2], "max_new_tokens": 1}
    code = (
        "import signal, sys, time; from anatomist import host, __main__;"
        "signal.signal(signal.SIGINT, signal.default_int_handler);"  # a shell's background jobs inherit it ignored
        "host.Host.call = lambda *a: (print('started', flush=True, file=sys.stderr), time.sleep(60));"
        f"sys.exit(__main__.main(['run', 'generate', {json.dumps(json.dumps(arguments))}]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stderr is not None
    while "started" not in process.stderr.readline():
        time.sleep(0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out == ""
    assert "anatomist: interrupted; nothing was stored" in err
    assert "Traceback" not in err
