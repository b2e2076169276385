"""Every setting of the cache: what it means, what it accepts, and which layer of settings wins.

``CacheConfig`` documents each setting once. Its environment variable (``DIT_CACHE_FN``), its key in
``torch.compile(..., options={"fn": 1})``, the table of ``dit-compile env`` and docs/configuration.md all follow from
that one line. Layers, lowest first: defaults, environment, ``options=``, ``configure()``, session.
"""

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from .plans import Plan
from .readers import (
    BYTES,
    FLAG,
    FOLDER,
    INDICES,
    MASK,
    MASK_NAMES,
    MODULES,
    NUMBERS,
    PLAN,
    RATES,
    SENSITIVITIES,
    Accepts,
    Names,
    choice,
    format_bytes,
    number,
    plugin,
)

ENV_PREFIX = "DIT_CACHE_"
ENVIRONMENT = "environment variable"  # the ``where`` of a layer whose names are environment variables


class ConfigError(ValueError):
    """A setting with an unknown name, a value it does not accept, or a value that contradicts another setting."""


def _f1b0(warmup: int, continuous: int, threshold: float, forecast: str = "foca") -> dict[str, Any]:
    """One front block guards. The values of our own presets are chosen by measurement: docs/quality.md."""
    values = {"fn": 1, "bn": 0, "warmup_steps": warmup, "max_continuous_cached_steps": continuous}
    return {**values, "residual_diff_threshold": threshold, "forecast": forecast, "taylor_order": 1}


PRESETS: dict[str, dict[str, Any]] = {
    "quality": _f1b0(2, 1, 0.12),
    "balanced": _f1b0(2, 2, 0.12),
    "fast": _f1b0(2, 3, 0.16),
    "ultra": _f1b0(2, 4, 0.16),
    "cache-dit": {**_f1b0(8, -1, 0.08, "reuse"), "fn": 8},
    "off": {"enabled": False},
}
_DEFAULT = {"preset": "balanced", **PRESETS["balanced"]}


