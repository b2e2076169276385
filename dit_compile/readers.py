"""What a setting accepts, and how a Python value or its spelling in an environment variable is read."""

import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

from .plans import Plan

MASK_NAMES = ("slow", "medium", "fast", "ultra")  # cache-dit's masks, in policy/mask_presets.py
Names = Collection[str] | None  # of registered plug-ins; None: any identifier passes


class Accepts(NamedTuple):
    """What a setting accepts: ``text`` completes "expected ...", ``convert`` reads a Python value or its spelling."""

    text: str
    convert: Callable[[Any], Any]  # raises ValueError, TypeError or KeyError; leaves converted values as they are
    words: tuple[str, ...] = ()


def number(low: float, high: float | None = None, *, real: bool = False, words: tuple[str, ...] = ()) -> Accepts:
    """A number within bounds, both included, or one of ``words``; ``real`` admits fractions, otherwise an integer."""

    def convert(value: Any) -> int | float | str:
        if str(value).strip().lower() in words:
            return str(value).strip().lower()
        if isinstance(value, bool) or not isinstance(value, str | numbers.Real):
            raise TypeError
        read: Callable[[Any], int | float] = float if real else int if isinstance(value, str) else operator.index
        result = read(value)
        if not math.isfinite(result) or result < low or (high is not None and result > high):
            raise ValueError
        return result

    kind = f"{'a finite number' if real else 'an integer'} " + (
        f">= {low}" if high is None else f"from {low} to {high}"
    )
    return Accepts(" or ".join(filter(None, [", ".join(words), kind])), convert, words)


def choice(*words: str) -> Accepts:
    """One of ``words``, in any case."""

    def convert(value: Any) -> str:
        return words[words.index(value.strip().lower() if isinstance(value, str) else value)]

    return Accepts(f"{', '.join(words[:-1])} or {words[-1]}", convert, words)


def plugin(names: Names = None) -> Accepts:
    """The name of a policy or forecaster."""

    def convert(value: Any) -> str:
        name = value.strip() if isinstance(value, str) else ""
        if not (name.isidentifier() if names is None else name in names):
            raise ValueError
        return name

    words = tuple(sorted(names or ()))
    return Accepts(", ".join(words) if words else "the name of a registered plug-in", convert, words)


def _read_flag(value: Any) -> bool:
    words = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    return words[str(value).strip().lower()]


def _read_mask(value: Any) -> str:
    if isinstance(value, str) and value.strip().lower() in MASK_NAMES:
        return value.strip().lower()
    mask = value.strip() if isinstance(value, str) else "".join(str(operator.index(digit)) for digit in value)
    if not mask or mask.strip("01"):
        raise ValueError
    return mask


def _read_folder(value: Any) -> str:
    path = os.fspath(value)
    if not isinstance(path, str) or not path.strip():
        raise ValueError
    return os.path.expanduser(path.strip())


def _read_numbers(value: Any) -> tuple[float, ...]:
    items = value.split(",") if isinstance(value, str) else value
    numbers_read = tuple(float(item) for item in items)
    if not numbers_read or not all(map(math.isfinite, numbers_read)):
        raise ValueError
    return numbers_read


def _read_indices(value: Any) -> tuple[int, ...]:
    items = map(int, value.split(",")) if isinstance(value, str) else value
    indices = tuple(operator.index(item) for item in items)
    if min(indices) < 0:  # or none at all
        raise ValueError
    return indices


def _read_modules(value: Any) -> tuple[str, ...]:
    names = tuple(map(str.strip, value.split(",") if isinstance(value, str) else value))
    if not names or not all(part.isidentifier() for name in names for part in name.split(".")):
        raise ValueError
    return names


def _read_rates(value: Any) -> tuple[tuple[float, int], ...]:
    pairs = [pair.split(":") for pair in value.split(",")] if isinstance(value, str) else value
    rates = tuple((float(bound), operator.index(int(steps))) for bound, steps in pairs)
    if not rates or min(steps for _, steps in rates) < 1:
        raise ValueError
    return rates


def _read_sensitivities(value: Any) -> tuple[tuple[float, float], ...]:
    pairs = [pair.split(":") for pair in value.split(",")] if isinstance(value, str) else value
    sensitivities = tuple((float(latents), float(time)) for latents, time in pairs)
    if not all(0 <= number < math.inf for pair in sensitivities for number in pair) or not sensitivities:
        raise ValueError
    return sensitivities


def _read_bytes(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, str):
        found = _BYTES.fullmatch(value.strip().lower())
        if found is None:
            raise ValueError
        count, prefix, binary = found.groups()
        amount = int(count) if count.isdigit() else float(count)
        value = round(amount * (1024 if binary else 1000) ** " kmgt".index(prefix or " "))
    size = operator.index(value)
    if size < 1:
        raise ValueError
    return size


def format_bytes(count: float) -> str:
    """``2048`` -> ``2.0 KiB``."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024 or unit == "GiB":
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def _read_plan(value: Any) -> Plan:
    if isinstance(value, Plan):
        return value
    path = _read_folder(value)
    if not os.path.isfile(path):
        raise ValueError
    return Plan.read(path)


NUMBERS = Accepts("numbers with commas between them", _read_numbers)
RATES = Accepts("pairs such as 0.1:4,0.3:2,1:1 (below 0.1 every 4th step, ...)", _read_rates)
SENSITIVITIES = Accepts("pairs of numbers >= 0 such as 0.9:2,0.8:2.5 (one per step)", _read_sensitivities)
INDICES = Accepts("indices of blocks with commas between them", _read_indices)
_BYTES = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(?:([kmgt])(i)?)?b?")
BYTES = Accepts("bytes as an integer >= 1, or such as 512MiB, 1.5GiB, 2GB", _read_bytes)
FLAG = Accepts("0 or 1 (also false/true, no/yes, off/on)", _read_flag)
MASK = Accepts(
    "slow, medium, fast, ultra, or a text or list of 0 and 1 such as 1101 (1 computes)", _read_mask, MASK_NAMES
)
MODULES = Accepts("names of Python modules with commas between them", _read_modules)
PLAN = Accepts("the path of a plan file that exists (dit-compile tune writes one), or a Plan", _read_plan)
FOLDER = Accepts("the path of a folder", _read_folder)
