"""Several layers: which wins, what a preset brings, what may change at run time, and whose option it is."""

import dataclasses
import itertools
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.config import (
    PRESETS,
    SETTINGS,
    STRUCTURE,
    CacheConfig,
    ConfigError,
    env_name,
    environment_layer,
    environment_table,
    parse_layer,
    resolve,
    runtime_layer,
    split_options,
)

ROOT = Path(__file__).parents[2]


def option(**settings: Any) -> dict[str, Any]:
    return parse_layer(settings, where="option")


def session(**settings: Any) -> dict[str, Any]:
    return runtime_layer(settings, where="session argument")


def test_defaults() -> None:
    config = resolve()
    assert config == CacheConfig()
    values = dataclasses.asdict(config)
    assert {name: values[name] for name in PRESETS["balanced"]} == PRESETS["balanced"]
    others = {name: value for name, value in values.items() if name not in PRESETS["balanced"]}
    assert others == {
        "enabled": True,
        "preset": "balanced",
        "policy": "dbcache",
        "warmup_interval": 1,
        "max_cached_steps": -1,
        "hicache_sigma": 0.5,
        "spectrum_degree": 4,
        "spectrum_ridge": 0.1,
        "spectrum_mix": 0.5,
        "meancache_span": 2,
        "dicache_limit": 1.5,
        "cfg": "auto",
        "num_steps": None,
        "scope": "chain",
        "dump": None,
        "pieces": "block",
        "cuda_graphs": "mode",
        "decision": "exact",
        "inner": "inductor",
        "snapshot_dtype": "model",
        "max_bytes": None,
        "strict": False,
        "summary": False,
        "step_mask": None,
        "plan": None,
        "plan_guard": False,
        "interval": 3,
        "probe": "residual",
        "downsample_factor": 1,
        "max_accumulated_diff": -1,
        "cfg_decision": "separate",
        "batch_decision": "one",
        "forecast_streams": "all",
        "teacache_tap": "modulated",
        "teacache_polynomial": (1.0, 0.0),
        "mag_ratios": None,
        "adacache_rates": ((0.03, 6), (0.06, 5), (0.09, 4), (0.12, 3), (0.15, 2), (1.0, 1)),
        "sencache_sensitivities": None,
        "keep_blocks": None,
        "prune_relax": 0.0,
        "prune_relax_limit": -1,
        "delta_boundary": 14,
        "plugins": None,
    }


DESCRIPTIONS = [
    (option(), "F1 B0 W2 C2 t0.12 foca dbcache"),
    (option(preset="quality"), "F1 B0 W2 C1 t0.12 foca dbcache"),
    (option(preset="balanced"), "F1 B0 W2 C2 t0.12 foca dbcache"),
    (option(preset="fast"), "F1 B0 W2 C3 t0.16 foca dbcache"),
    (option(preset="ultra"), "F1 B0 W2 C4 t0.16 foca dbcache"),
    (option(preset="cache-dit"), "F8 B0 W8 C-1 t0.08 reuse dbcache"),
    (option(preset="off"), "off"),
    (option(preset="fast", enabled=False), "off"),
    (option(policy="interval"), "F1 B0 W2 C2 t0.12 foca interval(3)"),
    (option(policy="mask", step_mask=[1, 0]), "F1 B0 W2 C2 t0.12 foca mask(10)"),
    (option(forecast="taylorseer"), "F1 B0 W2 C2 t0.12 taylorseer(1) dbcache"),
    (option(forecast="newton", taylor_order=2), "F1 B0 W2 C2 t0.12 newton(2) dbcache"),
    (option(forecast="hicache", hicache_sigma="0.6"), "F1 B0 W2 C2 t0.12 hicache(1,0.6) dbcache"),
    (option(forecast="spectrum"), "F1 B0 W2 C2 t0.12 spectrum(4,0.1,0.5) dbcache"),
    (option(forecast="adams_bashforth", taylor_order=2), "F1 B0 W2 C2 t0.12 adams_bashforth(2) dbcache"),
    (option(forecast="meancache", meancache_span=3), "F1 B0 W2 C2 t0.12 meancache(3) dbcache"),
    (option(policy="dicache", forecast="dicache"), "F1 B0 W2 C2 t0.12 dicache(1.5) dicache"),
    (option(policy="mask", step_mask="fast", num_steps=9), "F1 B0 W2 C2 t0.12 foca mask(fast)"),
    (option(scope="container", bn=2), "F1 B2 W2 C2 t0.12 foca dbcache per container"),
]


@pytest.mark.parametrize(("layer", "line"), DESCRIPTIONS)
def test_describe(layer: dict[str, Any], line: str) -> None:
    assert resolve(layer).describe() == line


