"""What any figure has to have."""

from __future__ import annotations

from typing import Any

import numpy as np


def assert_readable(figure: Any) -> None:
    """Each axis shows something within its limits, and says what its coordinates are."""
    assert figure.axes, "empty: no axis"
    figure.canvas.draw()
    for axis in figure.axes:
        assert any(map(_shows, [*axis.lines, *axis.collections, *axis.images])), f"{axis.get_title()!r} is empty"
        if axis.axison and axis.get_label() != "<colorbar>":
            assert axis.get_xlabel(), f"the x axis of {axis.get_title()!r} has no name"
            assert axis.get_ylabel() or axis.get_title(), "a y axis has no name"
        elif axis.axison:
            assert axis.get_xlabel() or axis.get_ylabel(), "a colour bar has no name"


def _shows(artist: Any) -> bool:
    """Whether something of it can be seen: a single point only with a marker."""
    if not artist.get_visible():
        return False
    if not hasattr(artist, "get_xydata"):
        array = artist.get_array() if artist.get_array() is not None else artist.get_paths()
        return len(array) > 0
    points = np.asarray(artist.get_xydata(), dtype=float)
    count = np.isfinite(points).all(1).sum() if len(points) else 0
    return bool(count > 1 or (count == 1 and artist.get_marker() not in ("", "None", None)))
