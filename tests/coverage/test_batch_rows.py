"""Rows of a batch that decide for themselves, on models of the registry: equal to each row run alone."""

import pytest
import torch
from examine import error
from registry import few_blocks, registered
from torch.utils._pytree import tree_map

import dit_compile

BATCH, STEPS = 5, 8  # no dimension of these models is 5
NAMES = (
    "FluxTransformer2DModel", "SD3Transformer2DModel", "WanTransformer3DModel", "HunyuanVideoTransformer3DModel",
    "QwenImageTransformer2DModel",
)  # fmt: skip
OPTIONS = {"inner": "eager", "warmup_steps": 1, "residual_diff_threshold": 0.1, "max_continuous_cached_steps": 3}


def moving(spec):
    """The calls of one generation; the latents of each row move three times as fast as those of the one before."""
    first = spec.call(0, batch=BATCH, steps=4000)
    speed = 0.02 * 3.0 ** torch.arange(BATCH)
    calls = [spec.call(index, batch=BATCH, steps=4000) for index in range(STEPS)]
    for call in calls:
        start = first["hidden_states"]
        change = call["hidden_states"] - start
        call["hidden_states"] = start + speed.view(-1, *[1] * (start.ndim - 1)) * change
    return calls


def only(call, row):
    return tree_map(lambda v: v[row : row + 1] if isinstance(v, torch.Tensor) and v.shape[:1] == (BATCH,) else v, call)


def compile_rows(subject, spec):
    options = {**OPTIONS, "batch_decision": "rows"}
    return torch.compile(subject, backend="dit_cache", dynamic=True, fullgraph=spec.fullgraph, options=options)


def generate(compiled, calls):
    outs = [compiled(**call) for call in calls]
    steps = dit_compile.stats(compiled)[-1].steps
    rows = sorted({step.rows for step in steps})
    return outs, ["".join(step.action[0] for step in steps if step.rows == row) for row in rows]


@torch.no_grad()
@pytest.mark.slow  # tests/backend/test_batch_rows.py has the toys
@pytest.mark.parametrize("name", NAMES)
def test_each_row_as_if_alone(name):
    spec = few_blocks(name)
    subject, calls = spec.build(), moving(spec)
    together, decisions = generate(compile_rows(subject, spec), calls)
    assert len(set(decisions)) > 1, decisions
    by_itself = torch.compile(
        subject, backend="dit_cache", dynamic=False, fullgraph=True, options={**OPTIONS, "batch_decision": "one"}
    )
    for row in (0, BATCH - 1):
        alone, (mine,) = generate(by_itself, [only(call, row) for call in calls])
        assert decisions[row] == mine
        for step in range(STEPS):
            got = tree_map(lambda t, row=row: t[row : row + 1] if isinstance(t, torch.Tensor) else t, together[step])
            assert error(got, alone[step]) < 1e-5


@torch.no_grad()
def test_samples_folded_into_frames_decide_as_one(caplog):
    """Rows of the stream are (sample, frame) and then (sample, patch): no dimension of it is the batch."""
    spec = registered("LatteTransformer3DModel")
    _, decisions = generate(compile_rows(spec.build(), spec), moving(spec))
    assert len(decisions) == 1
    assert any("batch_decision=rows has no effect here" in record.getMessage() for record in caplog.records)
