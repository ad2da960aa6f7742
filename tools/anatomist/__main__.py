"""The command line: `anatomist list | describe | run | models | doctor | view | mcp | lint | install | new`.

`run` writes JSON to stdout and nothing else; progress and messages go to stderr. Exit status: 0 done, 1 refused or
faulty (one line on stderr says why and what next), 2 not such a command, 130 interrupted (nothing is stored).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from . import __version__
from .errors import AnatomistError, BadArguments, Cancelled

DONE, REFUSED, INTERRUPTED = 0, 1, 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; the exit status comes back."""
    parser = command_line()
    options, more = parser.parse_known_args(arguments)
    if options.command is _run and options.arguments is None and len(more) == 1 and not more[0].startswith("--"):
        options.arguments, more = more[0], []  # options stood between the name and the arguments
    if more and options.command is not _mcp:
        parser.error(f"unrecognized arguments: {' '.join(more)}")
    options.more = more
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except (KeyboardInterrupt, Cancelled):
        print("anatomist: interrupted; nothing was stored", file=sys.stderr)
        return INTERRUPTED
    except AnatomistError as error:
        print(f"anatomist: {' '.join(str(error).split())}", file=sys.stderr)
        return REFUSED
    except BrokenPipeError:  # the reader of stdout has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return DONE


def command_line() -> argparse.ArgumentParser:
    """Every command with its options."""
    parser = argparse.ArgumentParser(prog="anatomist", description="Mechanistic interpretability from the shell.")
    parser.add_argument("--version", action="version", version=f"anatomist {__version__}")
    _add_folders(parser)
    parser.set_defaults(workspace=None, allow=[])
    shared = argparse.ArgumentParser(add_help=False)
    _add_folders(shared)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], words: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=words, description=words, parents=[shared])
        added.set_defaults(command=run)
        return added

    listing = command("list", _list, "list techniques and tools, or find them by a question in plain words")
    listing.add_argument("question", nargs="*", help="what you want to know")
    describing = command("describe", _describe, "show what a technique does, and its arguments")
    describing.add_argument("name")
    describing.add_argument("--schema", action="store_true", help="arguments and result as JSON schema")
    running = command("run", _run, "run a technique or tool; JSON on stdout, progress on stderr")
    running.add_argument("name")
    running.add_argument("arguments", nargs="?", help="JSON object (default {}), or - to read it from stdin")
    command("models", _models, "show the models that can be loaded by name")
    command("doctor", _doctor, "check versions, known-bad pairs, devices, memory; status 1 when something is wrong")
    viewing = command("view", _view, "show the workspace in a browser: investigations, runs, what is running now")
    viewing.add_argument("--host", default="127.0.0.1", help="127.0.0.1, localhost or ::1")
    viewing.add_argument("--port", type=int, default=8750)
    viewing.add_argument("--open", action="store_true", help="open it in the browser")
    command("mcp", _mcp, "start the MCP server, as anatomist-mcp does and with its options")
    linting = command("lint", _lint, "look for removed and silently wrong library calls in .py and .ipynb files")
    linting.add_argument("files", nargs="+", type=Path)
    installing = command("install", _install, "give an MCP client the server and the skill, or take them out again")
    installing.add_argument("client", help="claude-code, claude-desktop, cursor, vscode, codex or gemini")
    scope = installing.add_mutually_exclusive_group()
    scope.add_argument("--project", dest="scope", action="store_const", const="project", help="this folder (default)")
    scope.add_argument("--user", dest="scope", action="store_const", const="user", help="everywhere for this user")
    installing.add_argument("--undo", action="store_true", help="take out what was put in")
    installing.add_argument("--dry-run", action="store_true", help="only say what would be done")
    making = command("new", _new, "make a project from a template; without one, list the templates")
    making.add_argument("template", nargs="?")
    making.add_argument("folder", nargs="?", type=Path, help="new folder (default: the template's name)")
    return parser


def _add_folders(parser: argparse.ArgumentParser) -> None:
    """Options that may stand before or after the command; nothing is set where they are not given."""
    unset = argparse.SUPPRESS
    parser.add_argument("--workspace", type=Path, default=unset, help="folder of runs (default ./.anatomist)")
    parser.add_argument(
        "--allow", action="extend", nargs=1, type=Path, default=unset, help="another folder that may be read"
    )


def _list(options: argparse.Namespace) -> int:
    from .catalog import CATALOG

    if options.question:
        found = _call(options, "list_techniques", {"question": " ".join(options.question)})
        names = [line["name"] for line in found["techniques"]]  # type: ignore[union-attr, index]
        print("\n".join(_line(CATALOG.find(str(name)).headline, str(name)) for name in names) or found["summary"])
        return DONE
    print("Techniques:", *(_line(e.headline, e.name) for e in CATALOG.entries("technique")), sep="\n")
    print("Beside them:", *(_line(e.headline, e.name) for e in CATALOG.entries("operation")), sep="\n")
    return DONE


