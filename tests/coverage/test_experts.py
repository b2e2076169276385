"""Two experts of one class (Wan 2.2): one high-noise transformer for the first steps, one low-noise for the rest."""

import copy
import gc

import pytest
import torch
from diffusers import UniPCMultistepScheduler, WanPipeline
from registry import registered

import dit_compile
from dit_compile.api import table

pytestmark = pytest.mark.filterwarnings("ignore")
SLOW = pytest.mark.slow
WAN = registered("WanTransformer3DModel", num_layers=3)
TIMES = [999, 967, 930, 880, 817, 735, 625, 470, 245, 90]
HIGH = 4  # steps of the high-noise expert
ALWAYS = {"residual_diff_threshold": 1.0, "warmup_steps": 2, "max_continuous_cached_steps": 2}
PROMPTS = [torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]


def experts():
    return WAN.build(seed=1), WAN.build(seed=2)


def compiled(model, **options):
    return torch.compile(model, backend="dit_cache", options={"inner": "eager", **ALWAYS, **options})


def denoise(high, low, branches=2, seed=0, times=TIMES, switch=HIGH):
    """The loop of WanPipeline; returns each expert's predictions in the order of its calls, and what it was given."""
    x = torch.randn(1, 4, 2, 8, 8, generator=torch.Generator().manual_seed(seed))
    outs, given = ([], []), ([], [])
    for number, time in enumerate(times):
        which = int(number >= switch)
        timestep = torch.tensor(time).expand(1)
        step = [dict(hidden_states=x, timestep=timestep, encoder_hidden_states=p) for p in PROMPTS[:branches]]
        predictions = [(high, low)[which](**call, return_dict=False)[0] for call in step]
        outs[which].extend(predictions)
        given[which].extend(step)
        guided = predictions[0] if branches == 1 else predictions[1] + 3.0 * (predictions[0] - predictions[1])
        x = x - 0.05 * guided
    return outs, given


def alone(model, calls, **options):
    """The same calls to a copy that has Dynamo's cache and the side table for itself."""
    torch._dynamo.reset()
    dit_compile.reset()
    one = compiled(copy.deepcopy(model), **options)
    outs = [one(**call, return_dict=False)[0] for call in calls]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    return outs


def actions(model, branch=0, generation=-1):
    return "".join(s.action[0] for s in dit_compile.stats(model)[generation].steps if s.branch == branch)


def indices(model, branch=0):
    return [step.index for step in dit_compile.stats(model)[-1].steps if step.branch == branch]


def graphs():
    return torch._dynamo.utils.counters["dit_cache"]["graphs"]


def same(got, wanted):
    return len(got) == len(wanted) and all(map(torch.equal, got, wanted))


@torch.no_grad()
@pytest.mark.parametrize("branches", [pytest.param(1, marks=SLOW), 2], ids=["no guidance", "guidance"])
@pytest.mark.parametrize(
    "low_options",
    [pytest.param({}, marks=SLOW), {"warmup_steps": 1, "fn": 2}],
    ids=["equal options", "different options"],
)
def test_each_expert_gives_what_it_gives_alone(branches, low_options):
    models = experts()
    outs, given = denoise(compiled(models[0]), compiled(models[1], **low_options), branches)
    plain = [
        [model(**call, return_dict=False)[0] for call in calls] for model, calls in zip(models, given, strict=True)
    ]
    for model, got, eager in zip(models, outs, plain, strict=True):
        assert [stats.branches for stats in dit_compile.stats(model)] == [list(range(branches))]
        assert not same(got, eager), "nothing was reused"
    for model, calls, got, options in zip(models, given, outs, ({}, low_options), strict=True):
        assert same(got, alone(model, calls, **options))


@torch.no_grad()
@pytest.mark.parametrize("branches", [pytest.param(1, marks=SLOW), 2], ids=["no guidance", "guidance"])
def test_steps_and_warm_up_are_counted_for_each_expert(branches):
    """As in cache-dit: the low-noise expert's first call is its step 0, whatever the step of the loop."""
    high, low = experts()
    denoise(compiled(high), compiled(low), branches)
    for branch in range(branches):
        assert (indices(high, branch), actions(high, branch)) == ([0, 1, 2, 3], "ccrr")
        assert (indices(low, branch), actions(low, branch)) == ([0, 1, 2, 3, 4, 5], "ccrrcr")
    reasons = [step.reason for step in dit_compile.stats(low)[-1].steps[::branches][:2]]
    assert reasons == ["no_snapshot", "warmup"]


@pytest.mark.slow
@torch.no_grad()
def test_equal_options_compile_once_and_different_ones_twice():
    high, low = experts()
    denoise(compiled(high), compiled(low))
    assert graphs() == torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    assert len(dit_compile.graphs()) == 1
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    denoise(compiled(high), compiled(low, warmup_steps=1))
    assert graphs() == torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2