def _knob(default: Any, accepts: Accepts, meaning: str, *, structure: bool = False, peer: str = "") -> Any:
    """A documented field. ``structure``: a change needs a recompile. ``peer``: cache-dit's name for the same thing."""
    metadata = {"accepts": accepts, "help": meaning, "kind": "structure" if structure else "runtime", "peer": peer}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class CacheConfig:
    """The settings in force. ``resolve`` makes one from layers; made directly, ``preset`` is only a label."""

    # fmt: off
    enabled: bool = _knob(True, FLAG,
        "0 switches the cache off: plain Inductor when set before compiling, every step computed when set later")
    preset: str = _knob(_DEFAULT["preset"], choice(*PRESETS), "a tested combination; explicit settings refine it")
    fn: int = _knob(_DEFAULT["fn"], number(1),
        "front blocks that always run; the guard reads their effect", structure=True, peer="Fn_compute_blocks")
    bn: int = _knob(_DEFAULT["bn"], number(0), "back blocks that always run", structure=True, peer="Bn_compute_blocks")
    policy: str = _knob("dbcache", plugin(),
        "when to reuse: dbcache, dbprune, interval, mask, teacache, magcache, easycache, adacache, delta_dit, dicache, "
        "sencache, plan, or your own")
    residual_diff_threshold: float = _knob(_DEFAULT["residual_diff_threshold"], number(0, real=True),
        "reuse when the relative difference is below this; 0: never, from 1 on: always", peer="residual_diff_threshold")
    warmup_steps: int = _knob(_DEFAULT["warmup_steps"], number(0), "initial computed steps", peer="max_warmup_steps")
    warmup_interval: int = _knob(1, number(1),
        "during warm-up only every n-th step must be computed", peer="warmup_interval")
    max_cached_steps: int = _knob(-1, number(-1),
        "reused steps allowed per generation; -1 unlimited, 0 none", peer="max_cached_steps")
    max_continuous_cached_steps: int = _knob(_DEFAULT["max_continuous_cached_steps"], number(-1),
        "reused steps allowed in a row; -1 unlimited, 0 none", peer="max_continuous_cached_steps")
    forecast: str = _knob(_DEFAULT["forecast"], plugin(),
        "how to reuse: reuse, taylorseer, newton, hicache, foca, spectrum, adams_bashforth, meancache, dicache, or "
        "your own")
    taylor_order: int = _knob(_DEFAULT["taylor_order"], number(0, 5),
        "order of taylorseer, newton and hicache, which keep order + 1 snapshots, and of adams_bashforth, which keeps "
        "twice its order, 6 at most",
        peer="taylorseer_order")
    hicache_sigma: float = _knob(0.5, number(0, 1, real=True), "scale of hicache's polynomials; smaller: damped more")
    spectrum_degree: int = _knob(4, number(1, 5), "degree of spectrum's polynomials, fitted to six snapshots")
    spectrum_ridge: float = _knob(0.1, number(1e-6, real=True), "ridge of spectrum's fit; larger: damped more")
    spectrum_mix: float = _knob(0.5, number(0, 1, real=True),
        "share of spectrum's fit in its forecast; the rest is a straight line")
    meancache_span: int = _knob(2, number(1, 6), "steps over which meancache takes the mean; 1: plain reuse")
    dicache_limit: float = _knob(1.5, number(1, real=True),
        "how far dicache prolongs the line through two snapshots: 1: plain reuse, 2: as far again as they are apart")
    cfg: str | int = _knob("auto", number(1, words=("auto", "none")),
        "model calls per step under classifier-free guidance; none: always one", peer="enable_separate_cfg")
    num_steps: int | None = _knob(None, number(1, 100_000),
        "steps per generation, only if the clock should not infer them", peer="num_inference_steps")
    scope: str = _knob("chain", choice("chain", "container", "halves", "block"),
        "one decision for the whole chain, one per container (module list, as in cache-dit 1.0.14), two halves, "
        "or one per block (for policy=dbprune)",
        structure=True)
    snapshot_dtype: str = _knob("model", choice("model", "bfloat16", "float8"),
        "how snapshots are stored where that takes fewer bits than the model's dtype; float8: e4m3 with one scale per "
        "tensor. Probes keep the model's dtype: downsample_factor makes them smaller")
    max_bytes: int | None = _knob(None, BYTES,
        "cap on what snapshots and probes of one module hold over all sessions; what does not fit lowers the order of "
        "the forecast, then steps are computed")
    dump: str | None = _knob(None, FOLDER, "folder that receives the graphs of every pass", structure=True)
    pieces: str = _knob("block", choice("block", "segment"),
        "block: blocks that are alike are compiled once; segment: all skipped blocks are one piece of code, which "
        "takes longer to compile and spares the host, for small models on fast GPUs", structure=True)
    cuda_graphs: str = _knob("mode", choice("mode", "auto", "on", "off"),
        "record front, region and tail as CUDA graphs. mode: where mode or options of torch.compile ask for CUDA "
        "graphs; auto: also where the device waits for the host, as measured in the first steps", structure=True)
    inner: str = _knob("inductor", choice("inductor", "aot_eager", "eager"),
        "what compiles the pieces of the graph", structure=True)
    strict: bool = _knob(False, FLAG,
        "1 raises an unexpected error while compiling, instead of falling back to the plain compiler", structure=True)
    summary: bool = _knob(False, FLAG,
        "1 prints the summary when a generation ends; on a GPU, regions are timed then only")
    step_mask: str | None = _knob(None, MASK,
        "one digit per step, for policy=mask: 1101 computes all but the third; or, with num_steps, a mask by name",
        peer="steps_computation_mask")
    plan: Plan | None = _knob(None, PLAN,  # noqa: RUF009 - as the others
        "a plan that dit_compile.tune has made: its steps are computed, the others are forecast with its weights. A "
        "run that it does not fit goes on with the other settings")
    plan_guard: bool = _knob(False, FLAG,
        "1 measures differences also under a plan, and computes a step whose difference is out of family")
    interval: int = _knob(3, number(1), "every n-th step computes, for policy=interval and delta_dit")
    probe: str = _knob("residual", choice("residual", "hidden"),
        "what dbcache compares: the effect of the front blocks, or the stream behind them", structure=True)
    downsample_factor: int = _knob(1, number(1),
        "the guard looks at every n-th channel only", peer="downsample_factor")
    max_accumulated_diff: float = _knob(-1, number(-1, real=True),
        "sum of differences since the last computed step that dbcache allows; -1 unlimited",
        peer="max_accumulated_residual_diff_threshold")
    decision: str = _knob("exact", choice("exact", "lagged"),
        "exact: a policy that measures waits for the number at every step; lagged: it goes by what the step before has "
        "measured, without waiting, for small models on fast GPUs; what has not arrived by then is computed")
    cfg_decision: str = _knob("separate", choice("separate", "shared"),
        "shared: the first branch of a step decides for all", peer="cfg_diff_compute_separate")
    batch_decision: str = _knob("one", choice("one", "halves", "rows"),
        "who decides in a batch: all rows together, each half (batched guidance), or each row for itself")
    forecast_streams: str = _knob("all", choice("all", "main"),
        "main: the forecaster serves the main stream only, the others reuse their last snapshot",
        peer="enable_encoder_calibrator")
    teacache_tap: str = _knob("modulated", choice("modulated", "time"),
        "what teacache watches: the first block's modulated input, or the time embedding", structure=True)
    teacache_polynomial: tuple[float, ...] = _knob((1.0, 0.0), NUMBERS,
        "coefficients that rescale teacache's differences, highest power first; 1,0 leaves them as they are")
    mag_ratios: tuple[float, ...] | None = _knob(None, NUMBERS, "calibrated ratios of magnitude, for policy=magcache")
    adacache_rates: tuple[tuple[float, int], ...] = _knob(
        ((0.03, 6), (0.06, 5), (0.09, 4), (0.12, 3), (0.15, 2), (1.0, 1)), RATES,
        "pairs bound:steps, for policy=adacache")
    sencache_sensitivities: tuple[tuple[float, float], ...] | None = _knob(None, SENSITIVITIES,
        "calibrated sensitivities to latents and time, a pair per step, for policy=sencache")
    keep_blocks: tuple[int, ...] | None = _knob(None, INDICES,
        "blocks that policy=dbprune always runs, counted along the chain from 0", peer="non_prune_block_ids")
    prune_relax: float = _knob(0.0, number(0, real=True),
        "dbprune raises its threshold to this times the mean difference of all blocks; 0: never",
        peer="dynamic_prune_threshold_relax_ratio")
    prune_relax_limit: float = _knob(-1, number(-1, real=True),
        "up to where prune_relax may raise dbprune's threshold; -1: twice the threshold",
        peer="max_dynamic_prune_threshold")
    delta_boundary: int = _knob(14, number(0), "step from which policy=delta_dit skips the front half, not the rear")
    plugins: tuple[str, ...] | None = _knob(None, MODULES,
        "modules to import first, which register policies and forecasters of your own")
    # fmt: on

    def __post_init__(self) -> None:
        for name in SETTINGS:
            object.__setattr__(self, name, _convert(name, getattr(self, name), f"setting {name!r}"))
        if self.policy == "mask" and self.step_mask is None:
            raise ConfigError(
                'policy="mask" needs step_mask, which names the steps to compute: step_mask="1101" '
                f"({env_name('step_mask')}=1101) computes the first, second and fourth step and reuses for the third"
            )
        if self.step_mask in MASK_NAMES and self.num_steps not in (4, 6) and (self.num_steps or 0) < 8:
            raise ConfigError(
                f"step_mask={self.step_mask!r} is a mask by name and needs num_steps ({env_name('num_steps')}), the "
                f"steps per generation: 4, 6 or at least 8; num_steps is {as_text(self.num_steps)}"
            )
        if self.policy == "magcache" and self.mag_ratios is None:
            raise ConfigError(
                f'policy="magcache" needs mag_ratios ({env_name("mag_ratios")}), the ratios |R_t| / |R_t-1| of '
                "your model's residual norms from step 1 on, as its authors publish them or you have measured them"
            )
        if self.policy == "plan" and self.plan is None:
            raise ConfigError(f'policy="plan" needs plan ({env_name("plan")}), the file that `dit-compile tune` writes')
        if self.policy == "sencache" and self.sencache_sensitivities is None:
            raise ConfigError(
                f'policy="sencache" needs sencache_sensitivities ({env_name("sencache_sensitivities")}), a pair '
                "J_z:J_t for each step: how much the blocks' effect changes with the latents and with time"
            )
        if self.policy == "delta_dit" and self.scope != "halves":
            raise ConfigError(f'policy="delta_dit" needs scope="halves" ({env_name("scope")}=halves): two regions')
        if self.policy == "dbprune" and self.scope != "block":
            raise ConfigError(f'policy="dbprune" needs scope="block" ({env_name("scope")}=block): a region per block')

    @property
    def guard_policy(self) -> str:
        """The policy that decides where no plan does."""
        return "dbcache" if self.policy == "plan" else self.policy

    def describe(self) -> str:
        """One short line for logs and tables, such as ``F1 B0 W2 C2 t0.12 foca dbcache``."""
        if not self.enabled:
            return "off"
        details = {
            "reuse": (),
            "foca": (),
            "dicache": (self.dicache_limit,),
            "meancache": (self.meancache_span,),
            "hicache": (self.taylor_order, self.hicache_sigma),
            "spectrum": (self.spectrum_degree, self.spectrum_ridge, self.spectrum_mix),
        }.get(self.forecast, (self.taylor_order,))
        forecast = self.forecast + f"({','.join(map(str, details))})" * bool(details)
        mask = self.step_mask or ""
        mask = mask if len(mask) <= 64 else f"{mask[:64]}..., {len(mask)} steps"
        detail = {"mask": f"({mask})", "interval": f"({self.interval})"}.get(self.policy, "")
        guard = f"W{self.warmup_steps} C{self.max_continuous_cached_steps} t{self.residual_diff_threshold:g}"
        scope = "" if self.scope == "chain" else f" per {self.scope}"
        stored = "" if self.snapshot_dtype == "model" else f" {self.snapshot_dtype}"
        stored += "" if self.max_bytes is None else f" max {format_bytes(self.max_bytes)}"
        plan = "" if self.plan is None else f", plan {self.plan}"
        return f"F{self.fn} B{self.bn} {guard} {forecast} {self.guard_policy}{detail}{scope}{stored}{plan}"


