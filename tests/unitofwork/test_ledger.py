"""The ledger alone, over a storage that is a set of names: what stays and goes at each end."""

from __future__ import annotations

import contextlib
import logging

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sqla_datastore.storage.urls import ObjectName
from sqla_datastore.unitofwork.ledger import Ledger


class DiskError(OSError):
    """What an injected fault raises."""


class Names:
    """A storage that is a set of names; the call that `fails_at` counts down to raises.

    Attributes:
        paths: what lies there.
        durable: what survives a crash.
        calls: how many calls it took.
        does_part: whether the failing call does its work for the first path before it raises.
    """

    def __init__(self, paths=()):
        self.paths = set(paths)
        self.durable = set(paths)
        self.calls = 0
        self.fails_at = None
        self.does_part = False

    def _begin(self, paths):
        call, self.calls = self.calls, self.calls + 1
        if call != self.fails_at:
            return list(paths), None
        return list(paths)[: int(self.does_part)], DiskError("no space left")

    def remove(self, paths):
        done, error = self._begin(paths)
        self.paths.difference_update(done)
        self.durable.difference_update(done)
        if error:
            raise error

    def make_durable(self, paths):
        done, error = self._begin(paths)
        missing = set(done) - self.paths
        assert not missing, f"asked to make durable what is not there: {missing}"
        self.durable.update(done)
        if error:
            raise error


def none(_names, _listed):
    """No row refers to a listed name."""
    return set()


def written(ledger, storage, *paths):
    """Write objects as a statement does, and return their names."""
    names = [ObjectName(storage, path) for path in paths]
    ledger.write(names)
    storage.paths.update(paths)
    ledger.wrote(names)
    return names


def inserted(ledger, storage, *paths):
    names = [ObjectName(storage, path) for path in paths]
    ledger.adopt(names)
    return written(ledger, storage, *paths)


def names_of(storage, *paths):
    return [ObjectName(storage, path) for path in paths]


# -- one property each ---------------------------------------------------------------------------


def test_a_new_ledger_is_empty_and_each_end_does_nothing():
    for end in ("finish", "abort"):
        storage, ledger = Names({"a"}), Ledger()
        assert ledger.is_empty
        if end == "finish":
            ledger.prepare(none)
        getattr(ledger, end)()
        assert (storage.paths, storage.calls) == ({"a"}, 0)


def test_what_was_written_is_durable_before_commit_and_nothing_is_removed_before():
    storage, ledger = Names({"old"}), Ledger()
    ledger.drop(names_of(storage, "old"))
    inserted(ledger, storage, "new")
    ledger.prepare(none)
    assert storage.paths == {"old", "new"}
    assert "new" in storage.durable
    ledger.finish()
    assert storage.paths == {"new"}
    assert ledger.is_empty


def test_abort_removes_what_was_written_and_nothing_else():
    storage, ledger = Names({"old", "listed"}), Ledger()
    ledger.drop(names_of(storage, "old"))
    ledger.listed(names_of(storage, "listed"))
    inserted(ledger, storage, "new")
    ledger.abort()
    assert storage.paths == {"old", "listed"}
    assert ledger.is_empty


def test_abort_after_prepare_removes_what_was_written_and_nothing_else():
    storage, ledger = Names({"old"}), Ledger()
    ledger.drop(names_of(storage, "old"))
    inserted(ledger, storage, "new")
    ledger.prepare(none)
    ledger.abort()
    assert storage.paths == {"old"}


def test_an_object_that_no_row_took_goes_at_commit():
    storage, ledger = Names(), Ledger()
    written(ledger, storage, "unused")
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == set()


def test_a_superseded_name_can_be_adopted_again():
    storage, ledger = Names({"old"}), Ledger()
    (old,) = names_of(storage, "old")
    assert not ledger.is_superseded(old)
    ledger.drop([old])
    inserted(ledger, storage, "new")
    assert ledger.is_superseded(old)
    ledger.drop(names_of(storage, "new"))
    ledger.adopt([old])
    assert not ledger.is_superseded(old)
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"old"}


