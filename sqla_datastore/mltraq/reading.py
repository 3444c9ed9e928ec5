"""What one object may take while it is read, and what errors say of it."""

from __future__ import annotations

from sqla_datastore.exceptions import DamagedObjectError, UnsupportedFormatError

LIMIT_BYTES = 2**30
"""What reading one value takes at most, unless the caller says otherwise."""


class Allowance:
    """How many bytes of memory a value and all that it refers to may still take.

    A few bytes of a file can stand for many: a compressed one, or a list that names one and the
    same list twice, which does so again. So everything is counted as often as it is met.
    """

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.left = limit_bytes


class Reading:
    """The reading of one object.

    Args:
        name: its path or URL, for errors.
        allowance: what it may take, together with those that refer to it.
    """

    def __init__(self, name: str, allowance: Allowance) -> None:
        self.name = name
        self.allowance = allowance

    def take(self, size_bytes: int) -> None:
        """Count memory that is going to be used.

        Raises:
            UnsupportedFormatError: it is more than there is left.
        """
        self.allowance.left -= size_bytes
        if self.allowance.left < 0:
            raise self.refused(
                f"reading it takes more than {self.allowance.limit_bytes} bytes of memory; if it "
                "may, give a higher limit_bytes"
            )

    def damaged(self, reason: str) -> DamagedObjectError:
        """Return (not raise) the error for bytes that MLtraq has not written."""
        return DamagedObjectError(self.name, reason)

    def refused(self, reason: str) -> UnsupportedFormatError:
        """Return (not raise) the error for what is not read here."""
        return UnsupportedFormatError(f"refused {self.name!r}: {reason}", url=self.name)
