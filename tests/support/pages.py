"""The code of the documentation's pages."""

from __future__ import annotations


def code_blocks(page: str) -> str:
    """Return the Python blocks as one script in which every line has the page's number."""
    lines, inside = [], False
    for line in page.splitlines():
        if inside and line == "```":
            inside = False
        lines.append(line if inside else "")
        if line == "```python":
            inside = True
    return "\n".join(lines)
