"""Templates of two tables whose rows could get the same folder.

A row that owns a folder removes all that it finds there, so no other table's row may put an object
into it, but for a child row whose foreign key names the owner.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from sqla_datastore.exceptions import ConfigurationError, RefusedURLError
from sqla_datastore.schema.columns import DeclaredColumn, DeclaredTable
from sqla_datastore.schema.folders import FolderTemplate
from sqla_datastore.schema.path_segments import Segment
from sqla_datastore.storage.binding import storage_for
from sqla_datastore.storage.protocol import Storage


def refuse_conflicts(tables: Sequence[DeclaredTable]) -> None:
    """Refuse templates of different tables, in one storage, that can meet.

    Args:
        tables: all declared tables of a MetaData.

    Raises:
        ConfigurationError: the rows of one table could own what rows of another put there.
    """
    places = list(_places(tables))
    for template, storage in places:
        for other, other_storage in places:
            # two names of one base are one `Storage`, or equal ones
            are_two = template.table is not other.table and storage == other_storage
            if template.owns and are_two:
                _refuse_conflict(template, other)


def _places(
    tables: Sequence[DeclaredTable],
) -> Iterator[tuple[FolderTemplate, Storage | None]]:
    """Yield each template with its storage, None where the engine has it.

    The folder of a class is in every storage: it holds what rows of other tables put there.
    """
    everywhere = dict.fromkeys(_explicit(c) for table in tables for c in table.columns)
    for table in tables:
        yield from ((column.folder, _explicit(column)) for column in table.columns)
        if table.class_folder:
            yield from ((table.class_folder, storage) for storage in everywhere or [None])


def _explicit(column: DeclaredColumn) -> Storage | None:
    return None if column.type.url is None else storage_for(column.type.url, None)


def _refuse_conflict(owned: FolderTemplate, other: FolderTemplate) -> None:
    if not can_meet(owned, other) or is_child(owned, other):
        return
    raise ConfigurationError(
        f"the folders {owned.template!r} of table {owned.table.name!r} and {other.template!r} of "
        f"table {other.table.name!r} can be the same; start one of them with a name of its own, or "
        f"give {other.table.name!r} a foreign key, and no deferrable one, to the row that owns the "
        "folder"
    )


def can_meet(owned: FolderTemplate, other: FolderTemplate) -> bool:
    """Return whether a folder of the other template could be, or lie in, an owned one."""
    # a shorter path is above the owned one, and a folder is emptied downwards only
    return len(other.segments) >= len(owned.segments) and all(
        mine.meets(theirs) for mine, theirs in zip(owned.segments, other.segments, strict=False)
    )


def is_child(owned: FolderTemplate, other: FolderTemplate) -> bool:
    """Return whether the other table's rows name, by foreign key, the row that owns the folder."""
    return all(
        theirs.refers_to(mine) for mine, theirs in zip(owned.segments, other.segments, strict=False)
    )


def refuse_prefix(prefix: str, templates: Iterable[FolderTemplate]) -> None:
    """Refuse a self-managed prefix that falls into folders that rows own.

    Args:
        prefix: a relative storage path.
        templates: the folder templates to look at.

    Raises:
        RefusedURLError: the prefix could be, or lie in, or hold a row's folder.
    """
    segments = prefix.strip("/").split("/")
    for template in templates:
        if meets(template, segments):
            raise RefusedURLError(
                prefix,
                f"it meets the folders {template.template!r} of table {template.table.name!r}; "
                "choose a prefix with a name of its own",
            )


def meets(template: FolderTemplate, segments: Sequence[str]) -> bool:
    """Return whether a row's folder could be, lie in or hold the given one, fresh ones too."""
    return all(
        segment.meets(Segment.constant(text)) or segment.matches(text)
        for segment, text in zip(template.segments, segments, strict=False)
    )
