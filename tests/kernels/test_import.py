"""Importing the operators is cheap and needs nothing but torch: no Triton, nothing else of this package."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
sys.modules["triton"] = None  # importing it raises ImportError
from dit_compile.kernels.probe import probe
from dit_compile.kernels.store import store_residual
from dit_compile.kernels.weighted_sum import weighted_sum
a, b, c = torch.randn(3, 2, 5).unbind()
probe(a, b, c), weighted_sum(a, [b, c], [1.0, 2.0]), store_residual(a, b, c)
torch.ops.dit_cache.probe(a, b, c), torch.ops.dit_cache.weighted_sum(a, [b], [1.0])
ours = {name for name in sys.modules if name.startswith("dit_compile.") and "dit_compile.kernels" not in name}
others = ours - {"dit_compile.version"}
assert not others, others
assert not any(name.endswith("_triton") for name in sys.modules)
import dit_compile.kernels
assert dit_compile.kernels.__file__ is None, "kernels/ must stay without __init__.py"
"""


def test_import_without_triton() -> None:
    child = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
