"""What benchmarks/quality.py runs, as data: scenes to draw and ways to draw them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from quality_sums import on_front

PROMPTS = {
    "choosing": (
        "cat", "panda on pink", "earth on black", "sunflower on blue", "pizza", "key on purple", "red car on gray",
        "owl on green", "snowman on blue", "avocado", "crown on red", "palm tree on yellow",
    ),
    "held out": (
        "fox", "alarm clock on green", "hamburger", "penguin on orange", "house on yellow", "frog",
        "green apple on red", "ghost on purple", "donut on blue", "tree on gray", "soccer ball", "red heart on black",
    ),
}  # fmt: skip
SCREENED = 4  # of the choosing prompts draw the first round


@dataclass(frozen=True)
class Scene:
    """Pictures that every way draws: prompts with seeds 0, 1, 2, ..., in ``steps`` steps at ``guidance``."""

    part: str  # "screen", "choosing" or "held out"
    steps: int
    guidance: float

    @property
    def name(self) -> str:
        return f"{self.part}, {self.steps} steps, guidance {self.guidance:g}"

    def of(self, prompts: Mapping[str, Sequence[str]]) -> Sequence[str]:
        """Those of a model's prompts that are drawn."""
        return prompts["choosing"][:SCREENED] if self.part == "screen" else prompts[self.part]

    @property
    def branches(self) -> int:
        return 1 if self.guidance == 1 else 2


SCREEN = Scene("screen", 28, 2.0)
HELD_OUT = tuple(Scene("held out", steps, guidance) for steps in (28, 50) for guidance in (1.0, 2.0))
# 50 steps at guidance 2 are most of the work, so they are only reported
CHOOSING = (Scene("choosing", 28, 1.0), Scene("choosing", 28, 2.0), Scene("choosing", 50, 1.0))


@dataclass(frozen=True)
class Way:
    """One way to draw. ``settings`` are those of the cache (``DIT_CACHE_*`` in lower case), of cache-dit, or ``steps``
    (run that many), or ``every`` (run every n-th step and repeat the output)."""

    family: str
    name: str
    settings: Mapping[str, Any] = field(hash=False)
    of_steps: int | None = None  # only for scenes of so many steps

    def draws(self, scene: Scene) -> bool:
        return self.of_steps in (None, scene.steps)


FEWER, WHOLE, PEER, OURS = "fewer steps", "whole output", "cache-dit", "dit_cache"

COUNTS = {28: (6, 8, 10, 12, 14, 17, 20), 50: (12, 16, 20, 26, 32)}
FEWER_STEPS = [Way(FEWER, f"{n} of {of} steps", {"steps": n}, of) for of, counts in COUNTS.items() for n in counts]
WHOLE_OUTPUT = [Way(WHOLE, f"output of every {n}. step", {"every": n}) for n in (2, 3, 4)]

FORECASTS: dict[str, dict[str, Any]] = {
    "reuse": {"forecast": "reuse"},
    "taylorseer(1)": {"forecast": "taylorseer", "taylor_order": 1},
    "taylorseer(2)": {"forecast": "taylorseer", "taylor_order": 2},
    "newton(2)": {"forecast": "newton", "taylor_order": 2},
    "hicache(2)": {"forecast": "hicache", "taylor_order": 2},
    "foca": {"forecast": "foca"},
    "spectrum": {"forecast": "spectrum"},
    "adams_bashforth(2)": {"forecast": "adams_bashforth", "taylor_order": 2},
    "meancache(2)": {"forecast": "meancache", "meancache_span": 2},
    "dicache": {"forecast": "dicache"},
    "dicache(2)": {"forecast": "dicache", "dicache_limit": 2},
}


def _dbcache(warmup: int, continuous: int, threshold: float) -> dict[str, Any]:
    return {
        "warmup_steps": warmup,
        "max_continuous_cached_steps": continuous,
        "residual_diff_threshold": threshold,
    }


POLICIES: dict[str, dict[str, dict[str, Any]]] = {
    # Two operating points each, about half and a third of the blocks where the method goes that far. Four steps of
    # warm-up, because TaylorSeer takes no difference before; three where nothing but the count decides, for then the
    # last of 28 steps, which changes most, is among the computed ones.
    "dbcache": {"C1 t0.24": _dbcache(4, 1, 0.24), "C3 t0.3": _dbcache(4, 3, 0.3)},
    "dbprune": {
        "C1 t0.1": {**_dbcache(4, 1, 0.1), "scope": "block"},
        "C3 t0.2": {**_dbcache(4, 3, 0.2), "scope": "block"},
    },
    "interval": {f"n{n}": {"interval": n, "warmup_steps": 3} for n in (2, 4)},
    "mask": {name: {"step_mask": name, **_dbcache(0, -1, 1)} for name in ("medium", "ultra")},
    "teacache": {f"t{t}": _dbcache(4, 3, t) for t in (0.15, 0.4)},
    "magcache": {f"t{t}": _dbcache(4, 3, t) for t in (0.03, 0.12)},
    "easycache": {f"t{t}": _dbcache(4, 3, t) for t in (0.15, 0.4)},
    "adacache": {
        "slow": {**_dbcache(4, -1, 1), "adacache_rates": "0.04:3,0.12:2,1:1"},
        "fast": {**_dbcache(4, -1, 1), "adacache_rates": "0.06:5,0.12:4,0.3:3,1:2"},
    },
    "delta_dit": {f"n{n}": {"interval": n, **_dbcache(3, -1, 1), "scope": "halves"} for n in (2, 4)},
    "dicache": {f"t{t}": _dbcache(4, 3, t) for t in (0.1, 0.2)},
    "sencache": {f"t{t}": _dbcache(4, 3, t) for t in (0.3, 0.5)},
}


