"""Writes docs/configuration.md from ``dit_compile.config``. Run it after changing a setting."""

from pathlib import Path

from dit_compile.config import PRESETS, SETTINGS, as_text, env_name

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"

INTRODUCTION = """\
# Configuration

<!-- Written by tests/config/configuration_page.py from dit_compile/config.py; change those instead. -->

Every setting has an environment variable and, in lower case without the prefix, a key of `torch.compile`'s options:

```bash
DIT_CACHE_PRESET=fast DIT_CACHE_SUMMARY=1 python generate.py
```

```python
torch.compile(pipe.transformer, backend="dit_cache", options={"preset": "fast", "summary": True})
```

Option keys that are not ours go to Inductor. `dit-compile env` prints every variable with the value in force. A name
that does not exist or a value that is not accepted is an error that names the nearest valid one.

## Which value wins

Lowest first: defaults, environment, `options=`, `dit_compile.configure(...)`, `dit_compile.session(...)`. A layer that
names a preset applies the whole preset first and its own explicit values on top, so `session(preset="quality")` also
overrides a threshold from the environment. There is one exception: `DIT_CACHE_ENABLED=0` stays in force when the
program asks for a preset, so that the cache can be switched off from outside.

Settings marked *recompile* shape the compiled graph: give them to `torch.compile` or set their variable before
compiling. All others are runtime values and can change between two generations without a recompile; of a preset
named there, only the runtime values apply:

```python
dit_compile.configure(residual_diff_threshold=0.2)  # everything compiled in this process
with dit_compile.session("request-7", preset="quality"):  # this caller only
    pipe(prompt)
```
"""


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |\n" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def settings_table() -> str:
    """Every setting in declaration order."""
    preset = PRESETS["balanced"]
    rows = []
    for name, setting in SETTINGS.items():
        default = as_text(setting["default"])
        rows.append(
            [
                code(env_name(name)),
                f"preset ({default})" if name in preset else default,
                setting["accepts"].text,
                setting["help"] + ("; *recompile*" if setting["kind"] == "structure" else ""),
                code(setting["peer"]),
            ]
        )
    return table(["variable", "default", "accepts", "meaning", "in cache-dit"], rows)


def preset_table() -> str:
    """What each preset sets."""
    names = list(PRESETS["balanced"])
    rows = [[code(preset), *(as_text(values.get(name, "")) for name in names)] for preset, values in PRESETS.items()]
    return table(["preset", *map(code, names)], rows)


def page() -> str:
    """The text of docs/configuration.md."""
    presets = "`off` sets `enabled` to 0 and nothing else; `cache-dit` has the defaults of that project.\n"
    unset = "`unset` takes back a value where the default is unset; an empty variable counts as not set.\n"
    settings = f"## Settings\n\n{settings_table()}\n{unset}"
    return f"{INTRODUCTION}\n{settings}\n## Presets\n\n{preset_table()}\n{presets}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
