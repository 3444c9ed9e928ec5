"""The unit of work of objects: what one database transaction does to the storage.

A `Transaction` belongs to one database transaction of one driver's connection. It keeps a `Ledger`
(what was written, what rows came to refer to and ceased to), and `ReferringRows` (which rows to
ask). `outcome` names how it can end, `writing` writes objects, `commit_checks` knows the Sessions
whose edits are checked before COMMIT. The phases, in order; the engine's room observes the
connection and calls them, unless said otherwise:

==================  ======================================================  =====================
phase               called                                                  may fail
==================  ======================================================  =====================
`write`             before a statement under AUTOCOMMIT, which commits      yes: it does not run
                    itself; else as a part of `carry_out`
`carry_out`         after each statement's execution, or, for those of an   yes: the statement or
                    ORM flush, at its end by the Session's listener: logs   flush fails
                    what rows adopt and drop, writes, lists folders
`log_failed`        after a statement that failed: logs without certainty   no
                    what it may have done all the same
`begin_savepoint`,  once the database has set, released or rolled back to   no
`release`,          a savepoint
`rollback_to`
`prepare`           before the driver's COMMIT or PREPARE: refuses edits    yes: the driver is
                    that no flush has saved, then calls `decide`            rolled back at once
`decide`            by `prepare`, and after a statement under AUTOCOMMIT:   yes: as its caller
                    asks which rows hold what, makes durable, writes
                    removals down
`end(COMMITTED)`    once COMMIT has certainly succeeded: puts back the      no: failures are logged
                    values that no row got, removes what it superseded
`end(ROLLED_BACK)`  once ROLLBACK is certain: puts values back, removes     no: failures are logged
                    what was written
`end(Unknown(…))`   when nobody can tell: keeps both sides, logs why        no
==================  ======================================================  =====================
"""
