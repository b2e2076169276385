"""dit_cache: a torch.compile backend that does not recompute what hardly changes between denoising steps.

    model = torch.compile(pipe.transformer, backend="dit_cache")

needs no import of this package. Import it for the shorter way in, statistics and control:

    dit_compile.compile(pipe)
    dit_compile.save(pipe, path), dit_compile.load(pipe, path)

    dit_compile.graphs(), dit_compile.stats(), dit_compile.summary(), dit_compile.reset()
    dit_compile.configure(...), dit_compile.session(...)
"""

from typing import TYPE_CHECKING, Any

from .version import VERSION as __version__

if TYPE_CHECKING:
    from .api import SessionInUse, configure, graphs, reset, session, stats, summary
    from .entry.compile import compile
    from .entry.warm import ArtifactError, load, save

__all__ = [
    "ArtifactError", "SessionInUse", "__version__", "compile", "configure", "graphs", "load", "reset", "save",
    "session", "stats", "summary",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Loads the interface on first use: importing the package alone imports no torch."""
    if name == "compile":
        from .entry.compile import compile

        return compile
    if name in ("ArtifactError", "load", "save"):
        from .entry import warm

        return getattr(warm, name)
    if name in __all__:
        from . import api

        return getattr(api, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
