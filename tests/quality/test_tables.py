"""The measured tables of two policies, on a model whose blocks do what is known."""

import pytest
import torch
from quality_tables import mag_ratios, sensitivities
from torch import nn

STEPS = 5


class Pair(nn.Module):
    def forward(self, text, image):
        return text, image


class Known(nn.Module):
    """All but the first block add ``scale(z, t)`` to latents z, all ones times a number, at time t."""

    def __init__(self, scale):
        super().__init__()
        self.transformer_blocks = nn.ModuleList([Pair()])
        self.single_transformer_blocks = nn.ModuleList([Pair()])
        self.scale = scale

    def forward(self, hidden_states, timestep):
        text, image = self.transformer_blocks[0](None, 3 * hidden_states)
        image = image + self.scale(hidden_states, timestep)
        return self.single_transformer_blocks[0](text, image)[1]


def draw(model):
    """Latents 1, 2, 3, ... at times 1, 0.8, 0.6, ..., two branches."""
    for step in range(STEPS):
        for _ in range(2):
            model(hidden_states=torch.full((2, 3, 4), step + 1.0), timestep=torch.tensor(1 - step / STEPS))


@pytest.mark.parametrize(
    ("power", "of_latents"), [(0, [0, 0, 0, 0, 0]), (1, [1, 1, 1, 1, 1]), (2, [3, 5 / 2, 7 / 3, 9 / 4])]
)
def test_sensitivity_to_latents(power, of_latents):
    found = [pair[0] for pair in sensitivities(Known(lambda z, t: z**power), 2, draw)]
    assert found == pytest.approx([*of_latents, of_latents[-1]][:STEPS], abs=1e-3)


def test_sensitivity_to_time():
    """The part of the run that a step takes is 1/5, the change of t relative to it 1/5, 1/4, 1/3, 1/2."""
    found = sensitivities(Known(lambda z, t: z * t), 2, draw)
    assert [pair[0] for pair in found] == pytest.approx([1] * STEPS, abs=1e-3)
    assert [pair[1] for pair in found] == pytest.approx([1, 5 / 4, 5 / 3, 5 / 2, 5 / 2], abs=1e-3)


def test_ratios_of_magnitude():
    assert mag_ratios(Known(lambda z, t: z), 2, draw) == pytest.approx([2, 3 / 2, 4 / 3, 5 / 4], abs=1e-3)
