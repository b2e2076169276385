"""Which calls of a piece go straight to Inductor's code, and that they say the same."""

import threading

import pytest
import torch
from torch.fx import Graph, GraphModule

from dit_compile.compat.inductor_code import InductorCode, compiled_code
from dit_compile.passes.effects import Effects
from dit_compile.passes.lower import assemble, compile_graph, lower
from dit_compile.passes.piece_call import PieceCall, piece_call


class Compiled:
    """What Inductor makes of a graph, as far as it is used: code that takes a list, and empties it."""

    def __init__(self, run):
        self.calls = 0

        def code(args):
            self.calls += 1
            given = list(args)
            args.clear()
            return run(*given)

        self.current_callable = self.code = code

    def wrapped(self, before=lambda args: args, after=lambda outs: outs):
        return lambda *args: after(self.current_callable(before(list(args))))


def segment_with(call):
    segment = GraphModule({}, Graph())
    segment.piece = call
    call.places.append((segment, "piece"))
    return segment


def settled(compiled, wrapped, *args):
    call = piece_call(wrapped, [InductorCode(compiled)], Effects())
    segment = segment_with(call)
    first = segment.piece(list(args))
    assert compiled.current_callable is compiled.code
    assert segment.piece is not call
    return first, segment.piece


def test_a_wrapper_that_does_nothing_is_left_out():
    compiled = Compiled(lambda x, y: (x + y, x - y))
    one, two = torch.ones(2), torch.full((2,), 3.0)
    first, again = settled(compiled, compiled.wrapped(after=list), one, two)
    assert again is compiled.code
    assert [out.tolist() for out in first] == [out.tolist() for out in again([one, two])]


@pytest.mark.parametrize(
    "wrapper",
    [
        {"before": lambda args: [args[0].detach(), *args[1:]]},
        {"before": lambda args: [*args, torch.zeros(2)]},
        {"before": lambda args: args[::-1]},
        {"after": lambda outs: [outs[0].view(2), outs[1]]},
        {"after": lambda outs: outs[:1]},
        {"after": lambda outs: outs[0]},
    ],
)
def test_a_wrapper_that_changes_something_stays(wrapper):
    compiled = Compiled(lambda x, y, *more: (x + 2 * y, x - y))
    one, two = torch.ones(2), torch.full((2,), 3.0)
    wrapped = compiled.wrapped(**wrapper)
    first, again = settled(compiled, wrapped, one, two)
    assert again is not compiled.code
    for expected, *found in zip(wrapped(one, two), first, again([one, two]), strict=True):
        assert all(torch.equal(expected, out) for out in found)


def test_code_that_runs_twice_or_never_stays_wrapped():
    compiled = Compiled(lambda x: (x + 1,))
    twice = settled(
        compiled, lambda x: compiled.current_callable([x]) and compiled.current_callable([x]), torch.ones(1)
    )
    never = settled(compiled, lambda x: (x + 1,), torch.ones(1))
    assert compiled.code not in (twice[1], never[1])


@pytest.mark.parametrize("effects", [Effects(written=(0,)), Effects(tokens=("print",))])
def test_pieces_with_effects_stay_wrapped(effects):
    def wrapped(x):
        return (x,)

    compiled = InductorCode(Compiled(wrapped))
    assert piece_call(wrapped, [compiled], effects) is wrapped
    assert piece_call(wrapped, [], Effects()) is wrapped
    assert piece_call(wrapped, [compiled, compiled], Effects()) is wrapped
    assert isinstance(piece_call(wrapped, [compiled], Effects()), PieceCall)


def test_under_autocast_pieces_stay_wrapped():
    def wrapped(x):
        return (x,)

    with torch.autocast("cpu"):
        assert piece_call(wrapped, [InductorCode(Compiled(wrapped))], Effects()) is wrapped


def test_a_first_call_that_fails_leaves_nothing_behind():
    def run(x):
        if x.sum() < 0:
            raise ValueError("negative")
        return (x,)

    compiled = Compiled(run)
    call = piece_call(compiled.wrapped(), [InductorCode(compiled)], Effects())
    segment = segment_with(call)
    with pytest.raises(ValueError, match="negative"):
        segment.piece([-torch.ones(1)])
    assert segment.piece is call and compiled.current_callable is compiled.code
    assert segment.piece([torch.ones(1)])[0].item() == 1
    assert segment.piece is compiled.code


def test_a_second_thread_does_not_disturb_the_first_call():
    inside, go_on = threading.Event(), threading.Event()

    def run(x):
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            assert go_on.wait(10)
        return (x + 1,)

    compiled = Compiled(run)
    segment = segment_with(piece_call(compiled.wrapped(), [InductorCode(compiled)], Effects()))
    found = []
    thread = threading.Thread(target=lambda: found.append(segment.piece([torch.ones(1)])[0].item()))
    thread.start()
    assert inside.wait(10)
    assert segment.piece([torch.full((1,), 5.0)])[0].item() == 6
    assert isinstance(segment.piece, PieceCall)
    go_on.set()
    thread.join()
    assert found == [2.0] and segment.piece is compiled.code


PIECES = {
    "plain": (lambda x: (x.graph.call_function(torch.sin, (x,)),), Effects(), True),
    "view": (lambda x: (x.graph.call_method("t", (x,)), x.graph.call_function(torch.sin, (x,))), Effects(), True),
    "writes": (lambda x: (x.graph.call_method("add_", (x, 1)),), Effects(written=(0,)), False),
}


def piece_of(build):
    graph = Graph()
    x = graph.placeholder("x")
    x.meta["example_value"] = torch.zeros(8, 8)
    graph.output(build(x))
    return GraphModule({}, graph)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("name", PIECES)
def test_inductors_own_code(name):
    """Also where it comes from Inductor's caches. An older torch does not show it: all pieces stay wrapped."""
    build, effects, direct = PIECES[name]
    direct = direct and hasattr(torch._inductor.config, "cudagraph_policy")
    for _ in range(2):
        torch.compiler.reset()
        graphs = [Graph(), Graph()]
        for graph, callee in zip(graphs, ("segment", "piece_0"), strict=True):
            graph.output(graph.call_module(callee, (graph.placeholder("x"),)))
        segment = GraphModule({"piece_0": piece_of(build)}, graphs[1])
        top = GraphModule({"segment": segment}, graphs[0])
        module = assemble(top, lower({"piece_0": piece_of(build)}, {"piece_0": effects}, "inductor", {}))
        for _ in range(3):
            given, other = torch.ones(8, 8), torch.ones(8, 8)
            outs, expected = module(given), piece_of(build)(other)
            for one, wanted in zip(outs, expected, strict=True):
                torch.testing.assert_close(one, wanted)
                assert (one.data_ptr() == given.data_ptr()) == (wanted.data_ptr() == other.data_ptr())
        assert (getattr(segment.piece_0, "__name__", "") == "call") == direct


@torch.no_grad()
def test_the_code_of_nothing_is_nothing():
    with compiled_code() as found:
        compile_graph(GraphModule({}, Graph()), "eager", {})
    assert not found
