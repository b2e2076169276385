"""Step masks by name against those of cache-dit 1.5.3."""

import pytest

from dit_compile.config import CacheConfig
from dit_compile.policy import POLICIES, StepView
from dit_compile.policy.mask_presets import MASKS, mask_digits, preset_mask
from dit_compile.readers import MASK_NAMES

# what cache_dit.steps_mask(total_steps=..., mask_policy=...) returned, in the order of MASK_NAMES
CACHE_DIT = {
    4: ["1101"] * 4,
    6: ["111001"] * 4,
    8: ["11111011", "11110101", "11101001", "11001001"],
    9: ["111110111", "111110101", "111101001", "111001001"],
    10: ["1111011111", "1111011011", "1110100101", "1101001001"],
    12: ["111101101111", "111101101001", "111010010011", "110100100011"],
    16: ["1111111101110011", "1111110110001001", "1111100000000001", "1100000000000001"],
    20: ["11111111011100111001", "11111101100011000101", "11111101000000000001", "11110000000000000001"],
    28: [
        "1111111101110011100110010001",
        "1111110110001100011000110001",
        "1111110100010000100000100001",
        "1111001000001000000100000001",
    ],
    30: [
        "111111111111011100111001100101",
        "111111111011000110001100011001",
        "111111111010001000010000010001",
        "111111001000001000000100000001",
    ],
    50: [
        "11111111111111111111110011111000111110001110001101",
        "11111111111111110011100000111000001110000011100001",
        "11111111111001100000110000000110000000001100000001",
        "11111110001100000000011000000000001100000000000001",
    ],
}
COMPUTED = {28: [18, 15, 11, 8], 50: [38, 29, 20, 14], 8: [7, 6, 5, 4], 9: [8, 7, 6, 5]}


@pytest.mark.parametrize("steps", CACHE_DIT)
def test_masks_are_those_of_cache_dit(steps: int) -> None:
    assert [preset_mask(name, steps) for name in MASK_NAMES] == CACHE_DIT[steps]


@pytest.mark.parametrize("steps", [steps for steps in COMPUTED if steps != 50])
def test_numbers_of_computed_steps_as_documented(steps: int) -> None:
    assert [preset_mask(name, steps).count("1") for name in MASK_NAMES] == COMPUTED[steps]


@pytest.mark.parametrize("name", MASK_NAMES)
def test_every_number_of_steps_has_a_mask(name: str) -> None:
    assert all(list(masks) == list(MASK_NAMES) for masks in MASKS.values())
    for steps in (4, 6, *range(8, 201)):
        mask = preset_mask(name, steps)
        assert len(mask) == steps and set(mask) == set("01") and mask[0] == mask[-1] == "1"


@pytest.mark.parametrize(("policy", "others"), [("mask", "+hit"), ("dbcache", "ask")])
def test_policies_read_names(policy: str, others: str) -> None:
    """``mask`` is cache-dit's static policy, a mask beside ``dbcache`` its dynamic one."""
    config = CacheConfig(policy=policy, step_mask="ultra", num_steps=8, warmup_steps=0)
    assert mask_digits(config) == "11001001"
    verdicts = [POLICIES[policy]().before(StepView(step, 0, 0), config) for step in range(8)]
    reasons = ["ask" if v is None else "+" * v.reuse + v.reason for v in verdicts]
    assert reasons == ["mask" if digit == "1" else others for digit in "11001001"]


def test_digits_stay_as_they_are() -> None:
    assert mask_digits(CacheConfig(step_mask="1101")) == "1101"
    assert mask_digits(CacheConfig()) == ""
