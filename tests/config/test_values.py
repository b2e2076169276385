"""One layer: names, values, and the message of everything that is refused."""

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dit_compile.config import (
    PRESETS,
    SETTINGS,
    CacheConfig,
    ConfigError,
    as_text,
    env_name,
    environment_layer,
    parse_layer,
    resolve,
    shortened,
)
from dit_compile.policy.mask_presets import mask_digits

POSITIVE = st.integers(1, 10**5)
LIMIT = st.integers(-1, 10**6)
NAME = st.from_regex(r"[a-z_][a-z0-9_]{0,12}", fullmatch=True)
FLOAT = st.floats(allow_nan=False, allow_infinity=False)
SIZE = st.floats(0, allow_nan=False, allow_infinity=False)
NUMBERS = st.lists(FLOAT, min_size=1, max_size=5).map(tuple)
STORED: dict[str, st.SearchStrategy[Any]] = {
    "enabled": st.booleans(),
    "preset": st.sampled_from(list(PRESETS)),
    "fn": POSITIVE,
    "bn": st.integers(0, 10**6),
    "policy": NAME,
    "residual_diff_threshold": st.floats(0, allow_nan=False, allow_infinity=False),
    "warmup_steps": st.integers(0, 10**6),
    "warmup_interval": POSITIVE,
    "max_cached_steps": LIMIT,
    "max_continuous_cached_steps": LIMIT,
    "forecast": NAME,
    "taylor_order": st.integers(0, 5),
    "hicache_sigma": st.floats(0, 1),
    "spectrum_degree": st.integers(1, 5),
    "spectrum_ridge": st.floats(1e-6, allow_infinity=False),
    "spectrum_mix": st.floats(0, 1),
    "meancache_span": st.integers(1, 6),
    "dicache_limit": st.floats(1, allow_nan=False, allow_infinity=False),
    "cfg": st.sampled_from(["auto", "none"]) | POSITIVE,
    "num_steps": st.none() | POSITIVE,
    "scope": st.sampled_from(["chain", "container", "halves", "block"]),
    "snapshot_dtype": st.sampled_from(["model", "bfloat16", "float8"]),
    "max_bytes": st.none() | st.integers(1, 10**20),
    "dump": st.none() | st.from_regex(r"/[a-z0-9/ _.-]{0,20}[a-z]", fullmatch=True),
    "pieces": st.sampled_from(["block", "segment"]),
    "cuda_graphs": st.sampled_from(["mode", "auto", "on", "off"]),
    "inner": st.sampled_from(["inductor", "aot_eager", "eager"]),
    "strict": st.booleans(),
    "summary": st.booleans(),
    "step_mask": st.none() | st.text("01", min_size=1, max_size=60),
    "plan": st.none(),
    "plan_guard": st.booleans(),
    "interval": POSITIVE,
    "probe": st.sampled_from(["residual", "hidden"]),
    "downsample_factor": POSITIVE,
    "max_accumulated_diff": st.floats(-1, allow_nan=False, allow_infinity=False),
    "decision": st.sampled_from(["exact", "lagged"]),
    "cfg_decision": st.sampled_from(["separate", "shared"]),
    "batch_decision": st.sampled_from(["one", "halves", "rows"]),
    "forecast_streams": st.sampled_from(["all", "main"]),
    "teacache_tap": st.sampled_from(["modulated", "time"]),
    "teacache_polynomial": NUMBERS,
    "mag_ratios": st.none() | NUMBERS,
    "adacache_rates": st.lists(st.tuples(FLOAT, POSITIVE), min_size=1, max_size=5).map(tuple),
    "sencache_sensitivities": st.none() | st.lists(st.tuples(SIZE, SIZE), min_size=1, max_size=5).map(tuple),
    "keep_blocks": st.none() | st.lists(st.integers(0, 99), min_size=1, max_size=5).map(tuple),
    "prune_relax": st.floats(0, allow_nan=False, allow_infinity=False),
    "prune_relax_limit": st.floats(-1, allow_nan=False, allow_infinity=False),
    "delta_boundary": st.integers(0, 10**6),
    "plugins": st.none() | st.lists(NAME, min_size=1, max_size=3).map(tuple),
}
LAYERS = st.fixed_dictionaries({}, optional=STORED)


