"""A plan as data, and the file that holds it.

The file is JSON. Its ``digest`` is the SHA-256 of everything else in it, so that a file that was edited or damaged is
not used. Numbers are written with all their digits: a plan that was read is the one that was written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .part import Conditions, Cut, Forecast, Part, check
from .update_rule import Term, UpdateRule

if TYPE_CHECKING:
    from rich.console import Console

FORMAT = 1


class PlanError(ValueError):
    """A plan that cannot be used: the file is not a plan, was changed, or contradicts itself."""


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

    def summary(self, console: Console | None = None) -> None:
        """Prints what was asked for, the steps, and the figures beside those of presets, reuse and fewer steps."""
        from .summary import print_summary

        print_summary(self._title(), self.parts, self.request, self.figures, self.made, console)

    def describe(self, width: int = 100) -> str:
        """What ``summary`` prints, as plain text with lines of up to ``width`` characters."""
        from .summary import described

        return described(self._title(), self.parts, self.request, self.figures, self.made, width=width)

    def save_picture(self, path: str | os.PathLike[str]) -> Path:
        """Draws the steps, their weights and the PSNR of each prompt; the suffix of ``path`` chooses the format.

        Raises:
            PlanError: the plan cannot be used.
            ImportError: matplotlib is not installed.
        """
        from .picture import save_picture

        if not self.parts:
            raise PlanError(self.problem or "the plan has no parts")
        return save_picture(Path(path), self._title(), self.parts, self.figures)

    def _title(self) -> str:
        return self.problem or f"{Path(self.source).name} {self.digest()[:12]}".strip()

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