SETTINGS: dict[str, Mapping[str, Any]] = {f.name: {**f.metadata, "default": f.default} for f in fields(CacheConfig)}
STRUCTURE = frozenset(name for name, setting in SETTINGS.items() if setting["kind"] == "structure")


def env_name(name: str) -> str:
    """The environment variable of a setting."""
    return ENV_PREFIX + name.upper()


def as_text(value: Any) -> str:
    """A stored value as an environment variable would spell it."""
    if isinstance(value, tuple):
        return ",".join(":".join(map(str, item)) if isinstance(item, tuple) else str(item) for item in value)
    return "unset" if value is None else str(int(value)) if isinstance(value, bool) else str(value)


def shortened(value: Any, limit: int = 200) -> str:
    """``repr(value)`` for a message, cut where it is longer than ``limit`` characters."""
    try:
        text = repr(value[: limit + 1] if isinstance(value, (str, bytes, list, tuple)) else value)
    except Exception:  # a huge integer, or an object whose repr fails
        return f"an object of type {type(value).__name__}"
    return text if len(text) <= limit else f"{text[:limit]}... ({type(value).__name__})"


def _nearest(name: str, cutoff: float = 0.0) -> str:
    """The setting whose name is closest to ``name``, if close enough; cache-dit's names lead to ours."""
    peers = {setting["peer"]: ours for ours, setting in SETTINGS.items()}
    name = name.strip("'")
    return peers.get(name) or "".join(difflib.get_close_matches(name.lower(), SETTINGS, 1, cutoff))


