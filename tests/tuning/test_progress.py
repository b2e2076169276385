"""Bars of phases: one line each, with what was done at the end."""

import io

from rich.console import Console

from dit_compile.progress import bars_on


def shown(*phases):
    """The last lines after ``phases``: a name, a total and how many pieces were done."""
    stream = io.StringIO()
    with bars_on(Console(file=stream, width=100)) as bars:
        for name, total, pieces in phases:
            with bars.phase(name, total) as advance:
                for _ in range(pieces):
                    advance()
    return [" ".join(word for word in line.split() if "━" not in word) for line in stream.getvalue().splitlines()]


def test_a_line_for_each_phase_with_what_was_done():
    lines = shown(("record", 3, 3), ("fit", 300, 120), ("compile", None, 0))
    assert [line.rsplit(" ", 1)[0] for line in lines] == ["record 3/3", "fit 120/120", "compile 1/1"]


def test_without_a_console_nothing_is_shown(capsys):
    with bars_on(None) as bars, bars.phase("record", 3) as advance:
        advance()
    assert capsys.readouterr() == ("", "")
