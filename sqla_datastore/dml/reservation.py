"""A value in the parameters of a statement, until its row and with it its URL are known."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sqla_datastore.exceptions import RefusedStatementError
from sqla_datastore.storage.protocol import Storage
from sqla_datastore.storage.urls import DataURL, ObjectName, ObjectURL, names_of
from sqla_datastore.value.datastore import DataStore

if TYPE_CHECKING:
    from sqla_datastore.value.saving import ValuePlan


class Reservation(str):
    """Stands in a statement's parameters for a value until its row is known.

    Attributes:
        bound: what was bound, perhaps a plain mapping.
        value: the value; once placed, the one that will be stored.
        url: the URL to send to the database, or None until it is placed.
        storage: where its objects go.
        names: the names of its objects, once it is placed.
        plan: its encoded objects, or None where they are stored already.
    """

    __slots__ = ("bound", "names", "plan", "storage", "url", "value")

    bound: Mapping[str, Any]
    value: DataStore
    url: ObjectURL | None
    storage: Storage
    names: list[ObjectName]
    plan: ValuePlan | None

    def __new__(cls, bound: Mapping[str, Any]) -> Reservation:  # noqa: D102 - the class says it
        # a str, because SQLAlchemy hands it on to the bind processor that a dialect has for String
        self = super().__new__(cls, "sqla-datastore:reserved")
        self.bound = bound
        self.value = bound if isinstance(bound, DataStore) else DataStore(bound)
        self.url = None
        self.plan = None
        return self

    @property
    def is_in_row(self) -> bool:
        """Whether the URL is the value itself."""
        return isinstance(self.url, DataURL)

    @property
    def url_in_row_queries(self) -> str:
        """What `row_queries` return of the URL."""
        return self.url.head if isinstance(self.url, DataURL) else str(self.url)

    def place(self, storage: Storage, url: ObjectURL) -> None:
        """Say where its objects are, or will be."""
        self.storage, self.url = storage, url
        self.names = names_of(storage, url)


def take(bound: list[Reservation], value: Mapping[str, Any]) -> Reservation:
    """Take the reservation of a value out of those that were bound.

    Raises:
        RefusedStatementError: the value was bound as something else.
    """
    # by identity: equal values are objects of their own, and to compare them may load entries
    for position, reservation in enumerate(bound):
        if reservation.bound is value:
            return bound.pop(position)
    raise RefusedStatementError(
        "a value of this statement does not reach its column as a plain parameter; bind it with "
        "the column's own type"
    )
