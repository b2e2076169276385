"""A policy in a module of the user's own is a value of DIT_CACHE_POLICY; nothing else has to know of it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import dit_compile
from dit_compile.config import ConfigError

HERE = Path(__file__).parent
PROGRAM = """
import json, torch
from toys import Toy, build, latents
import dit_compile

model = torch.compile(build(Toy), backend="dit_cache")
start, way = latents(seed=1), latents(seed=2)
with torch.no_grad():
    for index in range(7):
        model(start + (0.001 * index + (index >= 5)) * way, torch.full((2,), 1000.0 - 0.001 * index))
print(json.dumps([(step.action, step.reason) for step in dit_compile.stats(model)[-1].steps]))
"""


def run(*command, **variables):
    paths = [str(HERE), str(HERE.parent / "helpers"), os.environ.get("PYTHONPATH", "")]
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "DIT_CACHE_INNER": "eager"}
    environ |= {f"DIT_CACHE_{name}": value for name, value in variables.items()}
    return subprocess.run([sys.executable, *command], env=environ, capture_output=True, text=True)


def test_a_policy_of_25_lines_works_from_the_environment():
    assert len((HERE / "plugin_policy.py").read_text(encoding="utf-8").splitlines()) <= 25
    result = run("-c", PROGRAM, PLUGINS="plugin_policy", POLICY="calm_thirds", RESIDUAL_DIFF_THRESHOLD="0.3")
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [
        ["compute", "no_snapshot"],
        ["reuse", "calm"],
        ["reuse", "calm"],
        ["compute", "third"],
        ["reuse", "calm"],
        ["compute", "moving"],
        ["compute", "third"],
    ]


def test_without_the_module_the_name_is_refused():
    result = run("-c", "from dit_compile.cli import app; app()", "env", POLICY="calm_thirds")
    assert result.returncode != 0
    assert "calm_thirds" in result.stdout + result.stderr


def test_a_module_that_does_not_exist_is_named():
    with pytest.raises(ConfigError, match="cannot import 'no_such_module'"):
        dit_compile.configure(plugins="no_such_module")


@pytest.mark.parametrize("body", ["1 / 0", "raise SystemError('mine')", "import no_such_module", "def broken(:"])
def test_a_module_that_fails_while_it_is_imported_is_named(body, tmp_path, monkeypatch):
    (tmp_path / "failing_plugin.py").write_text(body)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"plugins \(DIT_CACHE_PLUGINS\): cannot import 'failing_plugin'"):
        dit_compile.configure(plugins="failing_plugin")
