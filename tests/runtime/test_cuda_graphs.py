"""CUDA graphs with the cache on, through a stand-in that poisons what replays may overwrite: outputs are those of the
run without graphs, bit for bit, and the caller's to keep."""

import gc
import logging
import threading
import weakref

import pytest
import stand_in_recorder
import torch
from toys import (
    WIDTH,
    Block,
    Glue,
    Hoisting,
    LongSkips,
    PassThrough,
    Prompted,
    Toy,
    TwoStreams,
    build,
    compile_toy,
    latents,
    moved,
    timestep_embedding,
)  # fmt: skip

import dit_compile

STEPS = 10
GUARDED = {"warmup_steps": 2, "residual_diff_threshold": 0.5, "max_continuous_cached_steps": 2}
ALL = "3 of 3 segments"


class JoinedBlock(Block):
    """Two streams in one tensor, which leave as views of it."""

    def forward(self, a, b, temb):
        return super().forward(torch.cat([a, b], 1), temb).chunk(2, 1)


class Joined(TwoStreams):
    def make_block(self, index, width):
        return JoinedBlock(width)


class OverlappingBlock(Block):
    """The second output is a view of the first."""

    def forward(self, x, temb):
        x = super().forward(x, temb)
        return x, x.mT


class Overlapping(Toy):
    def make_block(self, index, width):
        return OverlappingBlock(width)

    def forward(self, x, t):
        h, temb = self.embed(x), timestep_embedding(t)
        for block in self.blocks:
            h, view = block(h, temb)
        return self.head(h) + view.mT.sin()


@pytest.fixture
def stand_in(monkeypatch):
    return stand_in_recorder.install(monkeypatch)


def t(step, batch=2):
    return torch.full((batch,), 900.0 - 10 * step)


def plain_calls(count=STEPS):
    return [(moved(step), t(step)) for step in range(count)]


@torch.no_grad()
def run(model, calls, settings):
    """The outputs of ``calls``, as they are after the last of them."""
    torch._dynamo.reset()
    compiled = compile_toy(model, **(GUARDED | settings))
    return [compiled(*args) for args in calls], dit_compile.stats(model)[-1]


def compare(model, calls, **settings):
    """Runs ``calls`` with graphs and without; returns the statistics of the former."""
    expected, plain = run(model, calls, settings | {"cuda_graphs": "off"})
    outputs, stats = run(model, calls, {"cuda_graphs": "on"} | settings)
    for output, wanted in zip(outputs, expected, strict=True):
        assert torch.equal(output, wanted)
        assert output.stride() == wanted.stride()
    assert [step.action for step in stats.steps] == [step.action for step in plain.steps]
    return stats


def messages(caplog):
    return [record.getMessage() for record in caplog.records if "CUDA graph" in record.getMessage()]


@pytest.mark.parametrize("cls", [Toy, TwoStreams, Hoisting, LongSkips, PassThrough, Glue, Joined, Overlapping])
@pytest.mark.parametrize("forecast", ["foca", pytest.param("reuse", marks=pytest.mark.slow)])
def test_outputs_are_those_without_graphs(cls, forecast, stand_in):
    stats = compare(build(cls), plain_calls(), forecast=forecast)
    assert stats.cuda_graphs == ALL
    assert stats.reused > 2
    [recorder] = stand_in.made
    front, region, tail = recorder.recordings
    assert front.replays == tail.replays == STEPS > region.replays > 1  # the first is compared with a run


@pytest.mark.parametrize("scope", ["block", "halves"])
def test_several_regions(scope, stand_in):
    stats = compare(build(Toy, depth=8), plain_calls(16), scope=scope)
    used, of = (int(word) for word in stats.cuda_graphs.split() if word.isdigit())
    assert used == of > 3


@pytest.mark.parametrize("settings", [{"downsample_factor": 2}, {"probe": "hidden"}, {"snapshot_dtype": "bfloat16"},
                                      {"policy": "teacache"}, {"policy": "dbprune", "scope": "block"}, {"bn": 1},
                                      {"policy": "mask", "step_mask": "1111010010"}])  # fmt: skip
def test_policies_and_settings(settings, stand_in):
    assert "segments" in compare(build(Toy), plain_calls(), **settings).cuda_graphs
    assert sum(recording.replays for recording in stand_in.made[0].recordings) > STEPS


