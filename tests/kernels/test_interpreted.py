"""Runs interpreted/check_triton.py in a process with TRITON_INTERPRET=1, which Triton reads at decoration time."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

CHECKS = Path(__file__).parent / "interpreted" / "check_triton.py"


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed: nothing to interpret")
def test_triton_kernels_through_the_interpreter() -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-rs",
        "--import-mode=importlib",
        "-p",
        "no:cacheprovider",
        str(CHECKS),
    ]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if "needs NumPy < 2.4" in child.stdout:
        pytest.skip("this Triton's interpreter needs NumPy < 2.4")
    assert child.returncode == 0, f"{' '.join(command)}\n{child.stdout[-8000:]}\n{child.stderr[-4000:]}"
    assert " passed" in child.stdout and "skipped" not in child.stdout, child.stdout[-2000:]