def _unknown(place: str, nearest: str) -> ConfigError:
    return ConfigError(f"{place} is not a setting of dit_cache; did you mean {nearest}? `dit-compile env` lists all")


def _convert(name: str, value: Any, place: str, plugins: Names = None) -> Any:
    """The stored value of one setting; ``plugins`` are the names to choose from, if it names a plug-in."""
    accepts: Accepts = SETTINGS[name]["accepts"] if plugins is None else plugin(plugins)
    optional = SETTINGS[name]["default"] is None
    if optional and (value is None or (isinstance(value, str) and value.strip().lower() == "unset")):
        return None
    try:
        return accepts.convert(value)
    except (ValueError, TypeError, KeyError, OverflowError):
        close = difflib.get_close_matches(shortened(value).strip("' ").lower(), accepts.words, 1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        wanted = f"{accepts.text}{', or unset' * optional}{hint}"
        raise ConfigError(f"{place}: got {shortened(value)}, expected {wanted}") from None


def parse_layer(
    raw: Mapping[str, Any], *, where: str, policies: Names = None, forecasters: Names = None
) -> dict[str, Any]:
    """Checks and converts one layer; its preset, if any, is written out under the layer's explicit values.

    ``where`` begins the error messages: "option", "configure() argument". The plug-ins' names come from the caller,
    because they are registered elsewhere.
    """
    plugins = {"policy": policies, "forecast": forecasters}
    layer = {}
    for name, value in raw.items():
        place = f"{where} {env_name(name)}" if where == ENVIRONMENT else f"{where} {shortened(name)}"
        if name not in SETTINGS:
            raise _unknown(place, repr(_nearest(shortened(name))))
        layer[name] = _convert(name, value, place, plugins.get(name))
    return {**PRESETS.get(layer.get("preset", ""), {}), **layer}


def environment_layer(environ: Mapping[str, str] = os.environ, /, **plugins: Names) -> dict[str, Any]:
    """The layer of the ``DIT_CACHE_*`` variables, an empty one being unset; ``plugins`` as for ``parse_layer``."""
    variables = {env_name(name): name for name in SETTINGS}
    ours = {variable: value.strip() for variable, value in environ.items() if variable.startswith(ENV_PREFIX)}
    for variable in sorted(ours.keys() - variables.keys()):
        raise _unknown(f"{ENVIRONMENT} {variable}", env_name(_nearest(variable.removeprefix(ENV_PREFIX))))
    raw = {variables[variable]: value for variable, value in ours.items() if value}
    return parse_layer(raw, where=ENVIRONMENT, **plugins)


def runtime_layer(overrides: Mapping[str, Any], *, where: str, **plugins: Names) -> dict[str, Any]:
    """``parse_layer`` for what may change without a recompile; of a preset, only the runtime settings apply.

    Such layers may be merged with ``dict.update``: a later preset also ends an earlier ``preset="off"``.
    """
    for name in STRUCTURE & overrides.keys():
        raise ConfigError(
            f"{where} {name!r} is structure: it shapes the compiled graph and cannot change at run time. Pass it to "
            f"torch.compile(..., options={{{name!r}: ...}}) or set {env_name(name)} before compiling"
        )
    layer = parse_layer(overrides, where=where, **plugins)
    if layer.get("preset", "off") != "off":
        layer.setdefault("enabled", True)
    return {name: value for name, value in layer.items() if name not in STRUCTURE}


def resolve(*layers: Mapping[str, Any]) -> CacheConfig:
    """The configuration that layers make, lowest first; each as ``parse_layer`` or ``runtime_layer`` has returned it.

    A preset ends a lower ``preset="off"`` but not a lower ``enabled=False``: DIT_CACHE_ENABLED=0 also switches off code
    that asks for a preset.
    """
    values: dict[str, Any] = {}
    for layer in layers:
        if values.get("preset") == "off" and layer.get("preset", "off") != "off":
            values["enabled"] = True
        values |= layer
    return CacheConfig(**values)


def split_options(options: Mapping[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Splits ``torch.compile``'s options into ours (unparsed) and Inductor's; a near miss of ours is an error."""
    ours = {name: value for name, value in (options or {}).items() if name in SETTINGS}
    inductor = {name: value for name, value in (options or {}).items() if name not in SETTINGS}
    suspects = {name: nearest for name in inductor if (nearest := _nearest(str(name), cutoff=0.8))}
    if suspects:
        from .compat import inductor_settings  # only to judge a suspect: this module stays light

        known = inductor_settings()
        for name, nearest in suspects.items():
            if name.replace("-", "_") not in known:
                raise _unknown(f"option {shortened(name)}", repr(nearest))
    return ours, inductor


def environment_table(
    environ: Mapping[str, str] = os.environ, /, **plugins: Names
) -> list[tuple[str, str, str, str, str]]:
    """(variable, value in force, source, default, meaning) of every setting; source: default, preset, environment."""
    layer = environment_layer(environ, **plugins)
    config = resolve(layer)
    rows = []
    for name, setting in SETTINGS.items():
        source = "environment" if environ.get(env_name(name), "").strip() else "preset" if name in layer else "default"
        value, default = as_text(getattr(config, name)), as_text(setting["default"])
        rows.append((env_name(name), value, source, default, setting["help"]))
    return rows