@pytest.mark.slow
def test_compiled_by_inductor(stand_in):
    assert compare(build(TwoStreams), plain_calls(), inner="inductor").cuda_graphs == ALL


def test_inference_mode(stand_in):
    """Inference tensors count no writes: each input is copied at each call."""
    model, x, time = build(Toy), latents(), t(0)
    outputs = []
    for graphs in ("off", "on"):
        torch._dynamo.reset()
        compiled = compile_toy(model, cuda_graphs=graphs, **GUARDED)
        with torch.inference_mode():
            now, when = x.clone(), time.clone()
            results = []
            for _ in range(STEPS):
                results.append(compiled(now, when))
                now.mul_(0.99)
                when.sub_(10)
        outputs.append(results)
    for expected, output in zip(*outputs, strict=True):
        assert torch.equal(output, expected)
        assert output.is_inference()
    assert dit_compile.stats(model)[-1].cuda_graphs == ALL


def test_inputs_written_in_place(stand_in):
    model = build(Prompted)
    results = []
    for graphs in ("off", "on"):
        torch._dynamo.reset()
        compiled = compile_toy(model, cuda_graphs=graphs, **GUARDED)
        x, time, prompt = latents(), t(0), latents(seed=3)
        with torch.no_grad():
            outputs = []
            for step in range(STEPS):
                outputs.append(compiled(x, time, prompt))
                x.mul_(0.99)
                time.sub_(10)
                prompt.add_(0.01 * (step % 2))
        results.append(outputs)
    assert all(map(torch.equal, *results))
    assert dit_compile.stats(model)[-1].cuda_graphs == ALL


def test_two_branches(stand_in):
    """A pipeline keeps cond while it asks for uncond."""
    prompts = (latents(seed=3), latents(seed=4))
    calls = [(moved(step), t(step), prompt) for step in range(STEPS) for prompt in prompts]
    stats = compare(build(Prompted), calls)
    assert stats.branches == [0, 1]
    assert stats.cuda_graphs == ALL
    assert len(stand_in.made[0].recordings) == 3


def test_two_sessions(stand_in):
    model = build(Toy)

    @torch.no_grad()
    def outputs(**settings):
        torch._dynamo.reset()
        compiled = compile_toy(model, **GUARDED, **settings)
        sessions = [dit_compile.session(f"{settings} {i}", keep=True) for i in range(2)]
        found = []
        for step in range(STEPS):
            for i, session in enumerate(sessions):
                with session:
                    found.append(compiled(moved(step) * (1 + i), t(step)))
        for session in sessions:
            session.close()
        return found

    assert all(map(torch.equal, outputs(cuda_graphs="off"), outputs(cuda_graphs="on")))
    assert [stats.cuda_graphs for stats in dit_compile.stats(model)[-2:]] == [ALL, ALL]


def test_two_threads(stand_in, caplog):
    """While one thread is in the model another finds the graphs in use: it runs without, and this is said once."""
    model = build(Toy)
    expected, _ = run(model, plain_calls(), {"cuda_graphs": "off"})
    torch._dynamo.reset()
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED)
    with torch.no_grad():
        compiled(*plain_calls()[0])  # compiles
    dit_compile.reset(model)
    outputs, gate = {}, threading.Barrier(2, timeout=60)

    @torch.no_grad()
    def work(name):
        with dit_compile.session(name):
            found = []
            for args in plain_calls():
                gate.wait()
                found.append(compiled(*args))
            outputs[name] = found

    original = torch.nn.functional.gelu
    threads = [threading.Thread(target=work, args=(name,)) for name in ("one", "two")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert original is torch.nn.functional.gelu
    for found in outputs.values():
        assert all(map(torch.equal, found, expected))
    assert len(messages(caplog)) <= 1


@torch.no_grad()
def test_a_call_that_finds_the_graphs_in_use(stand_in, caplog):
    from dit_compile.api import table

    model = build(Toy)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED)
    expected = [compiled(*args) for args in plain_calls()]
    dit_compile.reset(model)
    [owner] = table.owners(model)
    with table.graphs(owner).busy:
        assert all(map(torch.equal, [compiled(*args) for args in plain_calls()], expected))
    assert "two threads" in dit_compile.stats(model)[-1].cuda_graphs
    assert len(messages(caplog)) == 1


