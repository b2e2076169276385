"""dit_cache: a torch.compile backend that does not recompute what hardly changes between denoising steps.

    model = torch.compile(pipe.transformer, backend="dit_cache")

needs no import of this package. Import it for the shorter way in, statistics and control:

    dit_compile.compile(pipe)
    dit_compile.save(pipe, path), dit_compile.load(pipe, path)
    dit_compile.tune(draw, prompts, model=pipe.transformer, cost=0.4), dit_compile.Plan

    dit_compile.graphs(), dit_compile.stats(), dit_compile.summary(), dit_compile.reset()
    dit_compile.configure(...), dit_compile.session(...)
"""

import importlib
from typing import TYPE_CHECKING, Any

from .version import VERSION as __version__

if TYPE_CHECKING:
    from .api import SessionInUse, configure, graphs, reset, session, stats, summary
    from .entry.compile import compile
    from .entry.warm import ArtifactError, load, save
    from .plans import Plan, PlanError
    from .tuning.api import tune
    from .tuning.errors import TuneError

__all__ = [
    "ArtifactError", "Plan", "PlanError", "SessionInUse", "TuneError", "__version__", "compile", "configure", "graphs",
    "load", "reset", "save", "session", "stats", "summary", "tune",
]  # fmt: skip


_HOMES = {
    "ArtifactError": "entry.warm", "compile": "entry.compile", "load": "entry.warm", "save": "entry.warm",
    "Plan": "plans", "PlanError": "plans", "TuneError": "tuning.errors", "tune": "tuning.api",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads the interface on first use: importing the package alone imports no torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    home = importlib.import_module(f"{__name__}.{_HOMES.get(name, 'api')}")
    return getattr(home, name)