def _describe(options: argparse.Namespace) -> int:
    from .catalog import CATALOG

    entry = CATALOG.find(options.name)
    if options.schema:
        print(json.dumps({"arguments": entry.input_schema(), "result": entry.output_schema()}, indent=1))
        return DONE
    print(f"{entry.name}: {entry.title}\n\n{entry.docstring}\n\nArguments:")
    for name, field in entry.arguments.model_fields.items():
        default = "required" if field.is_required() else f"default {json.dumps(field.default, default=str)}"
        print(f"  {name} ({default}): {field.description or ''}")
    return DONE


def _run(options: argparse.Namespace) -> int:
    text = sys.stdin.read() if options.arguments == "-" else options.arguments or "{}"
    answer = _call(options, options.name, _object(text))
    print(json.dumps(answer, ensure_ascii=False))
    return DONE


def _models(options: argparse.Namespace) -> int:
    found = _call(options, "list_models", {})
    for model in found["offline"]:  # type: ignore[union-attr]
        assert isinstance(model, dict)
        print(_line(f"{model['about']}{'' if model['here'] else ' (fetched when first loaded)'}", str(model["name"])))
    print("Also: any local folder (safetensors or GGUF), any hub id such as EleutherAI/pythia-70m.")
    return DONE


def _doctor(options: argparse.Namespace) -> int:
    found = _call(options, "check_environment", {})
    compute, faults, versions = found["compute"], found["faults"], found["versions"]
    assert isinstance(faults, list)
    assert isinstance(versions, dict)
    print(found["summary"])
    print(f"Python {found['python']}, {found['system']}; workspace {found['workspace']}; cache {found['cache']}")
    print(", ".join(f"{name} {version}" for name, version in versions.items()))
    if isinstance(compute, dict):
        print(f"{compute['threads']} compute threads; devices: {', '.join(d['name'] for d in compute['devices'])}")
        faults = [*faults, *compute["warnings"]]
    for fault in faults:
        print(f"FAULT: {fault}")
    return REFUSED if faults else DONE


def _view(options: argparse.Namespace) -> int:
    from .desk import Desk
    from .viewer.app import serve

    workspace = Desk(options.workspace, allow=options.allow).workspace
    address = f"http://{f'[{options.host}]' if ':' in options.host else options.host}:{options.port}/"
    print(f"{workspace}: {address} (Ctrl-C ends it)", file=sys.stderr)
    if options.open:
        import webbrowser

        webbrowser.open(address)
    serve(workspace, options.host, options.port)
    return DONE


def _mcp(options: argparse.Namespace) -> int:
    """Registries of servers start a package by its own name: the server must be reachable from this command."""
    import runpy

    workspace = ["--workspace", str(options.workspace)] if options.workspace else []
    sys.argv = ["anatomist-mcp", *workspace, *(f"--allow={folder}" for folder in options.allow), *options.more]
    runpy.run_module("anatomist_mcp", run_name="__main__", alter_sys=True)
    return DONE


def _lint(options: argparse.Namespace) -> int:
    from .lint import check_file

    found = [place for file in options.files for place in check_file(file)]
    print(*found, sep="\n", end="\n" if found else "")
    return REFUSED if found else DONE


def _install(options: argparse.Namespace) -> int:
    from .install.install import install, undo

    scope = options.scope or ("user" if options.client == "claude-desktop" else "project")
    base = Path.home() if scope == "user" else Path.cwd()
    if options.undo:
        steps = undo(options.client, scope, base, dry_run=options.dry_run)
    else:
        steps = install(
            options.client, scope, base, workspace=options.workspace, allow=options.allow, dry_run=options.dry_run
        )
    print(*(f"{'would ' if options.dry_run else ''}{step}" for step in steps), sep="\n")
    return DONE


def _new(options: argparse.Namespace) -> int:
    from .scaffold import scaffold, templates

    if options.template is None:
        print(*(_line(question, name) for name, question in templates().items()), sep="\n")
        return DONE
    target = options.folder or Path(options.template)
    files = scaffold(options.template, target)
    print(f"{target}: {len(files)} files. Next: cd {target}, read README.md, python experiment.py")
    return DONE


def _call(options: argparse.Namespace, name: str, arguments: Mapping[str, object]) -> Mapping[str, object]:
    """The result as plain data; whatever a library prints meanwhile goes to stderr."""
    from .console import bar, stdout_to_stderr
    from .host import Host

    with stdout_to_stderr(), bar() as progress:
        host = Host(options.workspace, allow=options.allow)
        answer = host.call(name, arguments, progress)
    if answer.png_path is not None:
        print(f"picture: {answer.png_path}", file=sys.stderr)
    return answer.result.model_dump(mode="json")


def _object(text: str) -> Mapping[str, object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise BadArguments(
            f"{text[:80]!r} is not JSON ({error}); write an object, e.g. '{{\"model\": \"smollm2-135m\"}}'."
        ) from None
    if not isinstance(value, dict):
        raise BadArguments(f"{text[:80]!r} is not a JSON object; write '{{\"argument\": value}}'.")
    return value


def _line(words: str, name: str) -> str:
    return f"  {name:<28} {words}"


if __name__ == "__main__":
    sys.exit(main())