def test_two_resolutions(stand_in):
    """Graphs of one pool: those of the first size overwrite what those of the second returned."""
    calls = [(latents(tokens=tokens) + 0.1 * step, t(step)) for step in range(STEPS) for tokens in (5, 7)]
    stats = compare(build(Toy), calls, num_steps=STEPS)
    assert stats.cuda_graphs == ALL
    assert len({id(recorder) for recorder in stand_in.made}) == 1
    assert len(stand_in.made[0].recordings) == 6


def test_too_many_layouts(stand_in, caplog):
    """Strides are part of the layout: Dynamo compiles once for all these sizes."""
    calls = [(latents(tokens=tokens), t(step)) for tokens in range(3, 9) for step in range(4)]
    stats = compare(build(Toy), calls)
    assert "more than 4 shapes" in stats.cuda_graphs
    assert len([message for message in messages(caplog) if "more than 4" in message]) == 1


def test_expanded_inputs(stand_in):
    calls = [(moved(step), torch.tensor([900.0 - step]).expand(2)) for step in range(STEPS)]
    assert compare(build(Toy), calls).cuda_graphs == ALL


def test_two_experts(stand_in):
    """Two modules of one class share compiled code, not graphs."""
    models = [build(Toy, seed=seed) for seed in range(2)]

    @torch.no_grad()
    def outputs(**settings):
        torch._dynamo.reset()
        compiled = [compile_toy(model, **GUARDED, **settings) for model in models]
        return [one(*args) for one in compiled for args in plain_calls()]

    assert all(map(torch.equal, outputs(cuda_graphs="off"), outputs(cuda_graphs="on")))
    assert [dit_compile.stats(model)[-1].cuda_graphs for model in models] == [ALL, ALL]
    assert len(stand_in.made) == 2


@torch.no_grad()
def change(model, factor):
    """A LoRA that is fused into the weights."""
    for parameter in model.parameters():
        parameter.mul_(factor)


@torch.no_grad()
def move(model):
    """An offload and back."""
    for parameter in model.parameters():
        old = parameter.data
        parameter.data = old.clone()
        old.fill_(float("nan"))


@torch.no_grad()
@pytest.mark.parametrize("moves", [1, 3, 6])
def test_weights_that_change_and_weights_that_move(moves, stand_in, caplog):
    """Fused in place they are where they were; elsewhere they are recorded anew, a few times."""
    model = build(Toy)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED, policy="mask", step_mask="1111010")
    for generation in range(moves + 1):
        if generation:
            move(model)
            change(model, 1.01)
        outputs = [compiled(*args) for args in plain_calls(7)]
        assert all(map(torch.equal, outputs[:4], [model(*args) for args in plain_calls(4)]))
        assert not any(output.isnan().any() for output in outputs)
    text = dit_compile.stats(model)[-1].cuda_graphs
    assert ("keep moving" in text) == (moves > 3)
    assert len(messages(caplog)) == (moves > 3)
    if moves <= 3:
        assert text == ALL


@torch.no_grad()
def test_weights_that_move_within_a_call_of_a_generation(stand_in):
    """Group offloading: noticed at the very call."""
    model = build(Toy)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED, policy="mask", step_mask="1")
    for step, args in enumerate(plain_calls(6)):
        if step >= 4:
            move(model.blocks[3])
        assert torch.equal(compiled(*args), model(*args))


@torch.no_grad()
def test_graphs_are_recorded_in_the_order_in_which_they_run(stand_in):
    """After a move in the middle of a call, the segments behind it wait for those before it: a replay of the front
    would otherwise find its outputs overwritten by what was recorded earlier and runs later."""
    model = build(Toy, depth=8)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED, scope="block", policy="mask", step_mask="1")
    for step, args in enumerate(plain_calls(8)):
        if step == 4:
            move(model.blocks[3])
        assert torch.equal(compiled(*args), model(*args))
    assert dit_compile.stats(model)[-1].cuda_graphs.split("; ") == ["9 of 9 segments"]


