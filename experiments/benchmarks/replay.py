"""What some work would take if it were nothing but its own convolutions and matrix products, at their own shapes.

The work is run once with tensors that hold nothing (the meta device), and every call that has a cost is noted with the
shapes and strides of what it was given. The calls that cost most are then made again, one by one, on this machine.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

CONVOLUTIONS = (torch.ops.aten.convolution, torch.ops.aten.convolution_backward)
COVERED = 0.7  # share of the operations of each kind that is made again; the rest is taken to go at the same rate


@dataclass(frozen=True)
class Layout:
    """A tensor without its numbers."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]

    def filled(self) -> Tensor:
        """Return random float32 numbers laid out so."""
        if 0 in self.stride:  # rows that are one in memory
            return torch.rand(self.shape)
        return torch.empty_strided(self.shape, self.stride).uniform_()


@dataclass(frozen=True)
class Call:
    """One operation with what it is given."""

    operation: Any
    given: tuple[Any, ...]

    @property
    def is_convolution(self) -> bool:
        """Whether it is one, forward or backward."""
        return self.operation.overloadpacket in CONVOLUTIONS

    def prepared(self) -> Callable[[], object]:
        """Return the call with random numbers, to be made any number of times."""
        given = [one.filled() if isinstance(one, Layout) else list(one) if isinstance(one, tuple) else one
                 for one in self.given]  # fmt: skip
        return lambda: self.operation(*given)


class Recorder(TorchDispatchMode):
    """Notes the calls made inside ``with``: how often each, and the operations of one."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[Call] = Counter()
        self.flop: dict[Call, float] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Make a call, in the pieces it consists of, and note it where it costs anything."""
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if packet not in flop_registry:
            with self:
                pieces = func.decompose(*args, **kwargs)
                if pieces is not NotImplemented:
                    return pieces
        result = func(*args, **kwargs)
        if packet in flop_registry:
            call = Call(func, tuple(_without_numbers(one) for one in args))
            self.calls[call] += 1
            self.flop[call] = float(flop_registry[packet](*args, **kwargs, out_val=result))
        return result

    @property
    def total(self) -> float:
        """Operations of everything."""
        return sum(n * self.flop[call] for call, n in self.calls.items())


def _without_numbers(given: Any) -> Any:
    if isinstance(given, Tensor):
        return Layout(tuple(given.shape), given.stride())
    return tuple(given) if isinstance(given, list) else given


@dataclass
class Replay:
    """The calls of some work that cost most, and the seconds they took, in one turn or several."""

    recorder: Recorder
    covered: float = COVERED
    turns: list[float] = field(default_factory=list)

    def turn(self, warm: bool = False) -> float:
        """Make the calls and keep what the whole work would take at their rates; with ``warm`` each call twice."""
        whole = 0.0
        for kind in (True, False):
            calls = self._dearest(kind)
            flop = sum(n * self.recorder.flop[call] for call, n in self.recorder.calls.items()
                       if call.is_convolution == kind)  # fmt: skip
            made = sum(self.recorder.calls[call] * self.recorder.flop[call] for call in calls)
            taken = sum(self.recorder.calls[call] * _seconds(call, warm) for call in calls)
            whole += taken * flop / made if made else 0.0
        self.turns.append(whole)
        return whole

    def _dearest(self, convolutions: bool) -> list[Call]:
        """The fewest calls of a kind that hold the share of its operations that is covered."""
        cost = {call: n * self.recorder.flop[call] for call, n in self.recorder.calls.items()
                if call.is_convolution == convolutions}  # fmt: skip
        chosen: list[Call] = []
        for call in sorted(cost, key=lambda call: -cost[call]):
            if sum(cost[one] for one in chosen) >= self.covered * sum(cost.values()):
                break
            chosen.append(call)
        return chosen


def _seconds(call: Call, warm: bool) -> float:
    with torch.no_grad():
        work = call.prepared()
        if warm:
            work()
        begun = time.perf_counter()
        work()
        return time.perf_counter() - begun
