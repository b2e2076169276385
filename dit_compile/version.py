"""The version of this package, also of pyproject.toml."""

VERSION = "0.1.0"