@torch.no_grad()
@pytest.mark.parametrize("decision", ["rows", "halves"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_batch_rows(decision, dynamic, stand_in):
    """Rows that are computed alone run without a graph; the tail reads what was put together."""
    model, results = build(Toy), []
    for graphs in ("off", "on"):
        torch._dynamo.reset()
        options = {
            **GUARDED,
            "inner": "eager",
            "batch_decision": decision,
            "residual_diff_threshold": 0.1,
            "warmup_steps": 1,
        }
        compiled = torch.compile(model, backend="dit_cache", options=options | {"cuda_graphs": graphs}, dynamic=dynamic)
        outputs = []
        for step in range(STEPS):
            x = latents(batch=4, tokens=6)
            x[3] += step * (step % 2)  # the others stand still
            outputs.append(compiled(x, torch.full((4,), 900.0 - 0.1 * step)))
        results.append(outputs)
    assert all(map(torch.equal, *results))
    stats = dit_compile.stats(model)[-1]
    assert any(len({step.action for step in stats.steps if step.index == i}) == 2 for i in range(STEPS))
    assert stats.cuda_graphs == ALL
    assert all(recording.outputs[0].shape[0] == 4 for recording in stand_in.made[0].recordings)


class Random(Toy):
    def tail(self, h, temb):
        return self.head(h) + 0 * torch.rand_like(h)


class OnTheHost(Toy):
    """Takes a number on a device of its own."""

    def forward(self, x, t, scale):
        h, temb = self.front(x, t)
        return self.tail(self.region(h, temb), temb) * scale


def test_random_numbers_refuse_their_segment(stand_in, caplog):
    stats = compare(build(Random), plain_calls())
    assert stats.cuda_graphs == "2 of 3 segments; tail: it draws random numbers"
    assert len(messages(caplog)) == 1


def test_an_operand_elsewhere_refuses_its_segment(stand_in, caplog, monkeypatch):
    from dit_compile.runtime import segment_graph

    check = segment_graph._check

    def on_another_device(tensor, device):  # there is but one device here
        if tensor.shape == (3,):
            raise segment_graph.Unrecordable("an operand is on another device")
        check(tensor, device)

    monkeypatch.setattr(segment_graph, "_check", on_another_device)
    calls = [(*args, torch.ones(3)[:1].expand(3)[:WIDTH].sum() * torch.ones(3)) for args in plain_calls()]
    model = build(OnTheHost)
    model.tail = lambda h, temb: model.head(h)[..., :3]
    stats = compare(model, calls)
    assert stats.cuda_graphs == "2 of 3 segments; tail: an operand is on another device"
    assert len(messages(caplog)) == 1


def test_a_recording_that_fails(stand_in, caplog, monkeypatch):
    monkeypatch.setattr(stand_in, "fails", RuntimeError("operation not permitted when stream is capturing"))
    stats = compare(build(Toy), plain_calls())
    assert stats.cuda_graphs.startswith("0 of 3 segments; ")
    assert "stream is capturing" in stats.cuda_graphs
    assert len(messages(caplog)) == 1


def test_a_recording_that_computes_something_else(stand_in, caplog, monkeypatch):
    """The first replay is compared with running the segment; what differs is never used."""
    replay = stand_in_recorder.Recording.replay

    def wrong(self):
        replay(self)
        self.outputs[0].data.add_(1)

    monkeypatch.setattr(stand_in_recorder.Recording, "replay", wrong)
    stats = compare(build(Toy), plain_calls())
    assert stats.cuda_graphs.startswith("0 of 3 segments; ")
    assert "its first replay gave other numbers" in stats.cuda_graphs
    assert len(messages(caplog)) == 1


def test_auto_measures(stand_in, monkeypatch, caplog):
    """Segments whose time on the device covers the host's run as they are; nothing is said of that."""
    assert compare(build(Toy), plain_calls(), cuda_graphs="auto").cuda_graphs == ALL
    monkeypatch.setattr(stand_in, "device_seconds", 100.0)
    text = compare(build(Toy), plain_calls(), cuda_graphs="auto").cuda_graphs
    assert text.startswith("0 of 3 segments; ")
    assert "on the device" in text
    assert messages(caplog) == []


@torch.no_grad()
@pytest.mark.parametrize("given", [{"mode": "reduce-overhead"}, {"options": {"triton.cudagraphs": True}}], ids=str)
def test_torchs_own_switches(given, stand_in, monkeypatch, caplog):
    """They switch graphs on, whatever a measurement would say."""
    monkeypatch.setattr(stand_in, "device_seconds", 100.0)
    monkeypatch.setenv("DIT_CACHE_INNER", "eager")
    model = build(Toy)
    compiled = torch.compile(model, backend="dit_cache", **given)
    for args in plain_calls(5):
        compiled(*args)
    assert dit_compile.stats(model)[-1].cuda_graphs == ALL
    assert messages(caplog) == []


@torch.no_grad()
@pytest.mark.parametrize("how", ["dies", "dit_compile.reset", "torch.compiler.reset"])
def test_graphs_and_their_memory_are_freed(how, stand_in):
    model = build(Toy)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED)
    for args in plain_calls():
        compiled(*args)
    recorder = stand_in.made.pop()
    static = [weakref.ref(output) for one in recorder.recordings for output in one.outputs]
    assert all(reference() is not None for reference in static)
    del recorder
    if how == "dies":
        del model, compiled
    elif how == "dit_compile.reset":
        dit_compile.reset(model)
    else:
        torch.compiler.reset()
    gc.collect()
    assert all(reference() is None for reference in static)


@torch.no_grad()
def test_graphs_keep_no_weight_alive(stand_in):
    """Not even where a segment returns a view of one."""

    class Returns(Toy):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.table = torch.nn.Parameter(torch.randn(1, 5, WIDTH))

        def forward(self, x, t):
            temb = timestep_embedding(t)
            h = self.region(self.blocks[0](self.embed(x) + self.table[:, :5], temb), temb)
            return self.head(h + self.table[:, :5])

    model = build(Returns)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED)
    for args in plain_calls():
        compiled(*args)
    assert dit_compile.stats(model)[-1].cuda_graphs == ALL
    table = weakref.ref(model.table)
    del model, compiled
    gc.collect()
    assert table() is None


