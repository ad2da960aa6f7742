"""Progress numbers only grow, whatever the phases of the work count from."""

from __future__ import annotations

import pytest
from anatomist_mcp.progress import Progress

pytestmark = pytest.mark.anyio


async def sent(*reports: tuple[float, float, str]) -> list[tuple[float, float | None]]:
    heard: list[tuple[float, float | None]] = []

    async def send(value: float, total: float | None, what: str | None) -> None:
        heard.append((round(value, 3), total))

    progress = Progress(send, every=0)
    for report in reports:
        await progress(*report)
    return heard


async def test_a_single_phase_is_passed_on_as_it_is() -> None:
    assert await sent((1, 3, "a"), (2, 3, "a"), (3, 3, "a")) == [(1, 3), (2, 3), (3, 3)]


async def test_a_second_phase_goes_on_where_the_first_ended() -> None:
    assert await sent((1, 1, "load"), (5, 10, "sweep"), (10, 10, "sweep")) == [(1, 1), (6, 11), (11, 11)]


async def test_word_of_life_without_numbers_still_grows() -> None:
    heard = await sent((0, 0, "waiting"), (0, 0, "waiting"), (1, 2, "work"))
    assert heard == [(0.001, None), (0.002, None), (1.002, 2.002)]


async def test_numbers_that_go_back_never_go_back_for_the_client() -> None:
    values = [v for v, _ in await sent((5, 10, "a"), (2, 10, "again"), (3, 10, "again"), (1, 4, "b"))]
    assert values == sorted(set(values))
