"""Says where and why Dynamo cut the model into several graphs, for the refusal of one that holds only a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch._dynamo.output_graph import graph_break_reasons  # type: ignore[attr-defined]
from torch._dynamo.utils import counters
from torch.fx import GraphModule

_SWITCHES = ("capture_dynamic_output_shape_ops", "capture_scalar_outputs")


def source_files(gm: GraphModule) -> list[str]:
    """The files of the ``forward`` methods that the graph ends in, outermost first."""
    return _forwards(getattr(gm, "compile_subgraph_reason", None))


def explain_break(gm: GraphModule) -> str | None:
    """One sentence about the graph break at the end of ``gm`` or, if it has none, the last one in the same files.

    None when no break is known, as for a model that was traced into one graph.
    """
    own = getattr(gm, "compile_subgraph_reason", None)
    known = [own] if own is not None and own.graph_break else []
    files = set(source_files(gm))
    known += [reason for reason in reversed(graph_break_reasons) if files.intersection(_forwards(reason))]
    if not known or not _stack(known[0]):
        return None
    frame, text = _stack(known[0])[-1], known[0].reason
    sentence = f"Dynamo broke the graph at {Path(frame.filename).name}:{frame.lineno} `{frame.line}` ({_title(text)})"
    switches = [name for name in _SWITCHES if name in text]
    if switches:
        return f"{sentence}; fullgraph=True or torch._dynamo.config.{switches[0]} = True keeps it whole"
    return f"{sentence}; if the blocks are cut apart as well, try torch._dynamo.config.{_SWITCHES[0]} = True"


def any_break() -> bool:
    """Whether Dynamo has broken any graph in this process."""
    return bool(graph_break_reasons or counters["graph_break"])


def _stack(reason: Any) -> list[Any]:
    return list(getattr(reason, "user_stack", None) or ())


def _forwards(reason: Any) -> list[str]:
    return [frame.filename for frame in _stack(reason) if frame.name == "forward"]


def _title(text: str) -> str:
    title = text.strip().splitlines()[0]
    return "a branch that depends on the values of a tensor" if title.startswith("generic_jump") else title