@torch.no_grad()
def test_an_error_in_a_call_leaves_graphs_usable(stand_in, monkeypatch):
    from dit_compile.runtime.call import CallStep

    model = build(Toy)
    compiled = compile_toy(model, cuda_graphs="on", **GUARDED, policy="mask", step_mask="1")
    for args in plain_calls(4):
        compiled(*args)
    with monkeypatch.context() as patched:
        patched.setattr(CallStep, "guard", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            compiled(*plain_calls(5)[-1])
    for args in plain_calls(4):
        assert torch.equal(compiled(*args), model(*args))
    assert dit_compile.stats(model)[-1].cuda_graphs == ALL


def test_the_summary_says_so(stand_in, capsys):
    model = build(Toy)
    run(model, plain_calls(), {"cuda_graphs": "on"})
    dit_compile.summary(model)
    assert f"CUDA       graphs for {ALL}" in capsys.readouterr().out


def test_without_a_recorder_nothing_changes(caplog):
    caplog.set_level(logging.DEBUG, "dit_compile")
    assert compare(build(Toy), plain_calls()).cuda_graphs == ""
    assert messages(caplog) == []


@pytest.mark.slow
@torch.no_grad()
def test_through_the_other_entry(stand_in):
    """Weights that a call does not pass; FLUX's blocks, rotary tables and prompts."""
    from tiny_models import FLUX

    results = []
    for graphs in ("off", "on"):
        torch._dynamo.reset()
        model = FLUX.build()
        dit_compile.compile(model, inner="eager", cuda_graphs=graphs, **GUARDED)
        inputs = FLUX.inputs()
        outputs = []
        for step in range(STEPS):
            inputs["hidden_states"] = inputs["hidden_states"] * 0.99
            inputs["timestep"] = torch.full((1,), 1 - 0.01 * step)
            outputs.append(model(**inputs)[0])
        results.append(outputs)
    assert all(map(torch.equal, *results))
    assert dit_compile.stats(model)[-1].cuda_graphs == ALL
    assert dit_compile.stats(model)[-1].reused > 2


def test_a_loaded_graph_is_recorded_too():
    """What a saved graph is made of holds no code; its segments are wrapped where they are loaded."""
    import pickle
    from types import SimpleNamespace

    from dit_compile.runtime.cuda_graphs import GraphedCode, GraphedSegment, without_graph
    from dit_compile.runtime.segment_graph import SegmentPlace

    place = SegmentPlace(0, "front", (0,), (1,), False, None)
    code = pickle.loads(pickle.dumps(GraphedCode([place], (1,), torch.device("cpu"), measure=True)))
    graph = SimpleNamespace(front=max)
    code.wrap_all(graph)
    assert isinstance(graph.front, GraphedSegment)
    assert graph.front.place == place
    assert without_graph(graph.front) is max
    assert graph.front(1, 2) == 2
