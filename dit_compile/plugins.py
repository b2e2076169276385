"""Policies and forecasters of the user's own, registered by the modules that the setting ``plugins`` lists."""

from __future__ import annotations

import importlib
import os
from collections.abc import Collection, Mapping
from typing import Any

from .config import ConfigError, env_name
from .forecast import FORECASTERS
from .policy import POLICIES
from .readers import MODULES


def plugin_names(*layers: Mapping[str, Any], environ: Mapping[str, str] = os.environ) -> dict[str, Collection[str]]:
    """The names that ``policy`` and ``forecast`` may have, as keyword arguments of ``parse_layer`` and its relatives.

    First imports the modules that ``DIT_CACHE_PLUGINS`` and the key ``plugins`` of (unparsed) ``layers`` list. A value
    that is no list of modules is left to ``parse_layer`` to refuse.

    Raises:
        ConfigError: a module cannot be imported, or fails while it is.
    """
    for value in (environ.get(env_name("plugins"), "").strip(), *(layer.get("plugins") for layer in layers)):
        try:
            modules = MODULES.convert(value) if value else ()
        except (TypeError, ValueError):
            continue
        for module in modules:
            try:
                importlib.import_module(module)
            except Exception as error:  # whatever the module raises while it is imported
                reason = error if isinstance(error, ImportError) else f"{type(error).__name__}: {error}"
                raise ConfigError(f"plugins ({env_name('plugins')}): cannot import {module!r}: {reason}") from error
    return {"policies": POLICIES.names(), "forecasters": FORECASTERS.names()}
