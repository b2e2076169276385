"""A compiled top-level graph as data: Python code and what it calls, so that another process can run it.

    top ---- code "front = self.front(w0, x); decision = guard(step, 0, ...); ...", its globals
     +-- front --- code "h = self.block_0(x, w0)"
     |    +-- block_0   compiled by Inductor: an entry of AOTAutograd with the kernels in it
     +-- region --- ...

``take`` reads it off the callables that ``lower`` has left, ``run`` makes callables again. A piece that several
segments share is stored once and shared again.
"""

from __future__ import annotations

import importlib
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.fx import GraphModule

from .compat.inductor_code import compiled_code
from .compat.precompile import deserialized, serialized
from .passes.piece_call import PieceCall, boxed_call
from .runtime.cuda_graphs import without_graph


class NotPortable(Exception):
    """A graph that another process cannot be given; says why."""


@dataclass(frozen=True)
class Compiled:
    """A piece that Inductor has compiled; ``content`` is torch's pickle of it. ``boxed``: called with one list."""

    content: bytes
    boxed: bool

    def run(self) -> Callable[..., Any]:
        with compiled_code() as found:
            wrapped = deserialized(self.content)
        return boxed_call(wrapped, found) if self.boxed else wrapped


@dataclass(frozen=True)
class Code:
    """Python code of a graph: ``source`` defines ``forward(self, ...)``.

    ``globals`` are the objects that the source names (modules by their names, in ``modules``), ``parts`` the attributes
    of ``self``: numbers in the list of parts of the program, or values.
    """

    source: str
    globals: dict[str, Any]
    modules: dict[str, str]
    parts: dict[str, int]
    values: dict[str, Any]


@dataclass
class Program:
    """``parts`` in the order in which they are made, each after those that it calls; the last one is the whole."""

    parts: list[Code | Compiled] = field(default_factory=list)

    def run(self) -> Callable[..., Any]:
        """The program as a callable."""
        made: list[Callable[..., Any]] = []
        for part in self.parts:
            made.append(part.run() if isinstance(part, Compiled) else _forward(part, made))
        return made[-1]


def take(code: Callable[..., Any]) -> Program:
    """The program of ``code``, which ``lower`` or ``compile_graph`` has made.

    Raises:
        NotPortable: some part of it cannot be kept.
    """
    program = Program()
    _add(program, {}, code)
    return program


def _add(program: Program, known: dict[int, int], code: Any) -> int:
    """The number of ``code`` in ``program``, to which it is added at its first use."""
    owner = getattr(code, "__self__", code)
    place = known.get(id(owner))
    if place is None:
        part = _graph(program, known, owner) if isinstance(owner, GraphModule) else _compiled(code)
        place = known[id(owner)] = len(program.parts)
        program.parts.append(part)
    return place


def _compiled(code: Any) -> Compiled:
    boxed = isinstance(code, PieceCall)
    content = serialized(code.wrapped if boxed else code)
    if content is None:
        raise NotPortable(
            "torch gives no form of a compiled piece that could be kept; it does with inner=inductor, unless its "
            "caches are switched off or the piece holds what they cannot store"
        )
    return Compiled(content, boxed)


def _graph(program: Program, known: dict[int, int], gm: GraphModule) -> Code:
    parts: dict[str, int] = {}
    values: dict[str, Any] = {}
    for node in gm.graph.nodes:
        if node.op not in ("get_attr", "call_module"):
            continue
        name = str(node.target)
        value = getattr(gm, name, None)
        if value is None or isinstance(value, GraphModule):
            raise NotPortable(f"the graph holds a sub-graph outside of compiled pieces ({name})")
        if isinstance(value, Tensor) or not callable(value):
            values[name] = value
        else:
            parts[name] = _add(program, known, without_graph(value))
    code = gm.graph.python_code(root_module="self")
    modules = {name: one.__name__ for name, one in code.globals.items() if isinstance(one, types.ModuleType)}
    objects = {name: one for name, one in code.globals.items() if name not in modules}
    return Code(code.src, objects, modules, parts, values)


class _Holder:
    """What the code of a graph calls ``self``."""


def _forward(code: Code, made: list[Callable[..., Any]]) -> Callable[..., Any]:
    scope = {**code.globals, **{name: importlib.import_module(module) for name, module in code.modules.items()}}
    exec(compile(code.source, "<dit_cache: a loaded graph>", "exec"), scope)
    holder = _Holder()
    for name, value in [*code.values.items(), *((name, made[place]) for name, place in code.parts.items())]:
        setattr(holder, name, value)
        if isinstance(value, PieceCall):
            value.places.append((holder, name))
    return types.MethodType(scope["forward"], holder)
