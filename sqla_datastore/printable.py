"""Text for messages, logs and terminals: what files, rows and the file system say, made harmless.

A name in an object, a URL in a row, the name of a file and a key may hold anything, also what a
terminal obeys: escape sequences that hide or rewrite lines, controls that turn the direction of
text, line breaks that look like another record of a log. Every error of this library, every
``repr`` of a value, every line of a report and every record of the log passes here.
"""

from __future__ import annotations

LONGEST_MESSAGE = 4_000
"""How many characters of a message are shown: a name or URL may have millions."""


def printable(text: object, longest: int = LONGEST_MESSAGE) -> str:
    r"""Return a text as one line that a terminal shows and does not obey.

    What `str.isprintable` denies (C0 and C1 controls, DEL, controls of direction, line and
    paragraph separators, lone surrogates) becomes an escape as in ``repr``. Nothing else changes,
    not even a backslash: so what went through once stays as it is.

    Args:
        text: a text, or what has one.
        longest: how many characters to return; of a longer text the middle gives way to its length.

    Examples:
        >>> printable("a\x1b[2Jb\u202e\n")
        'a\\x1b[2Jb\\u202e\\n'
        >>> printable("x" * 5_000_000, longest=20)
        'xxxxxxxx…5000000…xxx'
    """
    text = str(text)
    # the cut comes first: an escape takes up to ten characters, so that the last line cuts again
    shown = _shortened(text, longest, len(text))
    if not shown.isprintable():
        shown = "".join(char if char.isprintable() else repr(char)[1:-1] for char in shown)
    return _shortened(shown, longest, len(text))


def hides_nothing(err: BaseException) -> bool:
    """Return whether an error's text can be shown as it is, as Python does with a cause."""
    text = str(err)
    return len(text) <= LONGEST_MESSAGE and text.replace("\n", "").isprintable()


def _shortened(text: str, longest: int, length: int) -> str:
    if len(text) <= longest:
        return text
    mark = f"…{length}…"
    kept = max(0, longest - len(mark))
    # an error begins with what happened and ends with what to do
    end = kept // 3
    return text[: kept - end] + mark + text[len(text) - end :]
