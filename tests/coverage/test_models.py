"""Every transformer class of diffusers: its blocks are found, cut right and reused right, without code of its own."""

import inspect
import re

import diffusers
import pytest
from diffusers.models import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers_models import LEFT_OUT, MODELS
from examine import ALTERNATING, examine
from model_table import PAGE, line, row
from registry import registered

THROUGH_INDUCTOR = (
    "AuraFlowTransformer2DModel", "FluxTransformer2DModel", "LTXVideoTransformer3DModel", "PixArtTransformer2DModel",
    "SD3Transformer2DModel", "WanTransformer3DModel",
)  # fmt: skip


def right(found):
    assert found.computed_error < 1e-4
    assert found.disabled_error < 1e-4
    assert found.reused_error < 1e-4
    assert found.change > 1e-3, "the oracle cannot tell a reused step from a computed one"
    assert found.actions == ALTERNATING.replace("1", "c").replace("0", "r")
    assert found.bytes_held == found.report.bytes_per_branch or found.report.bytes_per_branch is None


def described():
    """Whether docs/models.md describes this version of diffusers."""
    return diffusers.__version__ in PAGE.read_text()


@pytest.mark.parametrize("spec", [pytest.param(spec, id=spec.name) for spec in MODELS])
def test_model(spec):
    if not spec.exists and not described():
        pytest.skip(f"diffusers {diffusers.__version__} has no {spec.cls}")
    found = examine(spec)
    assert found.graphs == (1 if spec.fullgraph else found.plain_graphs)
    if spec.refused is not None:
        assert re.search(spec.refused, found.report.refusal)
        assert found.computed_error == found.disabled_error == 0
        assert found.actions == ""
        assert any("not cached" in text for text in found.warnings)
    else:
        assert found.report.refusal is None, found.report.refusal
        assert found.report.blocks == found.expected_blocks
        right(found)
    if described():  # another version of diffusers may have another graph
        assert line(row(spec, found)) in PAGE.read_text(), "run: python benchmarks/coverage.py --write-page"


@pytest.mark.parametrize("name", THROUGH_INDUCTOR)
def test_through_inductor(name):
    right(examine(registered(name), inner="inductor"))


def test_the_registry_is_complete():
    """Every model class in diffusers.models.transformers is examined, or named with the reason why not."""
    classes = {
        name
        for module in vars(transformers).values()
        if inspect.ismodule(module)
        for name, cls in vars(module).items()
        if inspect.isclass(cls) and issubclass(cls, ModelMixin) and cls.__module__ == module.__name__
    }
    assert classes, "diffusers keeps its transformers elsewhere now"
    assert not classes - {spec.cls for spec in MODELS} - LEFT_OUT.keys()