def test_strategies_cover_every_setting() -> None:
    assert list(STORED) == list(SETTINGS)


@given(LAYERS)
def test_round_trip_through_the_environment(layer: dict[str, Any]) -> None:
    environ = {env_name(name): as_text(value) for name, value in layer.items()}
    parsed = environment_layer(environ)
    assert {name: parsed[name] for name in layer} == layer
    assert all(type(parsed[name]) is type(value) for name, value in layer.items())


@given(LAYERS)
def test_parsing_is_idempotent(layer: dict[str, Any]) -> None:
    once = parse_layer(layer, where="option")
    assert parse_layer(once, where="option") == once


@given(LAYERS.filter(lambda layer: layer.get("policy") != "mask"))
def test_every_valid_layer_resolves(layer: dict[str, Any]) -> None:
    parsed = parse_layer(layer, where="option")
    config = resolve(parsed)
    assert {name: getattr(config, name) for name in layer} == layer
    assert dataclasses.asdict(config) == {**dataclasses.asdict(CacheConfig()), **parsed}
    again = resolve(environment_layer({env_name(name): as_text(value) for name, value in parsed.items()}))
    assert (again, hash(again)) == (config, hash(config))


READ = [
    *[("enabled", text, True) for text in ("1", "true", "YES", " on ", True, 1)],
    *[("summary", text, False) for text in ("0", "False", "no", "OFF", False, 0)],
    ("preset", "Fast", "fast"),
    ("preset", " cache-dit ", "cache-dit"),
    ("fn", " 8 ", 8),
    ("bn", 0, 0),
    ("policy", "my_policy", "my_policy"),
    ("residual_diff_threshold", "1e-2", 0.01),
    ("residual_diff_threshold", 0, 0.0),
    ("max_cached_steps", "-1", -1),
    ("taylor_order", "5", 5),
    ("hicache_sigma", "0.6", 0.6),
    ("spectrum_ridge", 1, 1.0),
    ("cfg", "AUTO", "auto"),
    ("cfg", "2", 2),
    ("cfg", 3, 3),
    ("num_steps", "28", 28),
    ("num_steps", None, None),
    ("num_steps", "unset", None),
    ("scope", "container", "container"),
    ("dump", Path("/graphs"), "/graphs"),
    ("dump", None, None),
    ("step_mask", "1101", "1101"),
    ("step_mask", [1, 1, 0, 1], "1101"),
    ("step_mask", (True, False), "10"),
    ("step_mask", " Ultra ", "ultra"),
    ("step_mask", None, None),
    ("plugins", "mine, some.package", ("mine", "some.package")),
    ("snapshot_dtype", "Float8", "float8"),
    ("max_bytes", "1", 1),
    ("max_bytes", 123, 123),
    ("max_bytes", "2GiB", 2 * 1024**3),
    ("max_bytes", " 1.5 mib ", 3 * 512 * 1024),
    ("max_bytes", "2GB", 2 * 10**9),
    ("max_bytes", "3k", 3000),
    ("max_bytes", "7 B", 7),
    ("max_bytes", "unset", None),
]


@pytest.mark.parametrize(("name", "given_value", "stored"), READ)
def test_values_that_are_read(name: str, given_value: object, stored: object) -> None:
    value = parse_layer({name: given_value}, where="option")[name]
    assert value == stored and type(value) is type(stored)


def test_numpy_scalars_are_numbers() -> None:
    numpy = pytest.importorskip("numpy")
    layer = parse_layer({"fn": numpy.int64(2), "residual_diff_threshold": numpy.float32(0.5)}, where="option")
    assert layer == {"fn": 2, "residual_diff_threshold": 0.5}
    assert type(layer["fn"]) is int and type(layer["residual_diff_threshold"]) is float


