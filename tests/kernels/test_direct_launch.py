"""A launch that is remembered passes what Triton's own launch passes, and is another one wherever Triton's would be.

Triton's binder, cache and `CompiledKernel` are the real ones; the driver and its launcher, which notes its arguments,
stand in for a GPU.
"""

import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed: nothing to launch", allow_module_level=True)

from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from dit_compile.kernels import launch_triton, probe_triton, store_triton, weighted_sum_triton
from dit_compile.kernels.launch_triton import Launcher
from dit_compile.kernels.storage import FLOAT8

MODULES = (probe_triton, weighted_sum_triton, store_triton)
LAUNCHERS = [value for module in MODULES for value in vars(module).values() if isinstance(value, Launcher)]

Launch = tuple[Any, ...]


class StandIn:
    """A driver whose launches end here."""

    def __init__(self) -> None:
        self.launches: list[Launch] = []
        self.bound = 0  # launches that went through Triton's binder
        self.launcher_cls = self._launcher
        self.utils = SimpleNamespace(
            get_device_properties=lambda device: {"max_shared_mem": 1 << 20},
            load_binary=lambda name, kernel, shared, device: (None, name, 32, 0, 1024),
        )

    def _launcher(self, source: Any, metadata: Any) -> Callable[..., None]:
        def launch(x: int, y: int, z: int, stream: int, function: Any, packed: Any, *rest: Any) -> None:
            _, *hooks_and_args = rest
            self.launches.append((x, y, z, stream, function, packed, *hooks_and_args))

        return launch

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 7


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    stand_in = StandIn()
    run = JITFunction.run

    def counted(kernel: Any, *args: Any, **options: Any) -> Any:
        stand_in.bound += 1
        return run(kernel, *args, **options)

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setattr(driver, "_active", stand_in)
    monkeypatch.setattr(JITFunction, "run", counted)
    _forget()
    yield stand_in
    _forget()


def _forget() -> None:
    assert len(LAUNCHERS) == 5
    for launcher in LAUNCHERS:
        launcher._known.clear()
        launcher._kernel.device_caches.clear()


def same(one: Launch, other: Launch) -> bool:
    """Tensors of one shape and dtype count as equal: results are allocated anew."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return (value.shape, value.dtype, value.stride())
        return tuple(map(plain, value)) if isinstance(value, tuple) else value

    return bool(plain(one) == plain(other))


def operands(count: int, shape: tuple[int, ...] = (1, 512, 320), dtype: torch.dtype = torch.bfloat16) -> list[Tensor]:
    return list(torch.zeros(count, *shape, dtype=dtype).unbind())


def runs() -> dict[str, Callable[[], object]]:
    a, b, c, d = operands(4)
    tail = torch.zeros(2, 512 + 64, 320, dtype=torch.bfloat16)[:, 64:]
    wide = torch.zeros(2, 512, 320, dtype=torch.bfloat16)
    eight, scale = torch.zeros(1, 512, 320).to(FLOAT8), torch.ones(())
    total, store = weighted_sum_triton.weighted_sum_triton, store_triton.store_scaled_triton
    return {
        "probe": lambda: probe_triton.probe_triton(a, b, c),
        "probe, no entry": lambda: probe_triton.probe_triton(a, None, c),
        "probe, rows": lambda: probe_triton.probe_triton(tail, tail, wide),
        "sum of 1": lambda: total(a, [b], [0.5]),
        "sum of 2": lambda: total(a, [b, c], [0.5, 1.0], d),
        "sum of 2, no base": lambda: total(None, [b, c], [2.0, -1.0], d),
        "sum of 3": lambda: total(a, [b, c, d], [1.0, 2.0, 3.0]),
        "sum of float8": lambda: total(a, [eight], [0.5], d, [scale]),
        "store with a flag": lambda: store_triton.store_flagged_triton(d, scale, a, b),
        "store with a flag, rows": lambda: store_triton.store_flagged_triton(wide, scale, tail, None),
        "store": lambda: store(eight, scale, a, b),
        "store, no base": lambda: store(eight, scale, a, None),
    }


def test_later_launches_pass_the_same_and_are_not_bound_again(device: StandIn) -> None:
    for name, run in runs().items():
        device.launches.clear()
        run()
        first, bound = list(device.launches), device.bound
        device.launches.clear()
        run()
        assert device.bound == bound, name
        assert first and len(device.launches) == len(first), name
        assert all(map(same, device.launches, first)), name


def test_in_any_order_launches_pass_what_triton_would_pass(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    several = runs()
    for _ in range(2):
        for run in several.values():
            run()
    for name, run in several.items():
        device.launches.clear()
        run()
        direct = list(device.launches)
        device.launches.clear()
        with monkeypatch.context() as patch:
            patch.setattr(launch_triton, "_can_be_launched", lambda compiled, arguments: False)
            for launcher in LAUNCHERS:
                patch.setattr(launcher, "_known", {})
            run()
        assert all(map(same, direct, device.launches)) and len(direct) == len(device.launches), name


def test_new_weights_are_new_arguments(device: StandIn) -> None:
    a, b, c = operands(3)
    for weights in ((2.0, -1.0), (1.0, 0.0), (0.25, 16.0)):
        weighted_sum_triton.weighted_sum_triton(a, [b, c], weights)
        tuples = [value for value in device.launches[-1] if isinstance(value, tuple)]
        assert weights in [value for value in tuples if value and isinstance(value[0], float)]
    assert device.bound == 1


@pytest.mark.parametrize("change", ["dtype", "address", "size", "count"])
def test_what_triton_specialises_is_told_apart(device: StandIn, change: str) -> None:
    plain = operands(3, (4096,))
    others = {
        "dtype": operands(3, (4096,), torch.float16),
        "address": [torch.zeros(4097, dtype=torch.bfloat16)[1:] for _ in range(3)],
        "size": operands(3, (4104,)),
        "count": plain[:2],
    }[change]
    for base, *snapshots in (plain, others, plain, others):
        weighted_sum_triton.weighted_sum_triton(base, snapshots, [0.5] * len(snapshots))
    kernels = [launch[4:6] for launch in device.launches]
    assert kernels[0] == kernels[2] and kernels[1] == kernels[3]
    assert device.bound == (3 if change == "address" else 2)  # a misaligned launch is not remembered


def test_where_a_launch_cannot_be_remembered_triton_launches(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, c = operands(3)
    monkeypatch.setattr(torch.version, "hip", "7.0")
    for _ in range(3):
        probe_triton.probe_triton(a, b, c)
    assert device.bound == 3 and len(device.launches) == 3


def test_no_more_than_so_many_are_kept(device: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_triton, "MOST_KEPT", 2)
    for size in (2048, 4096, 6144, 8192, 10240):
        a, b = operands(2, (size,))
        weighted_sum_triton.weighted_sum_triton(a, [b], [1.0])
        assert len(weighted_sum_triton._launch._known) <= 2
    assert device.bound == 5
