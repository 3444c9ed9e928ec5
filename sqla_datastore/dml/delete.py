"""What a DELETE does to objects."""

from __future__ import annotations

from typing_extensions import override

from sqla_datastore.dml.affected import AffectedRows
from sqla_datastore.dml.effects import Effects
from sqla_datastore.dml.statement import Statement


class DeleteStatement(Statement):
    """One execution of a DELETE: the rows' objects go, and the folders that they own."""

    @override
    def effects(self) -> Effects:
        effects = Effects(self.declared)
        affected = AffectedRows(
            self.connection,
            self.context,
            self.context.compiled,
            self.dml.whereclause,
            self.declared,
        )
        for _, rows in affected.by_parameters(self.declared.columns):
            for row in rows:
                for column, url in row.urls.items():
                    effects.drop(row, self.names(column, url))
                effects.folders.extend(self.owned_folders(row))
        return effects