def test_the_drop_of_a_rolled_back_savepoint_supersedes_nothing():
    storage, ledger = Names({"old"}), Ledger()
    (old,) = names_of(storage, "old")
    ledger.begin_savepoint("s")
    ledger.drop([old])
    ledger.rollback_to("s")
    assert not ledger.is_superseded(old)
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"old"}


def test_a_released_savepoint_is_rolled_back_with_the_one_around_it():
    storage, ledger = Names({"old"}), Ledger()
    undone = []
    ledger.begin_savepoint("outer")
    ledger.begin_savepoint("inner")
    ledger.drop(names_of(storage, "old"))
    inserted(ledger, storage, "new")
    ledger.on_rollback(ObjectName(storage, "new"), lambda: undone.append("inner"))
    ledger.release("inner")
    assert not undone
    ledger.rollback_to("outer")
    assert undone == ["inner"]
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"old"}


def test_a_savepoint_stays_after_a_rollback_to_it():
    storage, ledger = Names({"old"}), Ledger()
    ledger.begin_savepoint("s")
    for path in ("one", "two"):
        ledger.drop(names_of(storage, "old"))
        inserted(ledger, storage, path)
        ledger.rollback_to("s")
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"old"}


def test_the_inner_of_two_savepoints_of_one_name_is_meant():
    storage, ledger = Names(), Ledger()
    ledger.begin_savepoint("s")
    inserted(ledger, storage, "one")
    ledger.begin_savepoint("s")
    inserted(ledger, storage, "two")
    ledger.rollback_to("s")
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"one"}


def test_rolling_back_to_a_savepoint_from_before_the_ledger_undoes_everything():
    storage, ledger = Names({"old"}), Ledger()
    undone = []
    ledger.drop(names_of(storage, "old"))
    inserted(ledger, storage, "new")
    ledger.on_rollback(ObjectName(storage, "new"), lambda: undone.append(1))
    ledger.begin_savepoint("later")
    ledger.rollback_to("earlier")
    assert undone == [1]
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"old"}


def test_releasing_an_unknown_savepoint_changes_nothing():
    storage, ledger = Names(), Ledger()
    ledger.begin_savepoint("s")
    inserted(ledger, storage, "new")
    ledger.release("earlier")
    ledger.rollback_to("s")
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == set()


def test_values_are_put_back_newest_first_even_if_one_fails(caplog):
    ledger, undone = Ledger(), []

    def fails():
        raise ValueError("broken value")

    for undo in (lambda: undone.append(1), fails, lambda: undone.append(2)):
        ledger.on_rollback(ObjectName(Names(), "new"), undo)
    ledger.abort()
    assert undone == [2, 1]
    assert "could not be put back" in caplog.text


def test_values_that_no_row_got_are_put_back_alone():
    storage, ledger, undone = Names(), Ledger(), []
    for path in ("one", "two", "three"):
        inserted(ledger, storage, path)
        ledger.on_rollback(ObjectName(storage, path), lambda path=path: undone.append(path))
    ledger.undo(names_of(storage, "one", "three"))
    assert undone == ["three", "one"]
    ledger.abort()
    assert undone == ["three", "one", "two"]


def test_values_are_not_put_back_after_commit():
    ledger, undone = Ledger(), []
    ledger.on_rollback(ObjectName(Names(), "new"), lambda: undone.append(1))
    ledger.prepare(none)
    ledger.finish()
    ledger.abort()
    assert undone == []


def test_listed_names_go_unless_a_row_refers_to_them():
    storage, ledger = Names({"orphan", "referenced", "adopted"}), Ledger()
    asked = []

    def referenced(names, _listed):
        asked.append({name.path for name in names})
        return {name for name in names if name.path == "referenced"}

    ledger.listed(names_of(storage, "orphan", "referenced", "adopted"))
    inserted(ledger, storage, "adopted")
    ledger.prepare(referenced)
    ledger.finish()
    assert asked == [{"orphan", "referenced"}]
    assert storage.paths == {"referenced", "adopted"}


def test_nothing_is_asked_where_nothing_was_superseded_or_listed():
    storage, ledger = Names({"old"}), Ledger()

    def referenced(names, _listed):
        raise AssertionError(f"asked for {names}")

    ledger.begin_savepoint("s")
    ledger.drop(names_of(storage, "old"))
    inserted(ledger, storage, "lost")
    ledger.rollback_to("s")
    inserted(ledger, storage, "new")
    ledger.prepare(referenced)
    ledger.finish()
    assert storage.paths == {"old", "new"}


