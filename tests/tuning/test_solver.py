"""Update rules that are read off a draw are those of the solver that made it."""

import pytest
import torch

from dit_compile.plans import Term
from dit_compile.tuning.recording import ModuleFacts, Recording, Step
from dit_compile.tuning.solver import next_latents, update_rules

STEPS, SIZE = 8, 400
SIGMAS = [1 - i / STEPS for i in range(STEPS + 1)]


def trajectory(update, branches=1, seed=0, dtype=torch.float32):
    """A draw by ``update(latents so far, outputs so far, step)``, with outputs that no term explains."""
    noise = torch.Generator().manual_seed(seed)
    latents, outputs = [torch.randn(SIZE, generator=noise).to(dtype)], []
    for step in range(STEPS):
        outputs.append([torch.randn(SIZE, generator=noise).to(dtype) for _ in range(branches)])
        if step < STEPS - 1:
            latents.append(update(latents, outputs, step).to(dtype))
    recording = Recording({"m": ModuleFacts(None, (1,), 2, ())}, start=latents[0])
    recording.steps = [
        Step("m", i, x.float(), [None] * branches, [one.float() for one in made])
        for i, (x, made) in enumerate(zip(latents, outputs, strict=True))
    ]
    return recording


def euler(latents, outputs, step):
    return latents[-1] + (SIGMAS[step + 1] - SIGMAS[step]) * outputs[-1][0]


def guided(latents, outputs, step):
    cond, uncond = outputs[-1]
    return latents[-1] + (SIGMAS[step + 1] - SIGMAS[step]) * (uncond + 3.5 * (cond - uncond))


def scaled(latents, outputs, step):
    """As an Euler solver of a variance-exploding model, whose latents are scaled before the model gets them."""
    now, then = ((80 * s) ** 2 + 1 for s in SIGMAS[step : step + 2])
    return (latents[-1] * now**0.5 + 80 * (SIGMAS[step + 1] - SIGMAS[step]) * outputs[-1][0]) / then**0.5


def multistep(latents, outputs, step):
    """Adams-Bashforth of order 2."""
    h = SIGMAS[step + 1] - SIGMAS[step]
    if step == 0:
        return latents[-1] + h * outputs[-1][0]
    return latents[-1] + h * (1.5 * outputs[-1][0] - 0.5 * outputs[-2][0])


def heun(latents, outputs, step):
    """Two calls for a step: the second begins where Euler ends, and is taken back."""
    h = -2 / STEPS
    if step % 2 == 0:
        return latents[-1] + h * outputs[-1][0]
    return latents[-2] + h / 2 * (outputs[-2][0] + outputs[-1][0])


def test_euler_with_guidance():
    rules = update_rules([trajectory(guided, branches=2, seed=seed) for seed in range(3)])
    assert len(rules) == STEPS - 1
    for rule in rules:
        assert rule.terms == (Term(0, None), Term(0, 0), Term(0, 1)) and rule.error < 1e-5
        assert rule.coefficients == pytest.approx((1.0, -3.5 / STEPS, 2.5 / STEPS), rel=1e-4)
        assert rule.of(0) == rule.coefficients[1] and rule.of(7) == 0.0


@pytest.mark.parametrize("update", [euler, scaled, multistep, heun])
def test_the_rule_gives_the_next_latents(update):
    recordings = [trajectory(update, seed=seed) for seed in range(3)]
    rules = update_rules(recordings)
    other = trajectory(update, seed=9)
    for step, rule in enumerate(rules):
        assert rule.error < 1e-4
        latents = [one.latents for one in other.steps[: step + 1]]
        outputs = [one.outputs for one in other.steps[: step + 1]]
        torch.testing.assert_close(
            next_latents(rule, latents, outputs), other.steps[step + 1].latents, rtol=1e-3, atol=1e-4
        )


def test_half_precision_is_no_obstacle():
    rules = update_rules([trajectory(guided, 2, seed, torch.bfloat16) for seed in range(3)])
    assert all(rule is not None and rule.of(0) == pytest.approx(-3.5 / STEPS, rel=0.05) for rule in rules)


def test_noise_and_other_nonlinear_updates_have_no_rule():
    noise = torch.Generator().manual_seed(5)
    stochastic = trajectory(lambda x, v, step: euler(x, v, step) + 0.1 * torch.randn(SIZE, generator=noise))
    assert update_rules([stochastic]) == [None] * (STEPS - 1)
    clipped = trajectory(lambda x, v, step: euler(x, v, step).clamp(-1, 1))
    assert None in update_rules([clipped])


def test_a_model_without_outputs_like_its_latents():
    recording = trajectory(euler)
    for step in recording.steps:
        step.latents, step.outputs = None, []
    assert update_rules([recording]) == [None] * (STEPS - 1)
