"""Step masks by name, for ``step_mask``."""

from __future__ import annotations

from functools import cache
from itertools import cycle, groupby, zip_longest

from ..config import CacheConfig

# cache-dit 1.5.3's predefined masks by number of steps. 16 steps and more are cut or stretched from 28, 10 to 15 cut
# from 15; the others stand as they are.
MASKS = {
    28: {
        "slow": "1111111101110011100110010001",
        "medium": "1111110110001100011000110001",
        "fast": "1111110100010000100000100001",
        "ultra": "1111001000001000000100000001",
    },
    15: {"slow": "111101101101101", "medium": "111101101001001", "fast": "111010010010001", "ultra": "110100100010001"},
    9: {"slow": "111110111", "medium": "111110101", "fast": "111101001", "ultra": "111001001"},
    8: {"slow": "11111011", "medium": "11110101", "fast": "11101001", "ultra": "11001001"},
    6: dict.fromkeys(("slow", "medium", "fast", "ultra"), "111001"),
    4: dict.fromkeys(("slow", "medium", "fast", "ultra"), "1101"),
}


@cache
def preset_mask(name: str, steps: int) -> str:
    """The mask ``name`` for 4, 6, 8 or more steps, as cache-dit 1.5.3 makes it; the last step always computes.

    To stretch a mask, its runs of 1 and 0 grow in turn, from the first on, by their length times steps / 56 (at least
    1) until there are enough digits. To cut it, the last run of 0 and the last run of 1 lose a digit in turn.
    """
    mask = MASKS.get(steps, MASKS[28 if steps > 15 else 15])[name]
    runs = [(digit, len(list(run))) for digit, run in groupby(mask)]
    computed, reused = ([length for digit, length in runs if digit == wanted] for wanted in "10")
    growth = [
        (part, i, max(int(part[i] * (steps / 28 * 0.5)), 1)) for i in range(len(reused)) for part in (computed, reused)
    ]
    for part, i, more in cycle([*growth, (computed, -1, 1)]):
        if sum(computed) + sum(reused) >= steps:
            break
        part[i] += more
    for part in cycle((reused, computed)):
        if sum(computed) + sum(reused) <= steps:
            break
        if part:
            part[-1] -= 1
            part[:] = filter(None, part)
    digits = "".join("1" * ones + "0" * zeros for ones, zeros in zip_longest(computed, reused, fillvalue=0))
    return digits[:-1] + "1"


def mask_digits(config: CacheConfig) -> str:
    """The digits of ``step_mask``, which may be a name; empty where it is not set."""
    mask = config.step_mask or ""
    return mask if mask.strip("01") == "" else preset_mask(mask, config.num_steps or 0)