def test_what_a_row_holds_in_spite_of_its_statement_stays():
    storage, ledger = Names({"old", "held"}), Ledger()
    ledger.drop(names_of(storage, "old", "held"))
    ledger.prepare(lambda names, _listed: {name for name in names if name.path == "held"})
    ledger.finish()
    assert storage.paths == {"held"}


def test_what_is_known_of_a_listed_name_counts():
    storage, ledger = Names({"old"}), Ledger()
    asked = []

    def referenced(names, _listed):
        asked.append({name.path for name in names})
        return set()

    ledger.drop(names_of(storage, "old"))
    ledger.listed(names_of(storage, "old", "new"))
    inserted(ledger, storage, "new")
    ledger.prepare(referenced)
    ledger.finish()
    assert asked == [{"old"}]
    assert storage.paths == {"new"}


@pytest.mark.parametrize("refers", [True, False])
def test_an_adopted_name_that_is_listed_later_is_asked_about(refers):
    """A cascade may have deleted its row since."""
    storage, ledger = Names(), Ledger()
    inserted(ledger, storage, "new")
    ledger.listed(names_of(storage, "new"))
    ledger.prepare(lambda names, _listed: names if refers else set())
    ledger.finish()
    assert storage.paths == ({"new"} if refers else set())


def test_names_listed_in_a_rolled_back_savepoint_stay():
    storage, ledger = Names({"orphan"}), Ledger()
    ledger.begin_savepoint("s")
    ledger.listed(names_of(storage, "orphan"))
    ledger.rollback_to("s")
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == {"orphan"}


def test_a_write_that_broke_off_is_incomplete_until_its_savepoint_is_rolled_back():
    storage, ledger = Names(), Ledger()
    ledger.begin_savepoint("s")
    ledger.adopt(names_of(storage, "half"))
    ledger.write(names_of(storage, "half"))
    storage.paths.add("half")
    assert ledger.incomplete() == set(names_of(storage, "half"))
    ledger.rollback_to("s")
    assert ledger.incomplete() == set()
    ledger.prepare(none)
    ledger.finish()
    assert storage.paths == set()
    assert storage.durable == set()


def test_the_same_path_in_two_storages_is_two_objects():
    one, two, ledger = Names({"x"}), Names(), Ledger()
    ledger.drop(names_of(one, "x"))
    inserted(ledger, two, "x")
    ledger.prepare(none)
    ledger.finish()
    assert (one.paths, two.paths) == (set(), {"x"})


def test_forget_keeps_both_sides_and_says_so(caplog):
    storage, ledger = Names({"old"}), Ledger()
    ledger.drop(names_of(storage, "old"))
    inserted(ledger, storage, "new")
    with caplog.at_level(logging.WARNING, "sqla_datastore"):
        ledger.forget("the connection was lost")
    assert storage.paths == {"old", "new"}
    assert storage.calls == 0
    assert "the connection was lost" in caplog.text
    assert "2 objects" in caplog.text
    assert ledger.is_empty


def test_forgetting_nothing_says_nothing(caplog):
    Ledger().forget("the connection was lost")
    assert not caplog.records


# -- a fault at every storage call ---------------------------------------------------------------


def _script(ledger, one, two):
    """Insert, update, delete and list in two storages, savepoints included."""
    ledger.drop(names_of(one, "a"))
    inserted(ledger, one, "b", "c")
    ledger.begin_savepoint("s")
    inserted(ledger, two, "d")
    ledger.rollback_to("s")
    ledger.drop(names_of(two, "e"))
    inserted(ledger, two, "f")
    ledger.listed(names_of(two, "orphan"))


BEFORE = {"a", "same"}, {"e", "orphan"}
AFTER = {"same", "b", "c"}, {"f"}


def _places(which, call, does_part):
    one, two = Names(BEFORE[0]), Names(BEFORE[1])
    failing = (one, two)[which]
    failing.fails_at, failing.does_part = call, does_part
    return one, two


