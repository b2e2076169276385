"""Resolution, batch size, prompt length and dtype change between and inside generations.

Every step is compared with eager code, reused ones with the oracle that skips the blocks of eager modules: nothing that
was stored for one shape is seen at another, and nothing of it is held any more.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from eager_oracle import EagerOracle
from examine import error
from registry import few_blocks
from specs import B, latents, normal, padded, per_sample, timestep
from tiers import slow_unless
from torch.utils._pytree import tree_map

import dit_compile
from dit_compile.api import table

REUSE = {
    "inner": "eager", "residual_diff_threshold": 1e9, "warmup_steps": 1, "max_continuous_cached_steps": -1,
    "forecast": "reuse",
}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """All sizes in tokens. No two of one model are equal, for Dynamo takes sizes that are equal once for one size."""

    height: int = 5
    width: int = 4
    text: int = 7
    batch: int = 3
    dtype: torch.dtype = torch.float32


def flux(shape):
    tokens = shape.height * shape.width
    return dict(
        hidden_states=latents(B, tokens, 4), timestep=timestep(1.0), encoder_hidden_states=normal(B, shape.text, 32),
        pooled_projections=normal(B, 32), img_ids=normal(tokens, 3), txt_ids=normal(shape.text, 3),
    )  # fmt: skip


def sd3(shape):
    return dict(
        hidden_states=latents(B, 4, 2 * shape.height, 2 * shape.width), timestep=timestep(1000.0),
        encoder_hidden_states=normal(B, shape.text, 32), pooled_projections=normal(B, 64),
    )  # fmt: skip


def wan(shape):
    return dict(
        hidden_states=latents(B, 4, 2, 2 * shape.height, 2 * shape.width), timestep=timestep(999, dtype=torch.int64),
        encoder_hidden_states=normal(B, shape.text, 16),
    )  # fmt: skip


def qwen(shape):
    return dict(
        hidden_states=latents(B, shape.height * shape.width, 16), timestep=timestep(1.0),
        encoder_hidden_states=normal(B, shape.text, 16),
        encoder_hidden_states_mask=padded(shape.text, shape.text, shape.text - 2, dtype=torch.bool),
        img_shapes=per_sample([(1, shape.height, shape.width)]),
    )  # fmt: skip


INPUTS = {
    "FluxTransformer2DModel": flux, "SD3Transformer2DModel": sd3, "WanTransformer3DModel": wan,
    "QwenImageTransformer2DModel": qwen,
}  # fmt: skip
ROOM = {"SD3Transformer2DModel": dict(pos_embed_max_size=24)}  # for the tokens of all shapes in a row


def each(fast: str | None = None) -> pytest.MarkDecorator:
    """Every model, all but ``fast`` slow: a test compiles two to five graphs."""
    return pytest.mark.parametrize("name", slow_unless(lambda name: name == fast, INPUTS, str))


class Subject:
    """A compiled model, and an oracle over the same weights in eager code."""

    def __init__(self, name, dynamic=None):
        self.name = name
        self.spec = few_blocks(name, **ROOM.get(name, {}))
        self.model = self.spec.build()
        self.oracle = EagerOracle(self.model, self.spec)
        self.compiled = torch.compile(self.model, backend="dit_cache", fullgraph=True, dynamic=dynamic, options=REUSE)
        self.index = 0

    def run(self, shape, steps, seed=1):
        """``steps`` further steps at ``shape``: the first must be computed, the others are reused. Returns the reason
        of the first."""
        spec = replace(self.spec, inputs=INPUTS[self.name](shape))
        self.model.to(shape.dtype)
        calls = [spec.call(self.index + i, steps=40, batch=shape.batch, seed=seed) for i in range(steps)]
        calls = [cast(call, shape.dtype) for call in calls]
        prompt = {key: value for key, value in calls[0].items() if key not in ("hidden_states", "timestep")}
        for i, call in enumerate(calls):
            wanted = self.oracle.step(reuse=i > 0, **call)
            got = self.compiled(**(call | prompt))  # the prompt is one object, as in pipelines
            assert error(got, wanted) < 1e-5, (shape, i)
        self.index += steps
        made = dit_compile.stats(self.compiled)[-1].steps[-steps:]
        assert [step.action for step in made] == ["compute"] + ["reuse"] * (steps - 1)
        return made[0].reason


def cast(call, dtype):
    floats = lambda value: isinstance(value, torch.Tensor) and value.dtype == torch.float32  # noqa: E731
    return tree_map(lambda value: value.to(dtype) if floats(value) else value, call)


def held():
    """Bytes of everything that lives from one step to the next, in all sessions of all modules."""
    return sum(state.bytes_held() for state in table._states.values())


@each(fast="WanTransformer3DModel")
@torch.no_grad()
def test_resolutions_between_generations(name):
    """Two graphs serve them all, and each generation holds what its own resolution needs."""
    subject, bytes_of = Subject(name), {}
    for height, width in [(5, 4), (6, 8), (8, 6), (4, 10), (8, 8), (5, 4), (6, 8)]:
        subject.index = 0
        assert subject.run(Shape(height, width), steps=2) == "no_snapshot"
        assert held() == dit_compile.stats(subject.compiled)[-1].bytes_held
        assert bytes_of.setdefault((height, width), held()) == held()
    assert torch._dynamo.utils.counters["dit_cache"]["graphs"] == 2
    assert len(dit_compile.graphs()) == 2
    assert bytes_of[6, 8] == bytes_of[8, 6]
    assert bytes_of[8, 8] > bytes_of[6, 8] > bytes_of[4, 10] > bytes_of[5, 4] > 0


CHANGES = [Shape(text=11), Shape(height=8, width=6), Shape(batch=5), Shape(dtype=torch.float64)]
# FLUX gets a graph for each kind of change. The others, compiled with dynamic=True, have one for all and one for the
# dtype; Qwen-Image's code fixes the length of the prompt, and that of a list with an entry per sample.
GRAPHS = {
    "FluxTransformer2DModel": 5, "SD3Transformer2DModel": 2, "WanTransformer3DModel": 2,
    "QwenImageTransformer2DModel": 4,
}  # fmt: skip


@each()
@torch.no_grad()
def test_changes_inside_a_generation(name):
    """There and back again, for one step or for some: the first step of each stretch is computed, and what was held for
    the shape that is gone is free two steps later."""
    dynamic = None if name == "FluxTransformer2DModel" else True
    subject, base = Subject(name, dynamic), Shape()
    assert subject.run(base, steps=3) == "no_snapshot"
    alone = held()
    for shape in CHANGES:
        for steps in (1, 3):
            assert subject.run(shape, steps) in ("no_snapshot", "shape_changed", "absent")
            assert subject.run(base, steps=3) in ("no_snapshot", "shape_changed", "absent")
            assert held() == alone, "the state of a shape that is gone"
    assert len(dit_compile.graphs()) == GRAPHS[name]
