"""Every transformer class of diffusers: its blocks are found, cut right and reused right, without code of its own."""

import inspect
import re

import diffusers
import pytest
from diffusers.models import transformers
from diffusers.models.modeling_utils import ModelMixin
from diffusers_models import LEFT_OUT, MODELS
from examine import ALTERNATING, examine, examine_entry
from model_table import PAGE, line, row
from registry import registered
from specs import Model
from tiers import slow_unless

# One of each kind: see test_the_fast_tier_has_every_trait. All others are slow.
FAST = (
    "AnyFlowFARTransformer3DModel", "AuraFlowTransformer2DModel", "BriaFibo2Transformer2DModel",
    "ConsisIDTransformer3DModel", "Cosmos3OmniTransformer", "Flux3Transformer2DModel", "FluxTransformer2DModel",
    "HunyuanDiT2DModel",  # long skips
    "HunyuanImageTransformer2DModel (second text encoder)", "HunyuanVideoFramepackTransformer3DModel",
    "LatteTransformer3DModel", "MotifVideoTransformer3DModel (decoder layers)",
    "NucleusMoEImageTransformer2DModel (experts)", "QwenImageTransformer2DModel", "SD3Transformer2DModel",
    "WanTransformer3DModel",
)  # fmt: skip
FAST_ENTRY = ("FluxTransformer2DModel", "LatteTransformer3DModel")
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


@pytest.mark.parametrize("spec", slow_unless(lambda spec: spec.name in FAST, MODELS, lambda spec: spec.name))
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


@pytest.mark.parametrize("spec", slow_unless(lambda spec: spec.name in FAST_ENTRY, MODELS, lambda spec: spec.name))
def test_through_the_other_entry(spec):
    """``dit_compile.compile``: the same blocks and results, and no setting of Dynamo is the user's business."""
    if not spec.exists and not described():
        pytest.skip(f"diffusers {diffusers.__version__} has no {spec.cls}")
    found = examine_entry(spec)
    cached = [report for report in found.reports if report.refusal is None]
    assert found.computed_error < 1e-4
    if spec.refused is None:
        assert cached and cached[-1].blocks == found.expected_blocks
        if found.reports == cached:  # a model that Dynamo breaks keeps its guards: its parts do not know the structure
            assert cached[-1].guards[1] < cached[-1].guards[0]
        assert found.reused_error < 1e-4
        assert found.actions == ALTERNATING.replace("1", "c").replace("0", "r")


@pytest.mark.slow
@pytest.mark.parametrize("name", THROUGH_INDUCTOR)
def test_through_inductor(name):
    right(examine(registered(name), inner="inductor"))


def traits(spec: Model, cells: list[str]) -> set[str]:
    """What the passes tell apart, from a model's entry in the registry and from its row of docs/models.md."""
    _, blocks, _, streams, glue, hoisted, graphs, verdict, _ = cells
    return {
        verdict,
        f"{len(blocks.split(' + '))} lists of blocks",
        f"streams: {streams}",
        "glue" if glue not in "-0" else "no glue",
        "hoisted" if hoisted not in "-0" else "nothing hoisted",
        "one graph" if graphs == "1" else "graph breaks",
        *(f"exit: {re.sub('[a-z_]+', 'x', text or 'none')}" for text in spec.exits),
        *(["lists that alternate"] if any("|" in name for name in spec.chain) else []),
        *(["settings of Dynamo"] if spec.dynamo else []),
    }


def test_the_fast_tier_has_every_trait():
    rows = [[cell.strip() for cell in text.strip("| \n").split(" | ")] for text in PAGE.read_text().splitlines()]
    by_name = {cells[0]: [*cells, ""][:9] for cells in rows}
    found = {spec.name: traits(spec, by_name[spec.name]) for spec in MODELS}
    assert FAST and found.keys() >= set(FAST)
    missing = set().union(*found.values()) - set().union(*(found[name] for name in FAST))
    assert not missing, {trait: [name for name in found if trait in found[name]] for trait in missing}


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