@pytest.mark.parametrize("does_part", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_a_failing_durability_barrier_is_raised_and_abort_restores_what_was(which, does_part):
    one, two = _places(which, 0, does_part)
    ledger = Ledger()
    _script(ledger, one, two)
    with pytest.raises(DiskError):
        ledger.prepare(none)
    ledger.abort()
    assert (one.paths, two.paths) == BEFORE
    assert ledger.is_empty


@pytest.mark.parametrize("does_part", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_a_failing_removal_after_commit_is_logged_and_loses_nothing(caplog, which, does_part):
    one, two = _places(which, 1, does_part)
    ledger = Ledger()
    _script(ledger, one, two)
    ledger.prepare(none)
    ledger.finish()
    assert AFTER[0] <= one.paths
    assert AFTER[1] <= two.paths
    untouched = (two, one)[which]
    assert untouched.paths == AFTER[1 - which], "the other storage is cleaned all the same"
    assert "could not remove" in caplog.text
    assert ledger.is_empty


@pytest.mark.parametrize("does_part", [False, True])
@pytest.mark.parametrize("which", [0, 1])
def test_a_failing_removal_after_rollback_is_logged_and_loses_nothing(caplog, which, does_part):
    one, two = _places(which, 0, does_part)
    ledger = Ledger()
    _script(ledger, one, two)
    ledger.abort()
    assert BEFORE[0] <= one.paths
    assert BEFORE[1] <= two.paths
    untouched = (two, one)[which]
    assert untouched.paths == BEFORE[1 - which]
    assert "could not remove" in caplog.text
    assert ledger.is_empty


def test_a_failing_question_is_raised_and_abort_restores_what_was():
    one, two = Names(BEFORE[0]), Names(BEFORE[1])
    ledger = Ledger()
    _script(ledger, one, two)

    def referenced(_names, _listed):
        raise DiskError("the database went away")

    with pytest.raises(DiskError):
        ledger.prepare(referenced)
    ledger.abort()
    assert (one.paths, two.paths) == BEFORE


# -- any sequence of operations ------------------------------------------------------------------


class World:
    """What the ledger does not know: rows, values, and the savepoints of the database."""

    def __init__(self, rows):
        self.rows = dict(rows)
        self.values = dict.fromkeys(rows, 0)

    def copy(self):
        twin = World(self.rows)
        twin.values = dict(self.values)
        return twin


class Transactions(RuleBasedStateMachine):
    """Transactions one after the other; the storage is compared with the rows after each."""

    @initialize(slots=st.integers(1, 4), orphans=st.integers(0, 2), others=st.integers(0, 2))
    def start(self, slots, orphans, others):
        self.count = 0
        rows = {slot: self._fresh() for slot in range(slots)}
        self.others = {self._fresh() for _ in range(others)}
        self.orphans = {self._fresh() for _ in range(orphans)}
        self.storage = Names({*rows.values(), *self.others, *self.orphans})
        self.world = World(rows)
        self._begin()

    def _fresh(self):
        self.count += 1
        return f"name-{self.count}"

    def _begin(self):
        self.ledger = Ledger()
        self.before = self.world.copy(), set(self.storage.paths), set(self.orphans)
        self.savepoints = []
        self.storage.calls, self.storage.fails_at = 0, None

    def _names(self, paths):
        return [ObjectName(self.storage, path) for path in paths]

    slots = st.integers(0, 3)

    @rule(slot=slots, completes=st.booleans() | st.just(True))
    def put(self, slot, completes):
        """INSERT or UPDATE a row; a write that breaks off fails the statement's savepoint."""
        path, old = self._fresh(), self.world.rows.get(slot)
        if not completes:
            self.ledger.begin_savepoint("statement")
        if old:
            self.ledger.drop(self._names([old]))
        self.ledger.adopt(self._names([path]))
        self.ledger.write(self._names([path]))
        self.storage.paths.add(path)
        if not completes:
            assert self.ledger.incomplete() == set(self._names([path]))
            self.ledger.rollback_to("statement")
            self.ledger.release("statement")
            return
        self.ledger.wrote(self._names([path]))
        stored = self.world.values.get(slot)
        self.world.rows[slot] = path
        self.world.values[slot] = self.count

        def undo():
            self.world.values[slot] = stored

        self.ledger.on_rollback(self._names([path])[0], undo)

    @rule(slot=slots, lists=st.booleans())
    def delete(self, slot, lists):
        """DELETE a row; its folder holds whatever lies there."""
        old = self.world.rows.pop(slot, None)
        if old:
            self.ledger.drop(self._names([old]))
        if lists:
            self.ledger.listed(self._names(self.storage.paths))
            self.orphans.clear()

    @rule(slot=slots, data=st.data())
    def revive(self, slot, data):
        """Bind a name again that a row held when the transaction came."""
        held = [
            path
            for path in sorted(self.before[0].rows.values())
            if self.ledger.is_superseded(ObjectName(self.storage, path))
        ]
        if held:
            path = data.draw(st.sampled_from(held))
            old = self.world.rows.get(slot)
            if old:
                self.ledger.drop(self._names([old]))
            self.ledger.adopt(self._names([path]))
            self.world.rows[slot] = path

    @precondition(lambda self: len(self.savepoints) < 4)
    @rule()
    def savepoint(self):
        name = f"s{len(self.savepoints)}"
        self.ledger.begin_savepoint(name)
        self.savepoints.append((name, self.world.copy(), set(self.orphans)))

    @precondition(lambda self: self.savepoints)
    @rule(data=st.data())
    def release(self, data):
        level = data.draw(st.integers(0, len(self.savepoints) - 1))
        self.ledger.release(self.savepoints[level][0])
        del self.savepoints[level:]

    @precondition(lambda self: self.savepoints)
    @rule(data=st.data())
    def rollback_to(self, data):
        level = data.draw(st.integers(0, len(self.savepoints) - 1))
        name, world, orphans = self.savepoints[level]
        self.ledger.rollback_to(name)
        assert {k: v for k, v in self.world.values.items() if v is not None} == {
            k: v for k, v in world.values.items() if v is not None
        }
        self.world, self.orphans = world.copy(), set(orphans)
        del self.savepoints[level + 1 :]

    @rule(
        outcome=st.sampled_from(["commit", "commit", "rollback", "unprepared", "doubt"]),
        fails=st.booleans(),
        does_part=st.booleans(),
    )
    def end(self, outcome, fails, does_part):
        world, paths, orphans = self.before
        self.storage.does_part = does_part
        expected = {*self.world.rows.values(), *self.others, *self.orphans}
        if outcome == "doubt":
            self.ledger.prepare(self._referenced)
            there = set(self.storage.paths)
            self.ledger.forget("a test")
            assert self.storage.paths == there
            assert expected <= there
            assert paths <= there
            self.orphans = there - set(self.world.rows.values()) - self.others
        elif outcome == "commit":
            self.ledger.prepare(self._referenced)
            assert expected <= self.storage.paths
            assert set(self.world.rows.values()) <= self.storage.durable
            self.storage.fails_at = self.storage.calls if fails else None
            self.ledger.finish()
            assert expected <= self.storage.paths
            if not fails:
                assert self.storage.paths == expected
            self.orphans |= self.storage.paths - expected
        else:
            if outcome == "unprepared":
                self.storage.fails_at = self.storage.calls
                with contextlib.suppress(DiskError):
                    self.ledger.prepare(self._referenced)
            self.storage.fails_at = self.storage.calls if fails else None
            self.ledger.abort()
            assert paths <= self.storage.paths
            if not fails:
                assert self.storage.paths == paths
            live = {k: v for k, v in self.world.values.items() if v is not None}
            assert live == {k: v for k, v in world.values.items() if v is not None}
            self.world = world
            self.orphans = orphans | (self.storage.paths - paths)
        assert self.ledger.is_empty
        self._begin()

    def _referenced(self, names, _listed):
        assert names <= set(self._names(self.storage.paths))
        rows = {*self.world.rows.values(), *self.others}
        return {name for name in names if name.path in rows}

    @invariant()
    def nothing_is_removed_before_the_end(self):
        if hasattr(self, "before"):
            assert self.before[1] <= self.storage.paths


Transactions.TestCase.settings = settings(max_examples=100, stateful_step_count=25, deadline=None)
TestTransactions = Transactions.TestCase
