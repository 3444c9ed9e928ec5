"""Transaction control and DDL in the text of statements, which SQLAlchemy does not see."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from sqla_datastore.dml.dialects import ddl_commits

if TYPE_CHECKING:
    from sqlalchemy.engine import Dialect

# text that starts or ends a transaction or a savepoint behind SQLAlchemy's back
# too much (END of a trigger's body) keeps both sides, too little may lose one
_CONTROL = re.compile(
    r"(?:^|;)\s*(BEGIN|START\s+TRANSACTION|COMMIT|ROLLBACK|ABORT|END|SAVEPOINT|RELEASE"
    r"|PREPARE\s+TRANSACTION|XA|SET\s+(SESSION\s+)?AUTOCOMMIT)\b",
    re.IGNORECASE,
)
# MariaDB, "SQL statements that cause an implicit commit"
_IMPLICIT_COMMIT = re.compile(
    # temporary tables commit nothing
    r"(?:^|;)\s*((CREATE|DROP)(?!\s+TEMPORARY)|ALTER|TRUNCATE|RENAME|GRANT|REVOKE|LOCK|UNLOCK"
    r"|ANALYZE|OPTIMIZE|CHECK|REPAIR|CACHE|LOAD\s+INDEX|FLUSH|RESET|INSTALL|UNINSTALL"
    r"|SET\s+PASSWORD|CHANGE|START|STOP)\b",
    re.IGNORECASE,
)
# anywhere, as in DO blocks: too much costs a look at which columns there are
_DDL = re.compile(r"\b(ALTER|DROP|RENAME)\b", re.IGNORECASE)
_COMMENT = re.compile(r"--[^\n]*|/\*.*?\*/", re.DOTALL)


def controls_transaction(statement: str, dialect: Dialect) -> bool:
    """Return whether a statement's text begins or ends a transaction or a savepoint."""
    plain = _COMMENT.sub(" ", statement)
    if _CONTROL.search(plain):
        return True
    return ddl_commits(dialect) and _IMPLICIT_COMMIT.search(plain) is not None


def drops_things(statement: str) -> bool:
    """Return whether a statement's text may drop or rename tables or columns."""
    return _DDL.search(_COMMENT.sub(" ", statement)) is not None