@torch.no_grad()
@pytest.mark.parametrize(
    "options, wanted",
    [
        pytest.param([{"residual_diff_threshold": 0.0}, {}], ["cccc", "ccrrcr"], marks=SLOW),
        pytest.param([{"warmup_steps": 1}, {"warmup_steps": 4}], ["crrc", "ccccrr"], marks=SLOW),
        pytest.param(
            [{"max_continuous_cached_steps": 1}, {"max_continuous_cached_steps": -1}], ["ccrc", "ccrrrr"], marks=SLOW
        ),
        pytest.param([{"fn": 2}, {"fn": 1, "bn": 1}], ["ccrr", "ccrrcr"], marks=SLOW),
        ([{"policy": "mask", "step_mask": "1010"}, {"policy": "interval", "interval": 3}], ["crcr", "cccrrc"]),
    ],
    ids=lambda value: str(value) if isinstance(value[0], dict) else "",
)
def test_each_expert_obeys_the_options_of_its_own_compile_call(options, wanted):
    """What cache-dit's ParamsModifier is for."""
    models = experts()
    denoise(*(compiled(model, **mine) for model, mine in zip(models, options, strict=True)))
    assert [actions(model, branch) for branch in (0, 1) for model in models] == wanted * 2
    for model, mine in zip(models, options, strict=True):
        config = dit_compile.stats(model)[-1].config
        assert {name: getattr(config, name) for name in mine} == mine


@pytest.mark.slow
@torch.no_grad()
def test_a_second_generation_starts_both_afresh():
    models = experts()
    fast = [compiled(model) for model in models]
    denoise(*fast)
    outs, given = denoise(*fast, seed=5)
    for model, length in zip(models, (HIGH, len(TIMES) - HIGH), strict=True):
        assert [stats.ended for stats in dit_compile.stats(model)] == [True, False]
        assert indices(model) == list(range(length))
        assert actions(model) == actions(model, generation=0)
    for model, calls, got in zip(models, given, outs, strict=True):
        assert same(got, alone(model, calls))


@torch.no_grad()
@pytest.mark.parametrize(
    "times, switch",
    [
        pytest.param([999, 800], 1, marks=SLOW),
        pytest.param([999, 980, 700], 2, marks=SLOW),
        ([999, 900, 600, 300], 0),
    ],
    ids=str,
)
def test_experts_that_have_few_steps_or_none(times, switch):
    """Distilled models take two to four steps; image to image may begin in the low-noise expert."""
    models = experts()
    fast = [compiled(model, warmup_steps=0, max_continuous_cached_steps=-1) for model in models]
    for seed in range(3):
        denoise(*fast, seed=seed, times=times, switch=switch)
    for model, count in zip(models, (switch, len(times) - switch), strict=True):
        wanted = ["c" + "r" * (count - 1)] * 3 if count else []
        assert [actions(model, generation=i) for i in range(len(dit_compile.stats(model)))] == wanted


@torch.no_grad()
def test_memory_of_both_experts_is_accounted_and_reset_frees_that_of_one():
    """As with cache-dit the high-noise expert keeps its snapshots while the low-noise one works, but it can let go."""
    high, low = experts()
    fast = tuple(compiled(model, forecast="taylorseer", taylor_order=1) for model in (high, low))
    _, given = denoise(*fast)
    [report] = dit_compile.graphs()
    held = {id(model): dit_compile.stats(model)[-1].bytes_held for model in (high, low)}
    assert held[id(high)] == held[id(low)] == 2 * report.bytes_per_branch == 2 * snapshot_bytes(given, 3)
    assert sum(state.bytes_held() for state in table._states.values()) == sum(held.values())

    dit_compile.reset(high)
    [left] = table._states.values()
    assert left.generation is dit_compile.stats(low)[-1]
    assert [stats.ended for model in (high, low) for stats in dit_compile.stats(model)] == [True, False]
    call = {**given[1][-2], "timestep": torch.tensor([40]), "hidden_states": given[1][-2]["hidden_states"] + 0.01}
    fast[1](**call, return_dict=False)
    assert indices(low)[-1] == len(TIMES) - HIGH, "the low-noise expert goes on where it was"
    fast[0](**given[0][-1], return_dict=False)
    assert indices(high) == [0], "the high-noise expert begins anew"


