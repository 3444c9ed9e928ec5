"""What files, rows and the file system say is shown, and obeyed by no terminal or log."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqla_datastore import DataStore, DataStoreType, bind_storage, exceptions
from sqla_datastore.cli import main as cli
from sqla_datastore.exceptions import DamagedObjectError, DataStoreError, UnsupportedTypeError
from sqla_datastore.maintenance import check
from sqla_datastore.printable import LONGEST_MESSAGE, printable

HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\n\x00\x9b31m\x7f\u202e\u2066\u2028\u2029\u200b\ud800"


class Base(DeclarativeBase):
    pass


class Titled(Base):
    __tablename__ = "titled"
    title: Mapped[str] = mapped_column(primary_key=True)
    data: Mapped[DataStore | None] = mapped_column(DataStoreType())


def errors(cls=DataStoreError):
    return [cls, *(leaf for each in cls.__subclasses__() for leaf in errors(each))]


@given(st.text(st.characters()))
def test_any_text_becomes_one_line_and_stays_so(some):
    shown = printable(some)
    assert shown.isprintable()
    assert printable(shown) == shown
    assert not some.isprintable() or shown == some


@given(st.text(st.characters(), min_size=1), st.integers(20, 300))
def test_length_is_bounded(some, longest):
    assert len(printable(some * 100, longest)) <= longest


def test_a_cut_keeps_beginning_and_end():
    shown = printable("refused " + "x" * 10_000_000 + "; give another")
    assert shown.startswith("refused xxx")
    assert "…10000022…" in shown
    assert shown.endswith("xxx; give another")
    assert len(shown) <= LONGEST_MESSAGE


def test_plain_text_of_any_script_is_unchanged():
    for plain in ("naïve ☃ 数据 данные", "C:\\n", "'quoted'"):
        assert printable(plain) == plain


@pytest.mark.parametrize("cls", errors(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("said", [HOSTILE, "/" * 10_000_000], ids=["controls", "length"])
def test_messages_of_errors(cls, said):
    arguments = (said, said) if cls in TWO_TEXTS else (said,)
    err = cls(*arguments)
    err.add_note(said)
    for shown in (str(err), *err.__notes__):
        assert shown.isprintable()
        assert len(shown) <= LONGEST_MESSAGE


TWO_TEXTS = (exceptions.RefusedURLError, exceptions.DamagedObjectError)


def test_attributes_of_errors_hold_what_was_found():
    err = DamagedObjectError(HOSTILE, HOSTILE, entry=HOSTILE)
    assert (err.url, err.reason, err.entry) == (HOSTILE,) * 3
    assert str(UnsupportedTypeError("x", column=HOSTILE)).isprintable()


def test_a_repr_of_a_value_in_memory():
    dtype = np.dtype([(HOSTILE[:-1], "i4")])
    shown = repr(DataStore({HOSTILE * 10_000: 1, "array": np.zeros(1, dtype)}))
    assert all(line.isprintable() and len(line) < 300 for line in shown.split("\n"))
    assert shown.count("\n") == 2


@pytest.fixture
def hostile_rows(tmp_path):
    """An application whose rows have hostile keys and URLs, and whose storage hostile names."""
    database = f"sqlite:///{tmp_path / 'a.db'}"
    engine = create_engine(database)
    bind_storage(engine, tmp_path / "store")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Titled(title="good", data=DataStore(a=1)))
        session.commit()
        for title, url in ((HOSTILE[:-1], "file:///x.zip"), ("url", HOSTILE[:-1])):
            session.execute(
                text("INSERT INTO titled VALUES (:title, :url)"), {"title": title, "url": url}
            )
        session.commit()
    for name in ("\x1b[2J\n\u202e.zip", b"\xff\x1b.zip".decode("utf-8", "surrogateescape")):
        (tmp_path / "store" / name).write_bytes(b"")
    yield engine, database, tmp_path / "store"
    engine.dispose()


def test_output_of_the_command(hostile_rows, capsys):
    _, database, storage = hostile_rows
    arguments = ["--database", database, "--storage", str(storage)]
    assert cli.main(["check", f"{__name__}:Base", *arguments]) == 1
    out, err = capsys.readouterr()
    assert all(line.isprintable() for line in (out + err).split("\n"))
    assert r"\x1b[2J" in out
    cli.main(["check", f"{__name__}:Base", *arguments, "--json"])
    out = capsys.readouterr().out
    assert all(line.isascii() and line.isprintable() for line in out.split("\n"))
    assert HOSTILE[:-1] in [row["url"] for row in json.loads(out)["dangling"]["first"]]


def test_errors_of_the_command(capsys, tmp_path):
    arguments = ["--database", f"sqlite:///{tmp_path}/{HOSTILE}", "--storage", str(tmp_path)]
    assert cli.main(["check", f"{__name__}:Base", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.removesuffix("\n").isprintable()


def test_findings_as_text(hostile_rows):
    engine, _, _ = hostile_rows
    report = check(engine, Base.metadata)
    # files of hostile names are in nobody's way: no URL can hold their names, so none is listed
    assert len(report.dangling) == 2
    assert all(str(each).isprintable() for each in report.dangling)


def test_errors_of_rows(hostile_rows):
    engine, _, _ = hostile_rows
    with Session(engine) as session:
        value = session.get(Titled, "url").data
        assert repr(value).isprintable()
        with pytest.raises(DataStoreError) as caught:
            len(value)
    assert str(caught.value).isprintable()


def test_records_of_the_log(hostile_rows, caplog, monkeypatch):
    """A storage may say anything where it cannot remove."""
    engine, _, _ = hostile_rows

    def fail(self, paths):
        raise exceptions.StorageError(HOSTILE * 10_000)

    monkeypatch.setattr("sqla_datastore.storage.local.LocalStorage.remove", fail)
    with caplog.at_level(logging.DEBUG, "sqla_datastore"), Session(engine) as session:
        session.delete(session.get(Titled, "good"))
        session.commit()
    assert caplog.records
    for record in caplog.records:
        assert record.getMessage().isprintable()
        assert record.exc_info is None or str(record.exc_info[1]).isprintable()