def test_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert environment_layer({"DIT_CACHE_DUMP": "~/graphs"}) == {"dump": "/home/me/graphs"}


FLAG = "expected 0 or 1 (also false/true, no/yes, off/on)"
MASK = "expected slow, medium, fast, ultra, or a text or list of 0 and 1 such as 1101 (1 computes), or unset"
SENSITIVITIES = "expected pairs of numbers >= 0 such as 0.9:2,0.8:2.5 (one per step), or unset"
RATES = "expected pairs such as 0.1:4,0.3:2,1:1 (below 0.1 every 4th step, ...)"
BYTES = "expected bytes as an integer >= 1, or such as 512MiB, 1.5GiB, 2GB, or unset"
REFUSED = [
    ("enabled", "maybe", FLAG),
    ("enabled", 2, FLAG),
    ("strict", "maybe", FLAG),
    ("summary", None, FLAG),
    ("preset", "fats", "expected quality, balanced, fast, ultra, cache-dit or off; did you mean 'fast'?"),
    ("preset", 1, "expected quality, balanced, fast, ultra, cache-dit or off"),
    ("fn", "abc", "expected an integer >= 1"),
    ("fn", 0, "expected an integer >= 1"),
    ("fn", 1.5, "expected an integer >= 1"),
    ("fn", True, "expected an integer >= 1"),
    ("fn", None, "expected an integer >= 1"),
    ("bn", -1, "expected an integer >= 0"),
    ("policy", "two words", "expected the name of a registered plug-in"),
    ("policy", None, "expected the name of a registered plug-in"),
    ("residual_diff_threshold", -0.1, "expected a finite number >= 0"),
    ("residual_diff_threshold", math.nan, "expected a finite number >= 0"),
    ("residual_diff_threshold", "inf", "expected a finite number >= 0"),
    ("residual_diff_threshold", "0,12", "expected a finite number >= 0"),
    ("residual_diff_threshold", False, "expected a finite number >= 0"),
    ("warmup_steps", -1, "expected an integer >= 0"),
    ("warmup_interval", 0, "expected an integer >= 1"),
    ("max_cached_steps", -2, "expected an integer >= -1"),
    ("max_continuous_cached_steps", "-2", "expected an integer >= -1"),
    ("forecast", "taylor-seer", "expected the name of a registered plug-in"),
    ("taylor_order", 6, "expected an integer from 0 to 5"),
    ("hicache_sigma", 1.5, "expected a finite number from 0 to 1"),
    ("spectrum_degree", 0, "expected an integer from 1 to 5"),
    ("spectrum_ridge", 0, "expected a finite number >= 1e-06"),
    ("spectrum_mix", -0.1, "expected a finite number from 0 to 1"),
    ("meancache_span", 7, "expected an integer from 1 to 6"),
    ("dicache_limit", 0.9, "expected a finite number >= 1"),
    ("cfg", "aut", "expected auto, none or an integer >= 1; did you mean 'auto'?"),
    ("cfg", 0, "expected auto, none or an integer >= 1"),
    ("num_steps", 0, "expected an integer from 1 to 100000, or unset"),
    ("scope", "containers", "expected chain, container, halves or block; did you mean 'container'?"),
    ("dump", 3, "expected the path of a folder, or unset"),
    ("dump", " ", "expected the path of a folder, or unset"),
    ("dump", b"/graphs", "expected the path of a folder, or unset"),
    ("pieces", "blocks", "expected block or segment; did you mean 'block'?"),
    ("decision", "lagging", "expected exact or lagged; did you mean 'lagged'?"),
    ("cuda_graphs", "onn", "expected mode, auto, on or off; did you mean 'on'?"),
    ("inner", "induktor", "expected inductor, aot_eager or eager; did you mean 'inductor'?"),
    ("step_mask", "", MASK),
    ("step_mask", [], MASK),
    ("step_mask", "1121", MASK),
    ("step_mask", [1, 2], MASK),
    ("step_mask", 1101, MASK),
    ("step_mask", "fats", f"{MASK}; did you mean 'fast'?"),
    ("interval", 0, "expected an integer >= 1"),
    (
        "plan",
        "no/such/file.json",
        "expected the path of a plan file that exists (dit-compile tune writes one), or a Plan, or unset",
    ),
    ("plan", 3, "expected the path of a plan file that exists (dit-compile tune writes one), or a Plan, or unset"),
    ("plan_guard", "maybe", FLAG),
    ("plugins", "my module", "expected names of Python modules with commas between them, or unset"),
    ("plugins", ",", "expected names of Python modules with commas between them, or unset"),
    ("probe", "residuals", "expected residual or hidden; did you mean 'residual'?"),
    ("downsample_factor", 0, "expected an integer >= 1"),
    ("max_accumulated_diff", -2, "expected a finite number >= -1"),
    ("cfg_decision", "share", "expected separate or shared; did you mean 'shared'?"),
    ("teacache_tap", "times", "expected modulated or time; did you mean 'time'?"),
    ("teacache_polynomial", "a,b", "expected numbers with commas between them"),
    ("mag_ratios", "1,nan", "expected numbers with commas between them, or unset"),
    ("keep_blocks", "1,-2", "expected indices of blocks with commas between them, or unset"),
    ("keep_blocks", "", "expected indices of blocks with commas between them, or unset"),
    ("adacache_rates", "0.1:0", RATES),
    ("adacache_rates", "0.1", RATES),
    ("sencache_sensitivities", "0.1", SENSITIVITIES),
    ("sencache_sensitivities", "0.1:-1", SENSITIVITIES),
    ("sencache_sensitivities", [(0.1, float("inf"))], SENSITIVITIES),
    ("sencache_sensitivities", "", SENSITIVITIES),
    ("batch_decision", "row", "expected one, halves or rows; did you mean 'rows'?"),
    ("forecast_streams", "some", "expected all or main"),
    ("snapshot_dtype", "float16", "expected model, bfloat16 or float8; did you mean 'bfloat16'?"),
    ("max_bytes", 0, BYTES),
    ("max_bytes", "much", BYTES),
    ("max_bytes", "2 GiBs", BYTES),
    ("max_bytes", "-1MiB", BYTES),
    ("max_bytes", "0.1B", BYTES),
    ("max_bytes", 1.5, BYTES),
    ("max_bytes", True, BYTES),
    ("prune_relax", -1, "expected a finite number >= 0"),
    ("prune_relax_limit", -2, "expected a finite number >= -1"),
    ("delta_boundary", -1, "expected an integer >= 0"),
]


