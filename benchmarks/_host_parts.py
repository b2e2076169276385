"""The single parts of a step: what each costs the host by itself, hot, on tensors of no size to speak of."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from dit_compile.compat import compile_with_inductor, without_dynamo_wrapper
from dit_compile.compat.inductor_code import compiled_code
from dit_compile.kernels.probe import probe, residual_of
from dit_compile.kernels.store import store_flagged
from dit_compile.kernels.weighted_sum import weighted_sum
from dit_compile.runtime.clock import Clock
from dit_compile.runtime.inputs import Call
from dit_compile.runtime.rows import WHOLE
from dit_compile.runtime.session import current_session
from dit_compile.runtime.side_inputs import SideInputs
from dit_compile.runtime.stats import Stopwatch
from dit_compile.runtime.table import SideTable
from dit_compile.runtime.transfer import Outbox, total
from dit_compile.runtime.weights import reader

CPU = torch.device("cpu")
WEIGHTS = (142, 1162)  # of FLUX with 6 and with 57 blocks


def best(run: Callable[[], object], *, batches: int = 60, calls: int = 50) -> float:
    """Microseconds of one call: CPU time of the thread, the best batch."""
    found = []
    for _ in range(batches):
        begin = time.thread_time_ns()
        for _ in range(calls):
            run()
        found.append((time.thread_time_ns() - begin) / calls / 1000)
    return min(found)


def parts() -> dict[str, float]:
    """Microseconds by part."""
    with torch.no_grad():
        return {**_owners(), **_clock(), **_kernels(), **_numbers(), **_pieces()}


def _owners() -> dict[str, float]:
    found = {}
    for count in WEIGHTS:
        weights = [nn.Parameter(torch.zeros(1)) for _ in range(count)]
        args = (torch.zeros(1), *weights[: count // 2], torch.zeros(1), *weights[count // 2 :])
        read = reader([i for i, value in enumerate(args) if isinstance(value, nn.Parameter)])
        table, known = SideTable(lambda stats: None), read(args)
        owner = table.owner(known, lambda weights=weights: weights, 0)  # type: ignore[misc]

        def again(read: Any = read, args: Any = args, known: bytes = known) -> bool:
            return bool(read(args) == known)

        def other(read: Any = read, args: Any = args, table: SideTable = table) -> object:
            return table.owner(read(args), list, 0)

        found[f"owner of {count} weights, as at the last call"] = best(again)
        found[f"owner of {count} weights, another one than at the last call"] = best(other)
        assert table.state(owner, "default")
        found[f"all data_ptr() of {count} weights"] = best(lambda weights=weights: [w.data_ptr() for w in weights])  # type: ignore[misc]
    return found


def _clock() -> dict[str, float]:
    prompt = [torch.zeros(1, 8, 64)]
    clock, outbox = Clock(), Outbox()

    def call() -> Call:
        return Call.at(torch.tensor([0.5]), 0, [torch.zeros(1, 64, 64)], prompt, None, 0, [])

    calls = [call() for _ in range(4000)]
    for i, one in enumerate(calls):
        one.time = 1 - i / len(calls)
    calls_left = iter(calls)
    known, side = call(), SideInputs()
    side.remember(known, WHOLE)
    return {
        "facts of a call": best(call),
        "clock.place": best(
            lambda: clock.place(next(calls_left), outbox, cfg="auto", num_steps=None), batches=40, calls=100
        ),
        "side.remember": best(lambda: side.remember(known, WHOLE)),
        "side.compare": best(lambda: side.compare(known, WHOLE)),
        "current_session": best(lambda: current_session(lambda name: None)),
    }


def _kernels() -> dict[str, float]:
    value, entry, previous, out = (torch.randn(1, 64, 64) for _ in range(4))
    flag = torch.zeros(())
    return {
        "probe, nothing to compare with": best(lambda: residual_of(value, entry)),
        "probe with previous": best(lambda: probe(value, entry, previous)),
        "weighted_sum of 2": best(lambda: weighted_sum(value, [entry, previous], [2.0, -1.0], out)),
        "store_flagged, its finite check included": best(lambda: store_flagged(out, flag, value, entry)),
    }


def _numbers() -> dict[str, float]:
    value = torch.randn(1, 64, 64)

    def check() -> bool:
        outbox = Outbox()
        ticket = outbox.put([total(value), total(value)])
        outbox.send()
        return ticket.finite()

    def stopwatch() -> float:
        watch = Stopwatch(CPU)
        watch.stop()
        return watch.seconds()

    return {
        "total": best(lambda: total(value)),
        "two totals, sent and read": best(check),
        "a number read": best(lambda: Outbox().put([value[0, 0, :2]]).values()),
        "stopwatch": best(stopwatch),
    }


def _pieces() -> dict[str, float]:
    """Of tensors of one element; its code, the allocation of its result included, is a part of each call."""
    found = {}
    for count in (2, 40):
        args = [torch.randn(1) for _ in range(1 + count)]
        graph = torch.fx.Graph()
        places = [graph.placeholder(f"x{i}") for i in range(1 + count)]
        total = places[0]
        for place in places[1:]:
            total = graph.call_function(torch.add, (total, place))
        graph.output((total,))
        with compiled_code() as codes:
            compiled = compile_with_inductor(torch.fx.GraphModule({}, graph), args, {"size_asserts": False})
        wrapped: Callable[..., Any] = without_dynamo_wrapper(compiled)
        found[f"piece with {count} weights, through AOTAutograd"] = best(partial(wrapped, *args))
        for code in codes:
            run = code.callable()
            found[f"piece with {count} weights, as it is called"] = best(partial(_boxed, run, args))
    return found


def _boxed(run: Callable[[list[Any]], Any], args: list[Any]) -> Any:
    return run([*args])
