"""The examples of CONTRIBUTING.md run as they stand."""

import re
import subprocess
import sys
from pathlib import Path

TEXT = (Path(__file__).parents[2] / "CONTRIBUTING.md").read_text(encoding="utf-8")

CHECKS = """
from dit_compile.config import environment_layer, resolve
from dit_compile.forecast import FORECASTERS
from dit_compile.policy import POLICIES

names = {"policies": POLICIES.names(), "forecasters": FORECASTERS.names()}
environ = {"DIT_CACHE_POLICY": "first_half", "DIT_CACHE_FORECAST": "mean", "DIT_CACHE_NUM_STEPS": "10"}
config = resolve(environment_layer(environ, **names))
policy, forecaster = POLICIES[config.policy](), FORECASTERS[config.forecast]()
assert policy.before(StepView(4, 0, 0), config) == Verdict(False, "first_half")
assert policy.before(StepView(5, 0, 0), config) is None
assert policy.after(StepView(5, 0, 0), config, 0.1) == Verdict(True, "hit")
assert policy.after(StepView(5, 0, 0), config, 0.2) == Verdict(False, "threshold")
assert forecaster.weights([3, 4], 5, config) == [0.5, 0.5]
"""


def test_examples_run() -> None:
    examples = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    assert len(examples) == 2
    subprocess.run([sys.executable, "-c", "\n".join([*examples, CHECKS])], check=True)


def test_commands_are_those_of_ci() -> None:
    ci = (Path(__file__).parents[2] / ".ci" / "run").read_text(encoding="utf-8")
    install, fast, slow = (
        'pip install -c constraints.txt -e ".[test,dev]"',
        "python -m pytest -n 2\n",
        "python -m pytest -n 2 -m slow",
    )
    assert install in TEXT and fast in TEXT and slow in TEXT
    assert install in ci.replace("--quiet ", "") and fast in ci and slow in ci
