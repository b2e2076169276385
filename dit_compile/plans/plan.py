"""A plan as data, and the file that holds it.

The file is JSON. Its ``digest`` is the SHA-256 of everything else in it, so that a file that was edited or damaged is
not used. Numbers are written with all their digits: a plan that was read is the one that was written.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from .update_rule import Term, UpdateRule

FORMAT = 1
MOST_SNAPSHOTS = 6
MOST_STEPS = 100_000

StreamWeights = tuple[float, ...]  # one for each source, oldest first
RegionWeights = tuple[StreamWeights, ...]  # one for each stream that leaves the region


class PlanError(ValueError):
    """A plan that cannot be used: the file is not a plan, was changed, or contradicts itself."""


class Cut(NamedTuple):
    """Where the graph is cut: ``front`` and ``back`` blocks always run, ``scope`` says which regions there are."""

    front: int
    back: int
    scope: str


class Forecast(NamedTuple):
    """How one step is forecast: from the snapshots of the steps ``sources``, oldest first, with ``weights[branch]
    [region][stream][source]``."""

    sources: tuple[int, ...]
    weights: tuple[tuple[RegionWeights, ...], ...]


@dataclass(frozen=True)
class Conditions:
    """What a run must have in common with the calibration runs.

    ``structure`` and ``weights`` are digests of the operators of the graph, and of the weights with their dtypes,
    adapters and quantisation. ``shapes`` are those of the latents without the batch, ``dtype`` theirs. ``times`` are
    the diffusion times as the model gets them (None: the graph has no time input), ``branches`` the calls of each step.
    ``numbers`` are Python numbers, ``scalars`` small tensors among the inputs (guidance), at the first step.
    ``rules`` are the solver's updates at the first steps (None: could not be read), ``batch_branches`` counts the
    branches that one batch holds.
    """

    structure: str
    weights: str
    dtype: str
    torch: str
    shapes: tuple[tuple[int, ...], ...]
    times: tuple[float | None, ...]
    branches: tuple[int, ...]
    numbers: tuple[float, ...] = ()
    scalars: tuple[float, ...] = ()
    rules: tuple[UpdateRule | None, ...] = ()
    batch_branches: int = 1

    @property
    def steps(self) -> int:
        return len(self.times)


@dataclass(frozen=True)
class Part:
    """The plan of one module. ``forecasts`` has every step that is not computed; ``corrections`` has computed steps,
    which are the last of their own sources.

    ``differences`` are the largest differences that calibration runs have measured at each forecast step, which the
    setting ``plan_guard`` compares with. ``skipped`` is the number of blocks that each region skips, of ``blocks``.
    """

    model: str
    cut: Cut
    conditions: Conditions
    forecasts: Mapping[int, Forecast]
    corrections: Mapping[int, Forecast] = field(default_factory=dict)
    differences: Mapping[int, float] = field(default_factory=dict)
    skipped: tuple[int, ...] = ()
    blocks: int = 1

    @property
    def computed(self) -> tuple[int, ...]:
        return tuple(step for step in range(self.conditions.steps) if step not in self.forecasts)

    @property
    def snapshots(self) -> int:
        """How many snapshots a run keeps."""
        both = (*self.forecasts.values(), *self.corrections.values())
        return max((len(forecast.sources) for forecast in both), default=1)

    @property
    def cost(self) -> float:
        """Blocks executed, in full steps."""
        return self.conditions.steps - len(self.forecasts) * sum(self.skipped) / self.blocks


@dataclass(frozen=True, eq=False)
class Plan:
    """What ``dit_compile.tune`` makes: a ``Part`` for each module that was tuned.

    ``request`` is what was asked for, ``figures`` what was measured on prompts that had no part in the fit, ``made``
    when and with which versions. ``source`` is the file that it was read from, ``problem`` why that cannot be used
    (then there are no parts).
    """

    parts: tuple[Part, ...]
    request: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""
    problem: str | None = None

    def __str__(self) -> str:
        return self.source or f"<plan {self.digest()[:12]}>"

    __repr__ = __str__

    @property
    def cost(self) -> float:
        """Blocks executed, in full steps of all modules."""
        return sum(part.cost for part in self.parts)

    @property
    def steps(self) -> int:
        return sum(part.conditions.steps for part in self.parts)

    def digest(self) -> str:
        """The SHA-256 of what the plan says."""
        return _digest(self._content())

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the file, whole or not at all."""
        path = Path(path)
        content = self._content()
        text = json.dumps({**content, "digest": _digest(content)}, indent=1, allow_nan=False) + "\n"
        part = path.with_name(f".{path.name}.{os.getpid()}")
        part.write_text(text, encoding="utf-8")
        part.replace(path)
        return path

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """Reads a file.

        Raises:
            PlanError: it is not a plan, was made by another release, was changed after it was written, or contradicts
                itself.
            OSError: it cannot be read.
        """
        try:
            content = json.loads(Path(path).read_text(encoding="utf-8"))
        except ValueError as error:
            raise PlanError(f"{path} is not a plan file: {error}") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            found = content.get("format") if isinstance(content, dict) else None
            raise PlanError(f"{path} is not a plan file of format {FORMAT} (its format is {found!r}): tune again")
        digest = content.pop("digest", None)
        if digest != _digest(content):
            raise PlanError(f"{path} was changed after it was written (its digest does not match): tune again")
        try:
            parts = tuple(_part(one) for one in content["parts"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PlanError(f"{path} contradicts itself: {type(error).__name__}: {error}") from error
        return cls(parts, content.get("request", {}), content.get("figures", {}), content.get("made", {}), str(path))

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Plan:
        """``load``; a file that cannot be used gives a plan without parts and with a ``problem``, which applies to no
        run: a damaged file must not stop a program."""
        try:
            return cls.load(path)
        except (PlanError, OSError) as error:
            return cls((), source=str(path), problem=str(error))

    def _content(self) -> dict[str, Any]:
        parts = []
        for part in self.parts:
            check(part)
            conditions = {
                **asdict(part.conditions),
                "rules": [rule and rule._asdict() for rule in part.conditions.rules],
            }
            forecasts, corrections = (
                {str(step): one._asdict() for step, one in sorted(these.items())}
                for these in (part.forecasts, part.corrections)
            )
            differences = {str(step): one for step, one in sorted(part.differences.items())}
            parts.append(
                {
                    "model": part.model, "cut": part.cut._asdict(), "conditions": conditions, "forecasts": forecasts,
                    "corrections": corrections,
                    "differences": differences, "skipped": part.skipped, "blocks": part.blocks,
                }
            )  # fmt: skip
        content = {
            "format": FORMAT, "made": self.made, "request": self.request, "figures": self.figures, "parts": parts,
        }  # fmt: skip
        return json.loads(json.dumps(content, allow_nan=False))  # tuples are lists, as in a file


def _digest(content: Mapping[str, Any]) -> str:
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def check(part: Part) -> None:
    """Raises ValueError where ``part`` contradicts itself."""
    steps, branches = part.conditions.steps, part.conditions.branches
    if not 0 < steps <= MOST_STEPS or len(branches) != steps:
        raise ValueError(f"{steps} times and {len(branches)} numbers of branches")
    if part.blocks < 1 or any(count < 1 for count in part.skipped):
        raise ValueError(f"regions that skip {part.skipped} of {part.blocks} blocks")
    if part.forecasts.keys() & part.corrections.keys():
        raise ValueError("a step is both forecast and corrected")
    for step, forecast in (*part.forecasts.items(), *part.corrections.items()):
        sources = forecast.sources
        known = [source for source in range(step + 1) if source not in part.forecasts]
        if not 1 <= len(sources) <= MOST_SNAPSHOTS or list(sources) != known[-len(sources) :] or step >= steps:
            raise ValueError(f"step {step} is forecast from {sources}, not from the last computed steps")
        if len(forecast.weights) < branches[step]:
            raise ValueError(f"step {step} has weights for {len(forecast.weights)} of {branches[step]} branches")
        for regions in forecast.weights:
            if len(regions) != len(part.skipped):
                raise ValueError(f"step {step} has weights for {len(regions)} of {len(part.skipped)} regions")
            for stream in [stream for streams in regions for stream in streams]:
                if len(stream) != len(sources) or not all(map(math.isfinite, stream)):
                    raise ValueError(f"step {step} has weights {stream} for the steps {sources}")


def _part(data: Mapping[str, Any]) -> Part:
    given = dict(data["conditions"])
    rules = tuple(rule if rule is None else _rule(rule) for rule in given.pop("rules"))
    conditions = Conditions(**{name: _tuples(value) for name, value in given.items()}, rules=rules)
    part = Part(
        str(data["model"]),
        Cut(**data["cut"]),
        conditions,
        _forecasts(data["forecasts"]),
        _forecasts(data["corrections"]),
        {int(step): float(one) for step, one in data["differences"].items()},
        _tuples(data["skipped"]),
        int(data["blocks"]),
    )
    check(part)
    return part


def _forecasts(data: Mapping[str, Any]) -> dict[int, Forecast]:
    return {int(step): Forecast(_tuples(one["sources"]), _tuples(one["weights"])) for step, one in data.items()}


def _rule(data: Mapping[str, Any]) -> UpdateRule:
    terms = tuple(Term(*term) for term in data["terms"])
    return UpdateRule(terms, tuple(map(float, data["coefficients"])), float(data["error"]))


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
