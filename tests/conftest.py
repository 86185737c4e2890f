"""Long forms run only where they are asked for: pytest -m soak, zoo or guard."""

from __future__ import annotations

import pytest

LONG = ("soak", "zoo", "guard")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = [marker for marker in LONG if marker not in config.option.markexpr]
    long = [item for item in items if any(item.get_closest_marker(marker) for marker in left_out)]
    if long:
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in set(long)]
