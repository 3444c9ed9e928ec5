"""Small plots as SVG: a line, a histogram. No script, no style of their own: the page has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Final

_WIDTH: Final = 480
_HEIGHT: Final = 120
_MOST_POINTS: Final = 480
_BINS: Final = 32


def line_plot(values: Any, title: str) -> str:
    """Return the SVG of numbers over their position; of many, the lowest and highest of each piece.

    Args:
        values: a one-dimensional array of real numbers; what is not finite leaves a gap.
        title: for who cannot see it; escaped by the caller.

    Returns:
        The SVG, or "" where there are fewer than two finite numbers.
    """
    import numpy as np

    numbers = np.asarray(values, float)
    is_finite = np.isfinite(numbers)
    if np.count_nonzero(is_finite) < 2:
        return ""
    low, high = float(numbers[is_finite].min()), float(numbers[is_finite].max())
    points = _thinned(numbers)
    last = max(len(numbers) - 1, 1)
    runs: list[list[str]] = [[]]
    for place, number in points:
        if math.isfinite(number):
            runs[-1].append(f"{place / last * _WIDTH:.1f},{_down(number, low, high):.1f}")
        elif runs[-1]:
            runs.append([])
    lines = "".join(
        f'<polyline class="line" points="{" ".join(run)}"/>' for run in runs if len(run) > 1
    )
    return _framed(lines, title, (number_text(low), number_text(high)), ("0", str(last)))


def histogram(values: Any, title: str) -> str:
    """Return the SVG of how often numbers occur.

    Args:
        values: an array of real numbers; what is not finite is left out.
        title: for who cannot see it; escaped by the caller.

    Returns:
        The SVG, or "" without finite numbers.
    """
    import numpy as np

    numbers = np.asarray(values, float).ravel()
    numbers = numbers[np.isfinite(numbers)]
    if not numbers.size:
        return ""
    low, high = float(numbers.min()), float(numbers.max())
    # numbers that are nearly equal, or nearly the largest ones, have no bins between them
    if not math.isfinite(high - low) or high - low <= 1e-12 * max(abs(low), abs(high), 1e-300):
        return ""
    counts, edges = np.histogram(numbers, bins=_BINS)
    top = int(counts.max())
    bars = "".join(
        f'<rect class="bar" x="{_across(left, low, high) + 0.5:.1f}" '
        f'y="{_down(count, 0, top):.1f}" '
        f'width="{_across(right, low, high) - _across(left, low, high) - 1:.1f}" '
        f'height="{_HEIGHT - _down(count, 0, top):.1f}"/>'
        for count, (left, right) in zip(counts.tolist(), pairwise(edges.tolist()), strict=True)
        if count
    )
    return _framed(bars, title, ("0", str(top)), (number_text(low), number_text(high)))


def number_text(number: Any) -> str:
    """Return a number in few characters.

    Examples:
        >>> number_text(0.1234567), number_text(3), number_text(1e-9)
        ('0.1235', '3', '1e-09')
    """
    return str(number) if isinstance(number, (int, bool)) else f"{number:.4g}"


def _thinned(numbers: Any) -> Sequence[tuple[int, float]]:
    """Return the points to draw: all of them, or the lowest and highest of each piece."""
    import numpy as np

    if len(numbers) <= _MOST_POINTS:
        return list(enumerate(numbers.tolist()))
    points: list[tuple[int, float]] = []
    start = 0
    for piece in np.array_split(numbers, _MOST_POINTS // 2):
        if np.isfinite(piece).any():
            places = {int(np.nanargmin(piece)), int(np.nanargmax(piece))}
            points += [(start + place, float(piece[place])) for place in sorted(places)]
        else:
            points.append((start, math.nan))
        start += len(piece)
    return points


def _across(number: float, low: float, high: float) -> float:
    return (number - low) / (high - low) * _WIDTH


def _down(number: float, low: float, high: float) -> float:
    # halves: the difference of two large numbers may be none
    span = high / 2 - low / 2
    return _HEIGHT - ((number / 2 - low / 2) / span * _HEIGHT if span > 0 else _HEIGHT / 2)


def _framed(inner: str, title: str, vertical: tuple[str, str], horizontal: tuple[str, str]) -> str:
    left = 64
    return (
        f'<svg class="plot" viewBox="0 0 {left + _WIDTH + 8} {_HEIGHT + 30}" role="img">'
        f"<title>{title}</title>"
        f'<g transform="translate({left} 6)">'
        f'<path class="axis" d="M0 0V{_HEIGHT}H{_WIDTH}"/>{inner}'
        f'<text class="end" x="-6" y="{_HEIGHT}">{vertical[0]}</text>'
        f'<text class="end" x="-6" y="10">{vertical[1]}</text>'
        f'<text x="0" y="{_HEIGHT + 16}">{horizontal[0]}</text>'
        f'<text class="end" x="{_WIDTH}" y="{_HEIGHT + 16}">{horizontal[1]}</text>'
        "</g></svg>"
    )
