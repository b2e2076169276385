"""The page docs/models.md: one row per model of the registry, from what ``examine`` found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from examine import Examination
from specs import Model

PAGE = Path(__file__).parents[2] / "docs" / "models.md"
HEADINGS = ("model", "blocks", "skipped (F1 B0)", "streams", "glue", "hoisted", "graphs", "verdict", "remark")

INTRODUCTION = """\
# Models

<!-- Written by `python benchmarks/coverage.py --write-page`; change the code or the registry instead. -->

Every transformer class of diffusers {version}, each in a tiny configuration with random weights. The backend has no
code for any of them: it finds the blocks in the graph that TorchDynamo traced. For each row a test checks that

- the chain found is the one the model's source shows, in one graph (`fullgraph=True`) unless the row says otherwise,
- with every step computed, and with the cache switched off, the output equals plain eager (fp32, 1e-4),
- with the schedule compute, reuse, compute, reuse it equals an oracle that skips the same blocks in eager code,
- the snapshots hold as many bytes as was said at compile time.

*Skipped* are the blocks that a reused step does not run. *Streams* are the values that leave them and are forecast: as
entry + residual, as residual on several joined entry values (*joined*), or as they are (*value*). *Glue* counts the
operations between blocks, *hoisted* those that were moved in front because they do not depend on a stream. *Graphs* is
what Dynamo makes of the model; the blocks are in one of them.

The rows are of `torch.compile(model, backend="dit_cache")`. `dit_compile.compile(model)` needs neither `fullgraph=True`
nor a setting of Dynamo: it finds what a model needs, and sets it while that model is compiled.

"""


def row(spec: Model, found: Examination) -> tuple[str, ...]:
    """One row of the table; nothing in it depends on the machine."""
    report = found.report
    graphs = str(found.graphs)
    if report.refusal is not None:
        return (spec.name, "-", "-", "-", "-", "-", graphs, "not cached", spec.note or report.refusal)
    (region,) = report.regions
    kinds = {"entry": "", "joined": " (joined)", "none": " (value)"}
    streams = ", ".join(f"{len(s.shape)}-d{kinds[s.base]}" for s in region.streams)
    settings = ", ".join(f"`torch._dynamo.config.{name} = {value}`" for name, value in spec.dynamo.items())
    needs = f"needs {settings}, which `dit_compile.compile` sets" if settings else ""
    remark = "; ".join(filter(None, [needs, spec.note]))
    skipped = f"{region.first} to {region.last} ({region.skipped} of {region.blocks})"
    return (
        spec.name, report.chain, skipped, streams, str(report.glue), str(region.hoisted), graphs, "cached", remark
    )  # fmt: skip


def line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"


def page(version: str, rows: Sequence[tuple[str, ...]], left_out: Mapping[str, str]) -> str:
    cached = sum(cells[7] == "cached" for cells in rows)
    head = [line(HEADINGS), "|" + " --- |" * len(HEADINGS)]
    classes = {cells[0].split(" (")[0] for cells in rows}
    found = {cells[0].split(" (")[0] for cells in rows if cells[7] == "cached"}
    summary = (
        f"{cached} of {len(rows)} rows are cached, and {len(found)} of {len(classes)} classes in at least one.\n\n"
    )
    ends = ["", "Left out, because there is nothing to cache from step to step:", ""]
    ends += [f"- `{name}`: {why}." for name, why in sorted(left_out.items())]
    return INTRODUCTION.format(version=version) + summary + "\n".join([*head, *map(line, rows), *ends]) + "\n"
