"""Every reason that the code can give has a sentence for the summary and a row in the README's table."""

import ast
import re
from pathlib import Path

from dit_compile.debug.summary import REASONS

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"[a-z]+(_[a-z]+)*")


def codes(node: ast.AST) -> set[str]:
    """The texts that an expression may be: of ``"hit" if hit else "threshold"`` both."""
    if isinstance(node, ast.IfExp):
        return codes(node.body) | codes(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def reasons_given() -> set[str]:
    """The second argument of every ``Verdict``, and what slots are said to have been emptied for."""
    found = set()
    for path in sorted((ROOT / "dit_compile").glob("*/*.py")):
        if path.parent.name in ("passes", "kernels"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
                if name == "Verdict":
                    found |= codes(node.args[1])
                elif name == "drop":
                    found |= set().union(*map(codes, node.args), *(codes(keyword.value) for keyword in node.keywords))
            elif isinstance(node, ast.arg | ast.AnnAssign | ast.Assign):
                targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", node)]
                if any("emptied" in ast.unparse(target) for target in targets):
                    value = getattr(node, "value", None)
                    found |= codes(value) if value is not None else set()
    return found


def readme_rows() -> set[str]:
    """The codes of the table that begins with "reason"."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = text.split("| reason | why a step was computed |\n|---|---|\n", 1)[1].split("\n\n", 1)[0]
    return {code for row in rows.splitlines() for code in re.findall(r"`([a-z_]+)`", row.split("|")[1])}


def test_the_scan_finds_what_there_is() -> None:
    assert {"hit", "threshold", "warmup", "no_snapshot", "shape_changed", "absent", "disabled"} <= reasons_given()


def test_every_reason_has_its_sentence_and_nothing_else_has() -> None:
    assert reasons_given() == REASONS.keys()
    assert all(CODE.fullmatch(reason) and sentence for reason, sentence in REASONS.items())


def test_every_reason_to_compute_has_a_row_in_the_readme() -> None:
    assert readme_rows() == REASONS.keys() - {"hit"}
