"""Servers for the tests: in memory with a worker process of their own, and a worker that does odd things on purpose."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from anatomist_mcp.app import App, AppOptions
from anatomist_mcp.session import Session, WorkerOptions
from mcp import Client

HERE = Path(__file__).parent
ERAS = ("auto", "legacy")  # the revision of 2026-07-28, and the one before


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.filterwarnings("error::mcp.MCPDeprecationWarning"))


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="package")
async def app(anyio_backend: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[App]:
    """One server with one worker for all tests of this folder; its models are toys."""
    running = App(AppOptions(workspace=tmp_path_factory.mktemp("workspace"), threads=1, prestart=False))
    async with running.running():
        yield running


@pytest.fixture(params=ERAS)
async def client(request: pytest.FixtureRequest, app: App) -> AsyncIterator[Client]:
    """A client of either era."""
    async with Client(app.server, mode=request.param) as connected:
        yield connected


@pytest.fixture
async def modern(app: App) -> AsyncIterator[Client]:
    """A client of the present era."""
    async with Client(app.server) as connected:
        yield connected


class OddOptions(WorkerOptions):
    """Starts `odd_worker.py` in place of the worker."""

    def command(self) -> list[str]:
        return [sys.executable, str(HERE / "odd_worker.py")]


@pytest.fixture
async def odd(anyio_backend: str, tmp_path: Path) -> AsyncIterator[Session]:
    """A session whose worker is slow, stuck, noisy or dying, as each call asks."""
    session = Session(OddOptions(tmp_path))
    yield session
    await session.close()