@pytest.mark.parametrize(("name", "value", "ending"), REFUSED)
def test_values_that_are_refused(name: str, value: Any, ending: str) -> None:
    message = f"option {name!r}: got {value!r}, {ending}"
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}$"):
        parse_layer({name: value}, where="option")
    with pytest.raises(ConfigError, match=re.escape(f"setting {name!r}: got {value!r}, {ending}")):
        dataclasses.replace(CacheConfig(), **{name: value})


def test_every_setting_refuses_something() -> None:
    assert {name for name, *_ in REFUSED} == set(SETTINGS)


@given(st.sampled_from(list(SETTINGS)), st.text() | st.integers() | st.floats() | st.none() | st.lists(st.integers()))
def test_any_value_is_read_or_refused(name: str, value: object) -> None:
    try:
        layer = parse_layer({name: value}, where="option")
    except ConfigError as error:
        assert name in str(error) and shortened(value) in str(error)
    else:
        assert name in layer


PLUGINS: dict[str, Any] = {"policies": ["dbcache", "tea-cache"], "forecasters": {"reuse": object}}


def test_registered_names() -> None:
    layer = parse_layer({"policy": "tea-cache", "forecast": "reuse"}, where="option", **PLUGINS)
    assert layer == {"policy": "tea-cache", "forecast": "reuse"}
    with pytest.raises(ConfigError, match=r"expected dbcache, tea-cache; did you mean 'dbcache'\?"):
        parse_layer({"policy": "dbcach"}, where="option", **PLUGINS)
    with pytest.raises(ConfigError, match=r"variable DIT_CACHE_FORECAST: got 'mean', expected reuse$"):
        environment_layer({"DIT_CACHE_FORECAST": "mean"}, **PLUGINS)