ORDER = [
    # environment, options, configure, session -> threshold, max_continuous_cached_steps
    ({}, {}, {}, {}, (0.12, 2)),
    ({"preset": "fast"}, {}, {}, {}, (0.16, 3)),
    ({"residual_diff_threshold": "0.5"}, {}, {}, {}, (0.5, 2)),
    ({"preset": "fast", "residual_diff_threshold": "0.5"}, {}, {}, {}, (0.5, 3)),
    ({"residual_diff_threshold": "0.5"}, {"max_continuous_cached_steps": 1}, {}, {}, (0.5, 1)),
    ({"residual_diff_threshold": "0.5"}, {"preset": "ultra"}, {}, {}, (0.16, 4)),
    ({"preset": "ultra"}, {"residual_diff_threshold": 0.5}, {}, {}, (0.5, 4)),
    ({"preset": "ultra"}, {"preset": "quality"}, {"max_continuous_cached_steps": 9}, {}, (0.12, 9)),
    ({}, {"residual_diff_threshold": 0.5}, {"residual_diff_threshold": 0.6}, {}, (0.6, 2)),
    ({"residual_diff_threshold": "0.5"}, {"max_continuous_cached_steps": 9}, {}, {"preset": "fast"}, (0.16, 3)),
    ({}, {}, {"preset": "fast"}, {"residual_diff_threshold": 0.7}, (0.7, 3)),
    ({}, {}, {"residual_diff_threshold": 0.7}, {"preset": "ultra", "max_continuous_cached_steps": 9}, (0.16, 9)),
]


@pytest.mark.parametrize(("environment", "options", "configured", "own", "expected"), ORDER)
def test_order(
    environment: dict[str, str],
    options: dict[str, Any],
    configured: dict[str, Any],
    own: dict[str, Any],
    expected: tuple[float, int],
) -> None:
    variables = {env_name(name): value for name, value in environment.items()}
    layers = environment_layer(variables), option(**options), session(**configured), session(**own)
    config = resolve(*layers)
    assert (config.residual_diff_threshold, config.max_continuous_cached_steps) == expected


ENABLED = [
    ([option(enabled=False), option(preset="fast")], False),  # a switch from outside outlives a preset
    ([option(enabled=False), option(enabled=True)], True),
    ([option(enabled=True), option(preset="off")], False),
    ([option(preset="off"), option(preset="fast")], True),
    ([option(preset="off"), option(fn=2), option(preset="fast")], True),
    ([option(preset="off"), option(fn=2)], False),
    ([option(preset="off", enabled=True)], True),
    ([option(preset="off"), option(enabled=True)], True),
    ([option(preset="fast"), session(preset="off")], False),
    ([option(), session(preset="off"), session(preset="fast")], True),
    ([option(), {**session(preset="off"), **session(preset="fast")}], True),
    ([option(), {**session(enabled=True), **session(preset="off")}], False),
]


@pytest.mark.parametrize(("layers", "enabled"), ENABLED)
def test_switching_off_and_on(layers: list[dict[str, Any]], enabled: bool) -> None:
    assert resolve(*layers).enabled is enabled


RAW_LAYERS = st.lists(
    st.fixed_dictionaries(
        {},
        optional={
            "preset": st.sampled_from([preset for preset in PRESETS if preset != "off"]),
            "fn": st.integers(1, 9),
            "residual_diff_threshold": st.floats(0, 1),
            "taylor_order": st.integers(0, 5),
            "interval": st.integers(1, 9),
        },
    ),
    max_size=5,
)


@given(RAW_LAYERS)
def test_last_writer_wins(layers: list[dict[str, Any]]) -> None:
    expected = dataclasses.asdict(CacheConfig())
    for layer in layers:
        expected.update(PRESETS.get(layer.get("preset", ""), {}))
        expected.update(layer)
    assert dataclasses.asdict(resolve(*(option(**layer) for layer in layers))) == expected


@given(RAW_LAYERS)
def test_runtime_layers_keep_the_structure_and_merge(layers: list[dict[str, Any]]) -> None:
    compiled = option(fn=5, bn=3, scope="container")
    changes = [session(**{name: value for name, value in layer.items() if name not in STRUCTURE}) for layer in layers]
    config = resolve(compiled, *changes)
    assert (config.fn, config.bn, config.scope) == (5, 3, "container")
    merged: dict[str, Any] = {}
    for change in changes:
        merged.update(change)
    assert resolve(compiled, merged) == config


def test_structure() -> None:
    named = {"fn", "bn", "scope", "pieces", "cuda_graphs", "inner", "dump", "strict", "probe", "teacache_tap"}
    assert named == STRUCTURE
    for name in STRUCTURE:
        with pytest.raises(ConfigError) as caught:
            session(**{name: 2})
        message = str(caught.value)
        assert message.startswith(f"session argument {name!r} is structure")
        assert f"options={{{name!r}: ...}}" in message and env_name(name) in message


