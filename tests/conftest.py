"""Long forms run only where they are asked for: pytest -m soak, pytest -m guard."""

from __future__ import annotations

import pytest

LONG = ("soak", "guard")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    unasked = [name for name in LONG if name not in config.option.markexpr]
    long = [item for item in items if any(item.get_closest_marker(name) for name in unasked)]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
