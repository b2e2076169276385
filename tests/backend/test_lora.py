"""LoRA as users handle it: weights set, adapters added, deleted, fused and unloaded on a compiled transformer."""

import os

import pytest
import torch

pytest.importorskip("peft")
pytest.importorskip("diffusers")

import dit_compile
from dit_compile.demo import codec
from dit_compile.demo.pipeline import load_pipeline

STEPS = 6
BLOCKS = [f"transformer_blocks.{i}.attn" for i in range(2)] + [f"single_transformer_blocks.{i}.attn" for i in range(3)]


def pipeline():
    """The bundled model with two of its two-stream and three of its one-stream blocks."""
    pipe = load_pipeline(dtype=torch.float32)
    transformer = pipe.transformer
    transformer.transformer_blocks = transformer.transformer_blocks[:2]
    transformer.single_transformer_blocks = transformer.single_transformer_blocks[:3]
    transformer.register_to_config(num_layers=2, num_single_layers=3)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def adapter(pipe, seed, rank=4):
    """Random LoRA weights for the attention projections."""
    generator = torch.Generator().manual_seed(seed)
    modules, weights = dict(pipe.transformer.named_modules()), {}
    for name in (f"{block}.{projection}" for block in BLOCKS for projection in ("to_q", "to_k", "to_v")):
        linear = modules.get(f"{name}.base_layer") or modules[name]
        weights[f"transformer.{name}.lora_A.weight"] = torch.randn(rank, linear.in_features, generator=generator) * 0.1
        weights[f"transformer.{name}.lora_B.weight"] = torch.randn(linear.out_features, rank, generator=generator) * 0.1
    return weights


def draw(pipe, **arguments):
    prompts, pooled = codec.encode_prompts(["fox"])
    noise = torch.randn(1, codec.EMOJI.image_tokens, codec.IMAGE_CHANNELS, generator=torch.Generator().manual_seed(0))
    size = codec.EMOJI.pipeline_size
    return pipe(
        prompt_embeds=prompts, pooled_prompt_embeds=pooled, height=size, width=size, num_inference_steps=STEPS,
        latents=noise, output_type="latent", **arguments,
    ).images  # fmt: skip


def actions(pipe):
    first = pipe.load_lora_weights
    return [
        ("without", lambda: None),
        ("an adapter", lambda: first(adapter(pipe, 1), adapter_name="a")),
        *[(f"weight {w}", lambda w=w: pipe.set_adapters("a", w)) for w in (0.5, 0.25, 0.8, 0.9, 0.7)],
        ("a second", lambda: (first(adapter(pipe, 2), adapter_name="b"), pipe.set_adapters(["a", "b"], [0.7, 0.3]))),
        ("deleted", lambda: (pipe.delete_adapters("b"), pipe.set_adapters("a", 1.0))),
        ("fused", lambda: pipe.fuse_lora()),
        ("unfused", lambda: pipe.unfuse_lora()),
        ("unloaded", lambda: pipe.unload_lora_weights()),
    ]


def walk(compile_with):
    """Pictures and the number of graphs after every action; ``compile_with`` is a backend's arguments, or None."""
    torch._dynamo.reset()
    dit_compile.reset()
    pipe, graphs = pipeline(), []
    if compile_with is not None:
        count = _Counter(compile_with)
        pipe.transformer.compile(backend=count)
    pictures = {}
    for name, act in actions(pipe):
        act()
        pictures[name] = draw(pipe)
        graphs.append(count.graphs if compile_with is not None else 0)
    return pictures, graphs


class _Counter:
    """Counts the graphs that Dynamo makes for a backend."""

    def __init__(self, options):
        self.options, self.graphs = options, 0

    def __call__(self, gm, example_inputs):
        from dit_compile.backend import dit_cache

        self.graphs += 1
        return gm.forward if self.options == "eager" else dit_cache(gm, example_inputs, options=self.options)


@pytest.mark.slow
@torch.no_grad()
def test_every_generation_is_cached_and_right():
    assert "DIT_CACHE_ENABLED" not in os.environ
    wanted, _ = walk(None)
    _, plain = walk("eager")
    got, ours = walk({"inner": "eager", "residual_diff_threshold": 0, "strict": True})
    for name, picture in wanted.items():
        torch.testing.assert_close(got[name], picture, rtol=1e-4, atol=1e-5, msg=name)
    assert len({tuple(picture.flatten().tolist()) for picture in wanted.values()}) >= 8, "the adapters have no effect"
    assert ours[-1] <= plain[-1] + 1
    assert all(report.refusal is None for report in dit_compile.graphs())
    assert [len(stats.steps) for stats in dit_compile.stats()] == [STEPS] * len(wanted)


@pytest.mark.slow
@torch.no_grad()
def test_scale_in_joint_attention_kwargs():
    """Cached at every value, with the pictures of the plain model; two graphs, and one for the value 1."""
    torch._dynamo.reset()
    dit_compile.reset()
    plain, pipe = pipeline(), pipeline()
    for each in (plain, pipe):
        each.load_lora_weights(adapter(each, 1), adapter_name="a")
    options = {"inner": "eager", "policy": "mask", "step_mask": "110110", "strict": True}
    pipe.transformer.compile(backend="dit_cache", options=options)
    exact = pipeline()
    exact.load_lora_weights(adapter(exact, 1), adapter_name="a")
    exact.transformer.compile(backend="dit_cache", options={**options, "step_mask": "111111"})
    for scale in (0.8, 0.5, 0.8, 1.0, 0.3):
        given = {"joint_attention_kwargs": {"scale": scale}}
        torch.testing.assert_close(draw(exact, **given), draw(plain, **given), rtol=1e-4, atol=1e-5)
        draw(pipe, **given)
        stats = dit_compile.stats(pipe.transformer)[-1]
        assert "".join("10"[step.action == "reuse"] for step in stats.steps) == "110110"
    assert all(report.refusal is None for report in dit_compile.graphs())


@pytest.mark.slow
@torch.no_grad()
def test_a_weight_that_changes_through_inductor():
    """A number of shape () as operand of compiled pieces."""
    plain, pipe = pipeline(), pipeline()
    for each in (plain, pipe):
        each.load_lora_weights(adapter(each, 1), adapter_name="a")
    pipe.transformer.compile(backend="dit_cache", options={"residual_diff_threshold": 0, "strict": True})
    for weight in (1.0, 0.5, 0.25):
        for each in (plain, pipe):
            each.set_adapters("a", weight)
        torch.testing.assert_close(draw(pipe), draw(plain), rtol=1e-3, atol=1e-4)
    assert len(dit_compile.graphs()) == 2
