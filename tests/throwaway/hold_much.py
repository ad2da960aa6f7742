"""Say that it needs more memory than any machine has.

Source: none. Does not show: anything.
"""

from __future__ import annotations

from anatomist.estimate.calibration import Rate
from anatomist.estimate.cost import Cost, Part
from anatomist.estimate.sizes import Sizes
from anatomist.figures import Figure
from anatomist.result import Result
from anatomist.technique import Arguments as Base
from anatomist.technique import Context

TITLE = "Hold much"
QUESTIONS = ("Does the guard refuse?",)
PETABYTE = 10**15


class Arguments(Base):
    pass


class Held(Result):
    pass


def cost(arguments: Arguments, sizes: Sizes, rows: int, width: int, rate: Rate) -> Cost:
    part = Part(what="everything", formula="10^15", bytes=PETABYTE)
    return Cost(parts=(part,), peak_bytes=PETABYTE, flops=0.0, seconds=0.0, basis="nothing")


def run(context: Context, arguments: Arguments) -> Held:
    raise AssertionError("the guard let it run")


def plot(result: Held) -> Figure:
    raise AssertionError("it cannot have run")