def test_runtime_layer_refuses_like_any_layer() -> None:
    with pytest.raises(ConfigError, match=r"session argument 'warmup' is not a setting .* did you mean 'warmup_steps'"):
        session(warmup=3)
    with pytest.raises(ConfigError, match="session argument 'warmup_steps': got -3, expected an integer >= 0"):
        session(warmup_steps=-3)


def test_mask_policy_needs_a_mask() -> None:
    with pytest.raises(ConfigError, match=r'policy="mask" needs step_mask.*DIT_CACHE_STEP_MASK=1101'):
        resolve(option(policy="mask"))
    with pytest.raises(ConfigError, match="needs step_mask"):
        resolve(option(policy="mask", step_mask="10"), session(step_mask=None))
    assert resolve(option(step_mask="10"), session(policy="mask")).step_mask == "10"


@pytest.mark.parametrize("number", [None, 1, 2, 3, 5, 7])
def test_masks_by_name_need_a_number_of_steps_that_has_one(number: int | None) -> None:
    told = f"num_steps is {number or 'unset'}$"
    with pytest.raises(ConfigError, match=rf"step_mask='slow' .* needs num_steps \(DIT_CACHE_NUM_STEPS\).*{told}"):
        resolve(option(step_mask="slow"), session(num_steps=number))
    assert resolve(option(step_mask="slow"), session(num_steps=8)).step_mask == "slow"


def test_config_is_frozen_and_checks_replacements() -> None:
    config = resolve()
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.fn = 2  # type: ignore[misc]
    with pytest.raises(ConfigError, match="setting 'fn': got 0"):
        dataclasses.replace(config, fn=0)


def test_split_options() -> None:
    options = {"fn": 2, "triton.cudagraphs": True, "preset": "fats", "max-autotune": False, "something_new": 1}
    assert split_options(options) == (
        {"fn": 2, "preset": "fats"},
        {"triton.cudagraphs": True, "max-autotune": False, "something_new": 1},
    )
    assert split_options(None) == split_options({}) == ({}, {})


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("fnn", "fn"),
        ("FN", "fn"),
        ("warmup_step", "warmup_steps"),
        ("max-cached-steps", "max_cached_steps"),
        ("polcy", "policy"),
        ("Fn_compute_blocks", "fn"),
        ("max_warmup_steps", "warmup_steps"),
    ],
)
def test_misspelt_option(name: str, nearest: str) -> None:
    with pytest.raises(ConfigError, match=f"option '{name}' is not a setting of dit_cache; did you mean '{nearest}'"):
        split_options({name: 1})


def test_every_option_of_inductor_passes() -> None:
    from torch._inductor import config

    known = config.get_config_copy()
    assert not known.keys() & SETTINGS.keys()
    assert split_options(known) == ({}, known)


def test_environment_table() -> None:
    rows = environment_table({"DIT_CACHE_PRESET": "fast", "DIT_CACHE_FN": "2", "DIT_CACHE_SUMMARY": "on", "HOME": "/"})
    assert [row[0] for row in rows] == [env_name(field.name) for field in dataclasses.fields(CacheConfig)]
    shown = {variable: (value, source, default) for variable, value, source, default, _ in rows}
    assert shown["DIT_CACHE_PRESET"] == ("fast", "environment", "balanced")
    assert shown["DIT_CACHE_FN"] == ("2", "environment", "1")
    assert shown["DIT_CACHE_BN"] == ("0", "preset", "0")
    assert shown["DIT_CACHE_RESIDUAL_DIFF_THRESHOLD"] == ("0.16", "preset", "0.12")
    assert shown["DIT_CACHE_SUMMARY"] == ("1", "environment", "0")
    assert shown["DIT_CACHE_NUM_STEPS"] == ("unset", "default", "unset")
    assert all(meaning for *_, meaning in rows)
    assert {source for _, _, source, *_ in environment_table({})} == {"default"}
    with pytest.raises(ConfigError, match="did you mean DIT_CACHE_FN"):
        environment_table({"DIT_CACHE_FNN": "1"})


def test_every_setting_is_documented() -> None:
    for first, second in itertools.pairwise(sorted(setting["help"] for setting in SETTINGS.values())):
        assert first and first != second
    assert {setting["kind"] for setting in SETTINGS.values()} == {"structure", "runtime"}


def test_documentation_is_current() -> None:
    page = runpy.run_path(str(Path(__file__).with_name("configuration_page.py")))["page"]()
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == page, "run: python tests/config/configuration_page.py"


def test_reading_settings_does_not_import_torch() -> None:
    program = """if True:
        import sys
        from dit_compile.config import environment_table, split_options
        split_options({"fn": 1, "triton.cudagraphs": True})
        environment_table({"DIT_CACHE_FN": "2"})
        assert "torch" not in sys.modules
    """
    subprocess.run([sys.executable, "-c", program], check=True)