def snapshot_bytes(given, tensors):
    """Two snapshots for order 1 and a probe: 2 x 4 x 4 tokens of width 24, in fp32."""
    frames, height, width = given[0][0]["hidden_states"].shape[2:]
    tokens = frames * (height // 2) * (width // 2)
    return tensors * tokens * WAN.config["num_attention_heads"] * WAN.config["attention_head_dim"] * 4


@torch.no_grad()
def test_an_expert_that_is_deleted_takes_its_memory_with_it():
    high, low = experts()
    fast = [compiled(high), compiled(low)]
    denoise(*fast)
    assert len(table._states) == 2
    fast[0] = high = None
    gc.collect()
    assert [state.generation for state in table._states.values()] == [dit_compile.stats(low)[-1]]


@pytest.mark.slow
@torch.no_grad()
def test_experts_that_share_all_weights_but_one_share_no_state():
    """A low-noise expert may be a light fine-tune that was loaded over the tensors of the other."""
    high, own = WAN.build(seed=1), "proj_out.weight"
    tensors = {**dict(high.named_parameters()), **dict(high.named_buffers())}
    low = copy.deepcopy(high, {id(tensor): tensor for name, tensor in tensors.items() if name != own})
    low.get_parameter(own).mul_(1.5)
    assert [name for name, weight in low.named_parameters() if weight is not high.get_parameter(name)] == [own]
    outs, given = denoise(compiled(high), compiled(low))
    for model, calls, got in zip((high, low), given, outs, strict=True):
        assert same(got, alone(model, calls))


def pipeline(high, low):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    parts = dict(tokenizer=None, text_encoder=None, vae=None, transformer=high, transformer_2=low)
    pipe = WanPipeline(**parts, scheduler=scheduler, boundary_ratio=0.9)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, guidance, seed=0):
    embeds = dict(prompt_embeds=PROMPTS[0], negative_prompt_embeds=PROMPTS[1])
    size = dict(height=64, width=64, num_frames=5, num_inference_steps=12, output_type="latent")
    return pipe(**embeds, **size, guidance_scale=guidance, generator=torch.Generator().manual_seed(seed)).frames


def wan_pipeline(models, **options):
    pipe = pipeline(*models)
    pipe.transformer, pipe.transformer_2 = (compiled(model, **options) for model in models)
    return pipe


@pytest.mark.parametrize("guidance", [pytest.param(1.0, marks=SLOW), 3.0])
def test_the_real_pipeline(guidance):
    models = experts()
    exact = wan_pipeline(models, residual_diff_threshold=0.0)
    wanted = draw(pipeline(*models), guidance)
    torch.testing.assert_close(draw(exact, guidance), wanted)
    pipe = wan_pipeline(models)
    first, second = draw(pipe, guidance), draw(pipe, guidance)
    assert torch.equal(first, second)
    assert (first - wanted).abs().max() > 0.01
    branches = [0, 1] if guidance > 1 else [0]
    for model in models:
        assert [stats.branches for stats in dit_compile.stats(model)[-2:]] == [branches] * 2
        assert [actions(model, branch, i) for branch in branches for i in (-2, -1)] == [
            ("ccrrcrrcrrcr")[: len(indices(model))]
        ] * 2 * len(branches)
    assert len(indices(models[0])) + len(indices(models[1])) == 12


@pytest.mark.slow
def test_cache_dit_draws_the_same_with_a_params_modifier_for_each_expert():
    cache_dit = pytest.importorskip("cache_dit")
    knobs = [
        {"max_warmup_steps": 2, "residual_diff_threshold": 0.055},
        {"max_warmup_steps": 3, "residual_diff_threshold": 0.12},
    ]
    peers, models = experts(), experts()
    peer, pipe = pipeline(*peers), pipeline(*models)
    base = cache_dit.DBCacheConfig(
        Fn_compute_blocks=1, Bn_compute_blocks=0, max_continuous_cached_steps=-1, enable_separate_cfg=True
    )
    each = [cache_dit.ParamsModifier(cache_config=cache_dit.DBCacheConfig().reset(**mine)) for mine in knobs]
    cache_dit.enable_cache(peer, cache_config=base, params_modifiers=each)
    try:
        wanted = draw(peer, 3.0)
    finally:
        cache_dit.disable_cache(peer)
    shared = {"forecast": "reuse", "max_continuous_cached_steps": -1}
    high, low = ({"warmup_steps": mine.pop("max_warmup_steps"), **mine, **shared} for mine in knobs)
    pipe.transformer, pipe.transformer_2 = compiled(models[0], **high), compiled(models[1], **low)
    torch.testing.assert_close(draw(pipe, 3.0), wanted)
    for model, twin in zip(models, peers, strict=True):
        for branch, cached in enumerate([twin.blocks._cached_steps, twin.blocks._cfg_cached_steps]):
            assert [i for i, action in enumerate(actions(model, branch)) if action == "r"] == cached
            assert cached
    assert peers[0].blocks._cached_steps != peers[1].blocks._cached_steps