def pairs() -> Iterator[Way]:
    """Every policy with every forecaster, at each of the policy's operating points."""
    for policy, points in POLICIES.items():
        for forecast, how in FORECASTS.items():
            for point, settings in points.items():
                yield Way(OURS, f"{policy} {point} {forecast}", {"policy": policy, **settings, **how})


REFINED = {  # forecaster and warm-up: (limit of reuse in a row, threshold)
    ("foca", 2): (
        (1, 0.12), (1, 0.24), (2, 0.08), (2, 0.12), (2, 0.24), (3, 0.1), (3, 0.12), (3, 0.16), (3, 0.3), (4, 0.12),
        (4, 0.16), (4, 0.3), (6, 0.12), (6, 0.2),
    ),
    ("foca", 3): ((2, 0.12), (3, 0.16)),
    ("taylorseer(1)", 2): ((3, 0.16), (4, 0.16), (4, 0.3)),
    ("taylorseer(2)", 2): ((2, 0.12), (3, 0.16), (4, 0.3)),
    ("foca", 4): ((1, 0.24), (2, 0.12), (3, 0.16)),
    ("taylorseer(1)", 4): ((1, 0.24), (2, 0.12), (3, 0.16), (4, 0.16)),
    ("newton(2)", 3): ((1, 0.24), (2, 0.12), (3, 0.16), (4, 0.16)),
}  # fmt: skip


def refinements() -> Iterator[Way]:
    """DBCache more finely, with the forecasters that reach furthest: what presets are chosen from."""
    for (forecast, warmup), points in REFINED.items():
        for continuous, threshold in points:
            settings = {"policy": "dbcache", **_dbcache(warmup, continuous, threshold), **FORECASTS[forecast]}
            yield Way(OURS, f"dbcache W{warmup} C{continuous} t{threshold:g} {forecast}", settings)


def _peer(name: str, fn: int, warmup: int, continuous: int, threshold: float, **rest: Any) -> Way:
    settings = {
        "Fn_compute_blocks": fn,
        "Bn_compute_blocks": 0,
        "max_warmup_steps": warmup,
        "max_continuous_cached_steps": continuous,
        "residual_diff_threshold": threshold,
        **rest,
    }
    limit = "" if continuous < 0 else f" C{continuous}"
    return Way(PEER, f"F{fn} B{settings['Bn_compute_blocks']} W{warmup}{limit} t{threshold:g} {name}", settings)


PEERS = [
    _peer("reuse", 8, 8, -1, 0.08),  # its defaults
    _peer("taylorseer(1)", 8, 8, -1, 0.08, taylorseer=1),
    _peer("reuse", 1, 4, 2, 0.12),
    *(
        _peer(f"taylorseer({order})", 1, warmup, continuous, threshold, taylorseer=order)
        for order, warmup, continuous, threshold in (
            (1, 4, 1, 0.24), (1, 4, 2, 0.12), (2, 4, 2, 0.12), (1, 4, 2, 0.24), (1, 4, 3, 0.24), (1, 3, 3, 0.24),
            (1, 3, 4, 0.3), (1, 2, 4, 0.3), (2, 4, 1, 0.12), (2, 2, 2, 0.12),
            (1, 2, 3, 0.16), (2, 2, 3, 0.16),
        )
    ),
    _peer("foca", 1, 4, 2, 0.24, foca=True),
    _peer("foca", 1, 3, 4, 0.3, foca=True),
    _peer("taylorseer(1)", 2, 4, 2, 0.24, taylorseer=1, Bn_compute_blocks=2),
]  # fmt: skip

LIMITS = {"quality": 0.6, "balanced": 0.48, "fast": 0.4, "ultra": 0.36}
"""Share of the blocks that each preset may run, on average over the scenes."""


def first_round() -> list[Way]:
    """What four prompts draw in 28 steps at guidance 2."""
    return [*(way for way in FEWER_STEPS if way.of_steps == SCREEN.steps), *WHOLE_OUTPUT, *refinements(), *pairs()]


Rounds = Iterator[tuple[Way, Scene]]
First = Mapping[str, Mapping[str, Any]]


def _drawn(first: First, ways: Iterable[Way]) -> dict[str, tuple[float, float]]:
    figures = {way.name: first[way.name]["figures"][SCREEN.name] for way in ways}
    return {name: (one["cost"], one["psnr"]) for name, one in figures.items()}


def _ours() -> list[Way]:
    return [*refinements(), *pairs()]


def second_round(first: First) -> Rounds:
    """The DBCache settings on the front of the first round draw the choosing prompts."""
    guarded = {way.name: way for way in _ours() if way.settings["policy"] == "dbcache"}
    for name in on_front(_drawn(first, guarded.values())):
        yield from ((guarded[name], scene) for scene in CHOOSING)


def third_round(first: First, presets: Iterable[str]) -> Rounds:
    """The prompts held out are drawn by the presets and the rivals: every count of steps, repeated outputs, cache-dit's
    defaults and the front of its settings."""
    names = {*presets, PEERS[0].name, *on_front(_drawn(first, PEERS))}
    going = [*FEWER_STEPS, *WHOLE_OUTPUT, *(way for way in [*_ours(), *PEERS] if way.name in names)]
    yield from ((way, scene) for way in going for scene in HELD_OUT)
