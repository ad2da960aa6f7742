"""The MCP server: every entry of the catalog as a tool. It names no technique and imports no torch.

Operations that need no model are answered here; everything else goes to the worker process through the session.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from importlib import metadata
from pathlib import Path

import anyio
import anyio.to_thread
import mcp_types as types
from anatomist.catalog import Catalog, Entry
from anatomist.desk import Desk, quiet
from anatomist.errors import AnatomistError, UnknownName
from anatomist.result import Frozen
from anyio.abc import TaskGroup
from mcp.server.lowlevel import Server

from . import prompts, resources
from .content import Shown, failure, present, read_png
from .core_tools import CORE
from .jobs import Jobs
from .progress import Progress
from .session import InternalError, Report, Session, WorkerOptions
from .tool import Call, ListedTool

OWN_PACKAGE = "anatomist_mcp.operations"
PRESTART_AFTER = 0.3  # seconds after the start, so that listing the tools is not slowed down
INSTRUCTIONS = (
    "Anatomist: mechanistic interpretability of language models. Order of work: check_environment, load_model, "
    "open_investigation, make_prompts, check_prompts (does the model do the task?), then techniques from coarse to "
    "fine with investigation=, add_hypothesis with a prediction before held-out prompts are used, a causal run "
    "(patch_activations, ablate), record_finding, validate_finding, write_report. Call nothing validated that "
    "validate_finding did not. Handles of models, prompts and runs are never guessable: use those that came back. Most "
    "techniques are not listed: list_techniques finds one for a question, run_technique calls it; open_reference says "
    "how to read a result and what it does not show. Answer strings keep their leading space (' Mary'). Long calls: "
    "as_job=true."
)
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class AppOptions:
    """How the server is started."""

    workspace: Path | None = None
    allow: tuple[Path, ...] = ()
    threads: int | None = None
    tools: str | None = None  # 'all', or names separated by commas, listed beside the core
    memory_bytes: int | None = None
    prestart: bool = True


class App:
    """The server's state: what can be called, the worker, the jobs."""

    def __init__(self, options: AppOptions) -> None:
        self.options = options
        self.catalog = Catalog(operations=("anatomist.operations", OWN_PACKAGE))
        self.desk = Desk(options.workspace, allow=options.allow)
        worker = WorkerOptions(self.desk.workspace, options.allow, options.threads, options.memory_bytes)
        self.session = Session(worker, note=self.desk.note)
        self.jobs = Jobs()
        self._tools: dict[str, ListedTool] = {}
        self._group: TaskGroup | None = None

    @cached_property
    def server(self) -> Server[None]:
        """The protocol's side: handlers, nothing else."""

        @asynccontextmanager
        async def lifespan(_: Server[None]) -> AsyncIterator[None]:
            async with self.running():
                yield None

        return Server(
            "anatomist",
            version=metadata.version("anatomist"),
            title="Anatomist",
            instructions=INSTRUCTIONS,
            lifespan=lifespan,
            get_tool_input_schema=lambda name: self.tool(name).listed.input_schema if self.knows(name) else None,
            on_list_tools=self._list_tools,
            on_call_tool=self._call_tool,
            on_list_resources=partial(resources.on_list, self.desk),
            on_list_resource_templates=resources.on_templates,
            on_read_resource=partial(resources.on_read, self.desk),
            on_list_prompts=prompts.on_list,
            on_get_prompt=prompts.on_get,
            on_completion=partial(resources.on_complete, self.desk),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The background of the server; entered once however many clients come and go inside it."""
        if self._group is not None:
            yield
            return
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._close)
            self._group = await stack.enter_async_context(anyio.create_task_group())
            if self.options.prestart:
                self._group.start_soon(self._prestart)
            yield
            self._group.cancel_scope.cancel()

    @cached_property
    def listed_names(self) -> tuple[str, ...]:
        """Names of the tools in `tools/list`: the core, and what --tools adds.

        Raises:
            UnknownName: --tools names something that is not in the catalog.
        """
        known = self.catalog.names()
        core = [name for name in CORE if name in known]
        asked = (self.options.tools or "").split(",")
        more = known if asked == ["all"] else [name.strip() for name in asked if name.strip()]
        for name in more:
            if name not in known:
                raise UnknownName.of("tool", name, known, "Give --tools all, or names separated by commas.")
        return tuple(dict.fromkeys([*core, *more]))

    def knows(self, name: str) -> bool:
        return name in self.catalog.names()

    def tool(self, name: str) -> ListedTool:
        """A tool by name, also one that is not listed.

        Raises:
            UnknownName: no such tool; the nearest is named.
        """
        if name not in self._tools:
            if not self.knows(name):
                next_step = "Call list_techniques for the techniques that are not listed as tools."
                raise UnknownName.of("tool", name, self.listed_names, next_step)
            self._tools[name] = ListedTool.of(self.catalog.find(name))
        return self._tools[name]

    async def compute(self, entry: Entry, arguments: Frozen, report: Report) -> Shown:
        """The worker's answer to a call."""
        answer = await self.session.call(entry.name, arguments.model_dump(mode="json"), report)
        result = entry.result.model_validate_json(answer.result)
        return Shown(result, answer.run_id, read_png(answer.png_path))

    async def answer(self, tool: ListedTool, arguments: Frozen, report: Report) -> Shown:
        """What a call gives, wherever it is answered.

        Raises:
            AnatomistError: every failure; unexpected ones as InternalError.
        """
        entry = tool.entry
        with _translated(entry.name):
            if entry.module.__name__.startswith(OWN_PACKAGE):
                return await entry.module.run(self, arguments, report)
            if entry.where == "worker":
                return await self.compute(entry, arguments, report)
            data = arguments.model_dump(mode="json")
            reply = await anyio.to_thread.run_sync(self.desk.call, entry.name, data, quiet, abandon_on_cancel=True)
            return Shown(reply.result, reply.run_id, read_png(reply.png_path))

    async def _prestart(self) -> None:
        await anyio.sleep(PRESTART_AFTER)
        with _logged("starting the worker"):
            await self.session.prestart()

    async def _close(self) -> None:
        self._group = None
        with anyio.CancelScope(shield=True):
            await self.session.close()

    async def _list_tools(self, ctx: object, params: object) -> types.ListToolsResult:
        return types.ListToolsResult(tools=[self.tool(name).listed for name in self.listed_names])

    async def _call_tool(self, ctx: ..., params: types.CallToolRequestParams) -> types.CallToolResult:
        report = Progress(ctx.session.report_progress)
        try:
            with _translated(params.name):
                tool = self.tool(params.name)
                call = tool.parse(params.arguments or {})
            if call.as_job:
                return present(self._start_job(tool, call), call.detail)
            shown = await self.answer(tool, call.arguments, report)
            with _translated(params.name):
                return present(shown, call.detail)
        except AnatomistError as error:
            return failure(str(error))

    def _start_job(self, tool: ListedTool, call: Call) -> Shown:
        assert self._group is not None
        job = self.jobs.start(self._group, tool.entry.name, partial(self.answer, tool, call.arguments))
        return Shown(job.started())


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """Let deliberate errors through; log any other exception and name it without its text, which may hold anything."""
    try:
        yield
    except AnatomistError:
        raise
    except Exception as error:
        log_id = uuid.uuid4().hex[:8]
        log.exception("%s failed (log id %s)", name, log_id)
        raise InternalError.of(name, type(error).__name__, log_id) from error


@contextmanager
def _logged(what: str) -> Iterator[None]:
    try:
        yield
    except (OSError, AnatomistError):
        log.exception("%s failed; the next call tries again", what)
