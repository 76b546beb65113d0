"""Things that are found by listing a folder: one module each, which declares its thing under an agreed name.

Adding a method, an objective, a format, a target or a metric is adding a file; no list names it.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def declared(package: str, attribute: str) -> dict[str, Any]:
    """What each module of `package` declares as `attribute`, by its key, in the order of the modules' names.

    Raises RuntimeError where a module's key is not its file's name.
    """
    found: dict[str, Any] = {}
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        one = getattr(importlib.import_module(f"{package}.{module.name}"), attribute)
        if one.key != module.name:
            raise RuntimeError(f"{package}.{module.name} declares key {one.key!r}")
        found[one.key] = one
    return found


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    """The same by their `order`, lowest first, and by key where that is equal."""
    return dict(sorted(found.items(), key=lambda item: (item[1].order, item[0])))