UNKNOWN = [
    ("fnn", "fn"),
    ("FN", "fn"),
    ("warmup", "warmup_steps"),
    ("treshold", "residual_diff_threshold"),
    ("Fn_compute_blocks", "fn"),
    ("max_warmup_steps", "warmup_steps"),
    ("num_inference_steps", "num_steps"),
]


@pytest.mark.parametrize(("name", "nearest"), UNKNOWN)
def test_unknown_option(name: str, nearest: str) -> None:
    message = f"option {name!r} is not a setting of dit_cache; did you mean {nearest!r}?"
    with pytest.raises(ConfigError, match=re.escape(message)):
        parse_layer({name: 1}, where="option")


@pytest.mark.parametrize(("name", "nearest"), [pair for pair in UNKNOWN if pair[0] != "FN"])
def test_unknown_variable(name: str, nearest: str) -> None:
    variable = "DIT_CACHE_" + (name if name == "Fn_compute_blocks" else name.upper())
    message = f"environment variable {variable} is not a setting of dit_cache; did you mean DIT_CACHE_{nearest.upper()}"
    with pytest.raises(ConfigError, match=re.escape(message)):
        environment_layer({variable: "1"})


@given(st.text())
def test_any_unknown_variable_names_a_valid_one(suffix: str) -> None:
    if suffix.lower() in SETTINGS:
        return
    with pytest.raises(ConfigError) as caught:
        environment_layer({f"DIT_CACHE_{suffix}": "1"})
    nearest = str(caught.value).rsplit("did you mean ", 1)[1].split("?", 1)[0]
    assert nearest in map(env_name, SETTINGS)


def test_bad_value_in_the_environment_names_the_variable() -> None:
    message = "environment variable DIT_CACHE_TAYLOR_ORDER: got '9', expected an integer from 0 to 5"
    with pytest.raises(ConfigError, match=f"^{message}$"):
        environment_layer({"DIT_CACHE_TAYLOR_ORDER": "9"})


def test_environment_reads_only_ours_and_skips_empty_variables() -> None:
    assert environment_layer({"FN": "2", "DIT_CACHER": "1", "DIT_CACHE_BN": " ", "DIT_CACHE_DUMP": ""}) == {}


def test_environment_is_read_when_called(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIT_CACHE_FN", "2")
    assert environment_layer() == {"fn": 2}


LONG = "x" * 10_000
HUGE = 10**6000


@pytest.mark.parametrize(
    "value", [LONG, [0] * 10_000, HUGE, {"a": LONG}, LONG.encode(), object()], ids=lambda v: type(v).__name__
)
@pytest.mark.parametrize("name", ["fn", "preset", "policy", "step_mask", "num_steps", "max_bytes", "adacache_rates"])
def test_a_message_repeats_no_long_value(name: str, value: object) -> None:
    try:
        parse_layer({name: value}, where="option", policies=["dbcache"])
    except ConfigError as error:
        assert len(str(error)) < 700
    else:
        assert (name, type(value)) in {("step_mask", list), ("max_bytes", int)}


def test_a_long_name_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_layer({LONG: 1}, where="option")
    assert len(str(caught.value)) < 700


def test_a_named_mask_of_absurd_length() -> None:
    """Answers at once: a mask of 100,000 steps is made, a longer one refused."""
    with pytest.raises(ConfigError, match="'num_steps': got 1000000000000, expected an integer from 1 to 100000"):
        parse_layer({"step_mask": "fast", "num_steps": 10**12}, where="option")
    config = CacheConfig(policy="mask", step_mask="fast", num_steps=100_000)
    assert len(mask_digits(config)) == 100_000
    assert len(CacheConfig(policy="mask", step_mask="10" * 10_000).describe()) < 200
