"""Another step cache on the same model is noticed, and nothing is cached twice."""

import pytest
import torch
from tiny_models import TINY

import dit_compile


@torch.no_grad()
@pytest.mark.parametrize(
    "config", ["FirstBlockCacheConfig", pytest.param("PyramidAttentionBroadcastConfig", marks=pytest.mark.slow)]
)
def test_a_cache_of_diffusers_is_refused(config, caplog):
    import diffusers

    tiny = TINY["flux"]
    model, inputs = tiny.build(), tiny.inputs()
    kwargs = (
        {}
        if config == "FirstBlockCacheConfig"
        else {"spatial_attention_block_skip_range": 2, "current_timestep_callback": lambda: 500}
    )
    model.enable_cache(getattr(diffusers, config)(**kwargs))
    compiled = torch.compile(model, backend="dit_cache", options={"inner": "eager"})
    with model.cache_context("cond"):
        compiled(**inputs)
    assert dit_compile.stats(model) == []
    assert "step cache of diffusers is enabled" in caplog.text
    assert "disable_cache()" in caplog.text
