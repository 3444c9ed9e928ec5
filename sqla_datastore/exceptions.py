"""The errors of sqla_datastore.

::

    DataStoreError
    ├── UnsupportedTypeError    (TypeError)          a value that no codec takes, a cycle
    ├── UnsupportedFormatError  (ValueError)         an object of a newer format or an unknown codec
    ├── DamagedObjectError      (ValueError)         an object whose bytes are not what was written
    ├── MissingObjectError      (FileNotFoundError)  a URL without object
    ├── RefusedURLError         (ValueError)         a URL that no storage of ours serves
    ├── StorageError            (OSError)            the storage failed: full, read-only, gone
    ├── StaleValueError         (RuntimeError)       an edit that could not be saved
    ├── CollectError            (ValueError)         entries of several rows that make no table
    ├── RefusedStatementError   (InvalidRequestError) a statement that cannot be followed
    └── ConfigurationError      (ArgumentError)      templates or storages that contradict

A missing entry is a plain `KeyError` or `AttributeError`; no error above is either of them.
None of them is wrapped in SQLAlchemy's ``StatementError``. Their messages are `printable`, whatever
a file or row says; their attributes hold what was found, unchanged. Each class has a code, which
never changes and is a heading of ``docs/errors.md``; the text of an error ends with a link there.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.exc import ArgumentError, DontWrapMixin, InvalidRequestError

from sqla_datastore.printable import LONGEST_MESSAGE, printable

DOCUMENTATION = "https://docs.example.org/sqla_datastore"
"""Where the documentation is published, as pyproject.toml says, too."""

_LONGEST = LONGEST_MESSAGE - 200  # the link has room


def _with_link(message: str, code: str | None, kind: str) -> str:
    """Return a message with the link to what is known of its code."""
    if code is None:
        return message
    link = f"(Background on this {kind} at: {DOCUMENTATION}/errors.html#{code})"
    return f"{message} {link}" if message else link


class DataStoreError(DontWrapMixin, Exception):
    """The root of all errors of this library.

    Its text is the message and a link to what ``docs/errors.md`` says of the error's code.

    Args:
        message: one line; what it quotes of files and rows need not be escaped.

    Attributes:
        code: what kind of error it is; it never changes.
    """

    code: str | None = None

    def __init__(self, message: str = "") -> None:
        super().__init__(printable(message, _LONGEST))

    @property
    def message(self) -> str:
        """The text without the link."""
        return str(self.args[0]) if self.args else ""

    def __str__(self) -> str:
        return _with_link(self.message, self.code, "error")

    def __reduce__(self) -> tuple[Any, ...]:
        # as it is: the constructors of the leaves take other things than the message
        return _unpickled, (type(self), self.args), self.__dict__

    def add_note(self, note: str) -> None:
        """Add a note, escaped as the message is."""
        super().add_note(printable(note))


def _unpickled(cls: type[DataStoreError], args: tuple[Any, ...]) -> DataStoreError:
    error = cls.__new__(cls, *args)
    error.args = args
    return error


class UnsupportedTypeError(DataStoreError, TypeError):
    """A value cannot be stored; nothing was written.

    Attributes:
        column: ``table.column`` that the value was meant for, or None outside a statement.
        entry: where in the value, for example ``'a'`` or ``'a[3]["x"]'``, or None.
        type: the type that no codec takes, or None.
    """

    code = "unsupported-type"

    def __init__(
        self,
        message: str,
        *,
        column: str | None = None,
        entry: str | None = None,
        type: type | None = None,  # noqa: A002 - the attribute's name
    ) -> None:
        super().__init__(message)
        self.column = column
        self.entry = entry
        self.type = type

    @property
    def message(self) -> str:
        """The text without the link."""
        column = f"column {self.column!r}: " if self.column else ""
        return column + super().message


class SchemaMismatchError(UnsupportedTypeError):
    """A value is not what the schema of its column says; nothing was written.

    Attributes:
        entry: the entry that is missing, not listed, or of another type.
    """

    code = "schema-mismatch"


class UnsupportedFormatError(DataStoreError, ValueError):
    """An object needs a reader newer than this one, or a codec that is not registered.

    Attributes:
        url: the object, or None.
        entry: the entry that needs it, or None for the whole object.
    """

    code = "unsupported-format"

    def __init__(self, message: str, *, url: str | None = None, entry: str | None = None) -> None:
        super().__init__(message)
        self.url = url
        self.entry = entry


class DamagedObjectError(DataStoreError, ValueError):
    """An object's bytes are not what was written.

    Attributes:
        url: the object.
        entry: the entry that was asked for, or None for the object's index.
        reason: what does not fit, in words.
        expected: the checksum or size that was written, or None.
        found: the checksum or size that was read, or None.
    """

    code = "damaged-object"

    def __init__(
        self,
        url: str,
        reason: str,
        *,
        entry: str | None = None,
        expected: int | str | None = None,
        found: int | str | None = None,
    ) -> None:
        self.url = url
        self.entry = entry
        self.reason = reason
        self.expected = expected
        self.found = found
        what = f"entry {entry!r} of {url!r}" if entry is not None else repr(url)
        figures = "" if expected is None else f" (expected {expected}, found {found})"
        super().__init__(f"{what} is damaged: {reason}{figures}; restore the object from a backup")


class MissingObjectError(DataStoreError, FileNotFoundError):
    """A URL has no object in the storage.

    Args:
        url: the URL.
        where: the storage, in words.
        why: what may have happened and what to do about it.

    Attributes:
        url: the URL.
    """

    code = "missing-object"

    def __init__(
        self,
        url: str,
        where: str = "the storage",
        why: str = "is the right storage bound?",
    ) -> None:
        super().__init__(f"no object {url!r} in {where}; {why}")
        self.url = url
        self._where = where

    def because(self, why: str) -> MissingObjectError:
        """Return the error with what is known of the row that refers to the object."""
        error = MissingObjectError(self.url, self._where, why)
        error.__cause__ = self.__cause__
        for note in getattr(self, "__notes__", ()):
            error.add_note(note)
        return error


class DefaultStorageWarning(UserWarning):
    """Values are written to the folder ``sqla.datastore``, as nobody has named a storage.

    Attributes:
        code: what kind of warning it is; it never changes.
    """

    code = "default-storage"

    def __str__(self) -> str:
        return _with_link(super().__str__(), self.code, "warning")


class RefusedURLError(DataStoreError, ValueError):
    """A URL or folder that this library does not serve.

    Attributes:
        url: the text that was refused.
        reason: why.
    """

    code = "refused-url"

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(f"refused {url!r}: {reason}")
        self.url = url
        self.reason = reason


class StorageError(DataStoreError, OSError):
    """The storage could not do what it was asked; the cause is chained.

    Attributes:
        url: the object or storage that was meant, or None.
        no_answer: whether the storage did not answer at all, or was busy for as long as one waits.
            Then asking it for another object would take as long, in vain.
    """

    code = "storage"

    def __init__(self, message: str, *, url: str | None = None, no_answer: bool = False) -> None:
        super().__init__(message)
        self.url = url
        self.no_answer = no_answer


class StaleValueError(DataStoreError, RuntimeError):
    """An edit that could not be saved, or a value that is not usable any more."""

    code = "stale-value"


class CollectError(DataStoreError, ValueError):
    """Entries of several rows do not make one table.

    Attributes:
        row: the row whose entry does not fit, in words, or None where it is no single one.
        entry: the entry's name, or None where a column of the rows is meant.
    """

    code = "collect"

    def __init__(self, message: str, *, row: str | None = None, entry: str | None = None) -> None:
        super().__init__(message)
        self.row = row
        self.entry = entry


class RefusedStatementError(DataStoreError, InvalidRequestError):
    """A statement whose effect on stored objects cannot be followed; it did not run."""

    code = "refused-statement"


class ConfigurationError(DataStoreError, ArgumentError):
    """Columns, templates or storages that contradict each other."""

    code = "configuration"
