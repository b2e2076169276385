"""``dit-compile env``."""

from __future__ import annotations

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ..config import ConfigError, environment_table
from ..plugins import plugin_names
from .checks import fail


def env_command() -> None:
    """List every DIT_CACHE_* variable: its value now, where that comes from, its default and its meaning."""
    try:
        rows = environment_table(**plugin_names())
    except ConfigError as error:
        fail(str(error))
    console = Console()
    narrow = console.width < 120  # then the meaning goes below the name
    table = Table("variable", "value", "from", "default", box=SIMPLE_HEAD, title="dit_cache settings")
    for column in table.columns[1:]:
        column.no_wrap = True
    if not narrow:
        table.add_column("meaning")
    for variable, *texts, meaning in rows:
        value, source, default = (text.replace(",", ",\n") if len(text) > 16 else text for text in texts)
        name = f"{variable}\n  [dim]{escape(meaning)}[/]" if narrow else variable
        rest = () if narrow else (escape(meaning),)
        table.add_row(
            name, escape(value), source, escape(default), *rest, style=None if source == "default" else "green"
        )
    console.print(table)
