"""Runs cache-dit 1.0.14 and 1.5.3 on every parity case and rewrites tests/parity/traces.

Needed after a change to the cases or to the bundled model; takes some minutes. A version that is not installed is
installed into a temporary folder.
"""

from __future__ import annotations

import importlib.metadata
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "helpers")]

import torch  # noqa: E402
from parity_support import stored  # noqa: E402
from parity_support.cases import CASES, Case  # noqa: E402
from parity_support.drawn import drawn_cases  # noqa: E402
from parity_support.peer import Peer  # noqa: E402

PACKAGES = ("torch", "diffusers", "hypothesis")


def record(version: str, cases: list[Case]) -> None:
    """All cases of one version, in a process of cache-dit's own, which shows how far it is."""
    print(f"cache-dit {version}: {len(cases)} cases", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        peer = Peer(version, Path(folder), [case.job for case in cases], show_progress=True)
        traces = [(case, peer.trace(*case.job)) for case in cases]
    made_with = {package: importlib.metadata.version(package) for package in PACKAGES}
    stored.write(version, traces, made_with, stored.FOLDER)
    sizes = [path.stat().st_size / 1024 for path in stored.files(version, stored.FOLDER)]
    print(f"cache-dit {version}: {sum(sizes):.0f} KiB written to {stored.FOLDER}")


def main() -> None:
    torch.set_num_threads(1)
    cases = {stored.key(case): case for case in [*CASES, *drawn_cases()]}
    for version in sorted({case.version for case in cases.values()}):
        record(version, [case for case in cases.values() if case.version == version])


if __name__ == "__main__":
    main()
