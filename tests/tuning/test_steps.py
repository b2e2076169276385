"""The schedule is the best one: compared with trying all of them, and their costs with what the vectors say."""

import itertools

import pytest
import torch

from dit_compile.tuning.steps import LOOK_BACK, best_weights, gap_costs, schedules


def curves(steps, sources, seed, size=30):
    """Outputs of ``sources`` branches that move smoothly; rows s * T + t."""
    noise = torch.Generator().manual_seed(seed)
    times = torch.linspace(0, 3, steps, dtype=torch.float64)
    shapes = torch.randn(sources, 4, size, generator=noise, dtype=torch.float64)
    waves = torch.stack([torch.ones_like(times), times, torch.sin(2.3 * times), torch.cos(3.1 * times)])
    return torch.einsum("wt,swn->stn", waves, shapes).flatten(0, 1)


def error_of(vectors, scales, computed, step):
    """The error of forecasting ``step`` with the best weights, by a solver of our own for each source jointly."""
    sources, total = scales.shape
    used = [one for one in computed if one < step][-LOOK_BACK:]
    newest = torch.stack([scales[s, step] * vectors[s * total + used[-1]] for s in range(sources)])
    target = sum(scales[s, step] * vectors[s * total + step] for s in range(sources)) - newest.sum(0)
    columns = [
        scales[s, step] * (vectors[s * total + one] - vectors[s * total + used[-1]])
        for s in range(sources)
        for one in used[:-1]
    ]
    if not columns:
        return target
    matrix = torch.stack(columns, 1)
    return target - matrix @ torch.linalg.lstsq(matrix, target[:, None], driver="gelsd").solution[:, 0]


def cost_of(vectors, scales, computed):
    gaps = itertools.pairwise(computed)
    return sum(
        float(sum(error_of(vectors, scales, computed, step) for step in range(a + 1, b)).square().sum())
        for a, b in gaps
        if b > a + 1
    )


@pytest.mark.parametrize(("steps", "sources"), [(7, 1), (8, 2)])
def test_equal_to_trying_all(steps, sources):
    for seed in range(3):
        vectors = curves(steps, sources, seed)
        scales = torch.rand(sources, steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.5
        found = schedules(vectors @ vectors.T, scales)
        assert sorted(found.steps) == list(range(2, steps + 1))
        for count, chosen in found.steps.items():
            others = [(0, *some, steps - 1) for some in itertools.combinations(range(1, steps - 1), count - 2)]
            costs = {computed: cost_of(vectors, scales, computed) for computed in others}
            least = min(costs.values())
            assert costs[chosen] == pytest.approx(least, rel=1e-3, abs=1e-4 * costs[others[0]] + 1e-6)
            assert found.costs[count] == pytest.approx(least, rel=1e-2, abs=1e-3)


def test_a_gap_is_no_longer_than_allowed():
    vectors = curves(20, 1, 0)
    found = schedules(vectors @ vectors.T, torch.ones(1, 20, dtype=torch.float64), max_gap=3)
    assert min(found.steps) == 6  # 0, 4, 8, 12, 16, 19
    for chosen in found.steps.values():
        assert max(b - a for a, b in itertools.pairwise(chosen)) <= 4
    forced = schedules(vectors @ vectors.T, torch.ones(1, 20, dtype=torch.float64), forced=[7])
    assert all(7 in chosen for chosen in forced.steps.values())
    assert torch.isinf(gap_costs(vectors @ vectors.T, torch.ones(1, 20, dtype=torch.float64), 3)[1, 2, 3, 8])


def test_weights_sum_to_one_and_reproduce_a_straight_line():
    line = torch.stack([torch.ones(5), torch.arange(5.0)], 1).double()[[0, 1, 3, 4]]  # steps 0, 1, 3 and, wanted, 4
    gram = line @ line.T
    weights = best_weights(gram[:3, :3][None], gram[:3, 3][None], torch.ones(1, 3, dtype=torch.bool), 1)[0]
    assert weights.sum().item() == pytest.approx(1)
    assert (weights @ torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)).item() == pytest.approx(4, rel=1e-3)
