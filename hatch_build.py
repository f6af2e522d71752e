"""Puts the demo application into the wheel.

``workers/`` rides along as ``sagakit/_demo/workers``: ``sagakit demo`` works without a clone, and nobody gets a
top-level package called ``workers`` installed. Not in an editable installation, where it would be a stale copy.
"""

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class DemoApplication(BuildHookInterface[Any]):
    """Adds the folder to what the wheel is built from."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Called by hatchling before the build; ``version`` is the kind of build."""
        if version != "editable":
            build_data["force_include"]["workers"] = "sagakit/_demo/workers"
