"""The commands ls, show, export and browse: what they print, write and refuse."""

from __future__ import annotations

import io
import json
import os
import pty
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.lab import FILES, FIRST, HOSTILE, LAST, ROWS, Lab

from sqla_datastore import DataStoreIO, File
from sqla_datastore.cli import main as cli

MODELS = "support.lab:Base"
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


@pytest.fixture
def run(lab, capsys, tmp_path, monkeypatch):
    """Run a command in an empty folder; return its status, stdout and stderr."""
    monkeypatch.chdir(tmp_path)

    def run(command, *arguments):
        status = cli.main([command, MODELS, *arguments, *lab.arguments])
        return status, *capsys.readouterr()

    return run


def test_ls_lists_the_tables(run, lab):
    status, out, _ = run("ls")
    assert status == 0
    assert out.splitlines()[1].split() == [
        "experiments",
        str(ROWS),
        "data",
        f"file://{lab.storage}",
    ]
    status, out, _ = run("ls", "--json")
    assert [(t["table"], t["rows"], t["columns"]) for t in json.loads(out)] == [
        ("experiments", ROWS, ["data"]),
        ("runs", 3, ["data", "extra"]),
    ]


def test_ls_lists_rows(run):
    status, out, _ = run("ls", "experiments", "--limit", "2")
    first = out.splitlines()[1].split()
    assert (status, first[:2]) == (0, [str(FIRST), "first"])
    assert "--offset 2" in out
    _, out, _ = run("ls", "experiments", "--json", "--search", "00000000000f")
    (row,) = json.loads(out)
    assert row["fields"] == {"title": "run 15"}
    assert row["urls"]["data"].startswith("file:///experiments/")


def test_show_lists_entries(run):
    status, out, _ = run("show", "experiments", str(FIRST))
    assert status == 0
    lines = {line.split()[0]: line.split() for line in out.splitlines() if line.split()}
    assert lines["weights"] == ["weights", "numpy.ndarray", "float64", "(64,", "96)", "48.0", "KiB"]
    _, out, _ = run("show", "experiments", str(FIRST), "--json")
    entries = {each["name"]: each for each in json.loads(out)["entries"]["data"]}
    assert entries["weights"]["shape"] == [64, 96]
    assert entries["weights"]["nbytes"] == 64 * 96 * 8
    _, out, _ = run("show", "experiments", str(LAST), "--json")
    assert HOSTILE in [each["name"] for each in json.loads(out)["entries"]["data"]]
    assert "extra: NULL" in run("show", "runs", "a%2Cb,1")[1]


def test_show_shows_an_entry(run):
    _, out, _ = run("show", "experiments", str(FIRST), "history")
    assert "loss (float64)" in out
    assert "(the first 50 of 200 rows)" in out
    _, out, _ = run("show", "experiments", str(FIRST), "evaluation", "scores")
    assert "0.5" in out
    assert "scores" in run("show", "experiments", str(FIRST), "evaluation")[1]
    _, out, _ = run("show", "experiments", str(FIRST), "weights", "--json")
    assert json.loads(out)["view"]["facts"]["shape"] == "(64, 96)"
    assert run("show", "runs", "a%2Cb,1", "n", "--column", "data")[1].endswith("\n1\n")


@pytest.mark.parametrize("arguments", [(), ("labels",), ("report",), (HOSTILE,)], ids=range(4))
def test_what_a_terminal_would_obey_is_shown_harmlessly(run, arguments):
    _, out, _ = run("show", "experiments", str(LAST), *arguments)
    assert "script" in out or arguments == (HOSTILE,)
    assert out.replace("\n", "").isprintable()
    assert run("ls", "experiments", "--search", str(LAST))[1].replace("\n", "").isprintable()


def test_export_names_the_file_after_the_entry(run, tmp_path):
    status, out, _ = run("export", "experiments", str(FIRST), "history", "--to", "csv")
    name = f"experiments-{FIRST}-history.csv"
    assert (status, out) == (0, f"{name}\n")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert len(pd.read_csv(tmp_path / name)) == 200
    status, _, err = run("export", "experiments", str(FIRST), "history", "--to", "csv")
    assert status == 2
    assert "--force" in err
    assert run("export", "experiments", str(FIRST), "history", "--to", "csv", "--force")[0] == 0


EXPORT = ("export", "experiments", str(FIRST), "history", "--to", "csv", "-o")


def test_export_replaces_nothing_unasked_and_no_device_ever(run, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "not there yet")
    assert "--force" in run(*EXPORT, "link.csv")[2]
    assert (tmp_path / "link.csv").is_symlink()
    os.mkfifo(tmp_path / "pipe.csv")
    status, _, err = run(*EXPORT, "pipe.csv", "--force")
    assert (status, (tmp_path / "pipe.csv").is_fifo()) == (2, True), err
    assert "no file that could be replaced" in err
    assert {path.name for path in tmp_path.iterdir()} == {"link.csv", "pipe.csv"}


def test_export_leaves_a_file_that_was_made_meanwhile(run, tmp_path, monkeypatch):
    def write(value: object, kind: str, out: io.BufferedWriter) -> None:
        (tmp_path / "x.csv").write_text("theirs")

    monkeypatch.setattr("sqla_datastore.browsing.exports.export", write)
    status, _, err = run(*EXPORT, "x.csv")
    assert (status, (tmp_path / "x.csv").read_text()) == (2, "theirs"), err
    assert "'x.csv'" in err
    assert [path.name for path in tmp_path.iterdir()] == ["x.csv"]


def test_export_formats(run, tmp_path):
    for kind, entry in [("parquet", "history"), ("npy", "weights"), ("json", "settings")]:
        arguments = ("experiments", str(FIRST), entry, "--to", kind, "-o", f"x.{kind}")
        assert run("export", *arguments)[0] == 0
    assert len(pd.read_parquet(tmp_path / "x.parquet")) == 200
    assert np.load(tmp_path / "x.npy").shape == (64, 96)
    assert json.loads((tmp_path / "x.json").read_text())["layers"] == [64, 32]
    assert run("export", "experiments", str(FIRST), "--to", "zip", "-o", "x.zip")[0] == 0
    assert np.load(tmp_path / "x.zip")["weights"].shape == (64, 96)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A lab with files, one with the name of what a shell runs."""
    lab = Lab(tmp_path_factory.mktemp("files"))
    table = File(io.BytesIO(b"a,b\n"), "../.bashrc.c\u202esv", "text/csv")
    lab.add_files(table=table, plain=File(io.BytesIO(b"x"), "x"), tree={"a": table})
    return lab


def test_show_knows_files(files, capsys):
    row = [MODELS, *files.arguments, "experiments", str(FILES)]
    assert cli.main(["show", *row]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["table", "File", ".bashrc.csv,", "text/csv", "4", "B"] in map(str.split, lines)
    assert cli.main(["show", *row, "--json"]) == 0
    entries = json.loads(capsys.readouterr().out)["entries"]["data"]
    assert [entry.get("file_name") for entry in entries] == [".bashrc.csv", "x", None]
    assert cli.main(["show", *row, "table"]) == 0
    out = capsys.readouterr().out
    assert [part for part in (".bashrc.csv", "text/csv", "4 B", "a,b") if part not in out] == []


def test_a_file_is_exported_as_it_is_under_a_name_of_ours(files, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    row = [MODELS, *files.arguments, "experiments", str(FILES)]
    for entry in ("table", "plain"):
        assert cli.main(["export", *row, entry]) == 0
    assert cli.main(["export", *row, "table", "--to", "zip", "-o", "all.zip"]) == 0
    names = [f"experiments-{FILES}-table.csv", f"experiments-{FILES}-plain.bin"]
    assert capsys.readouterr().out.split() == [*names, "all.zip"]
    assert [(tmp_path / name).read_bytes() for name in names] == [b"a,b\n", b"x"]
    assert DataStoreIO("file:///all.zip", storage=tmp_path).read_deserialize()["value"].read()
    for refused in (["table", "--to", "csv"], ["tree", "--to", "json"], ["tree"], []):
        assert cli.main(["export", *row, *refused, "-o", "refused"]) == 2
        assert "zip" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {*names, "all.zip"}


def test_export_to_stdout(lab, capfdbinary):
    row = [MODELS, "experiments", str(FIRST), "signal", *lab.arguments]
    assert cli.main(["export", *row, "--to", "npy", "-o", "-"]) == 0
    assert np.load(io.BytesIO(capfdbinary.readouterr().out)).shape == (200,)


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("ls", ("nonsense",), "'experiments', 'runs'"),
        ("show", ("experiments", "x"), "its first keys are"),
        ("show", ("experiments", str(FIRST), "x"), "'history'"),
        ("show", ("runs", "a%2Cb,1", "n"), "'data', 'extra'"),
        ("export", ("experiments", str(FIRST), "--to", "csv"), "name an entry"),
        ("export", ("experiments", str(FIRST), "report", "--to", "parquet"), "zip takes every"),
    ],
)
def test_errors_say_what_is_there_and_leave_no_file(run, tmp_path, command, arguments, told):
    status, out, err = run(command, *arguments)
    assert (status, out) == (2, "")
    assert told in err
    assert err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_missing_object_is_told(tmp_path_factory, capsys):
    lab = Lab(tmp_path_factory.mktemp("broken"))
    for path in (lab.storage / "experiments" / str(FIRST)).iterdir():
        path.unlink()
    row = [MODELS, "experiments", str(FIRST)]
    assert cli.main(["show", *row, *lab.arguments]) == 2
    assert cli.main(["export", *row, "history", *lab.arguments, "--to", "csv"]) == 2
    assert str(FIRST) in capsys.readouterr().err


def test_a_storage_that_was_not_named_is_asked_for(lab, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SQLA_DATASTORE_URL", raising=False)
    row = [MODELS, "experiments", str(FIRST)]
    assert cli.main(["show", *row, "--database", lab.database]) == 2
    told = capsys.readouterr().err
    assert "sqla.datastore'; is it the right storage? --storage names it" in told
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setenv("SQLA_DATASTORE_URL", str(lab.storage))
    assert cli.main(["show", *row, "--database", lab.database]) == 0


def on_a_terminal(*command: str) -> str:
    """Return what a command writes to a terminal of 80 columns."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        command, stdout=follower, stdin=subprocess.DEVNULL, cwd=TESTS, env={**os.environ, **PLAIN}
    )
    os.close(follower)
    pieces = []
    try:
        while piece := os.read(leader, 65536):
            pieces.append(piece)
    except OSError:  # Linux's way to say that the other side is closed
        pass
    os.close(leader)
    assert process.wait(60) == 0
    return b"".join(pieces).decode()


PLAIN = {"COLUMNS": "80", "TERM": "xterm"}


def test_a_terminal_gets_a_table_of_rich_with_nothing_to_obey_in_it(lab):
    pytest.importorskip("rich")
    command = [sys.executable, "-m", "sqla_datastore.cli", "show", MODELS, *lab.arguments]
    out = on_a_terminal(*command, "experiments", str(LAST))
    assert "─" in out
    assert "labels" in out
    assert "\x1b[2J" not in out
    assert "\u202e" not in out


def test_a_pipe_that_closes_early_is_no_error(lab):
    command = f"{sys.executable} -m sqla_datastore.cli show {MODELS} experiments {FIRST} weights"
    done = subprocess.run(
        ["bash", "-c", f"{command} {' '.join(lab.arguments)} | head -c 1"],
        capture_output=True,
        check=True,
        cwd=TESTS,
    )
    assert (done.stdout, done.stderr) == (b"t", b"")


def test_browse_serves_the_page_until_it_is_interrupted(lab):
    pytest.importorskip("uvicorn")
    command = [sys.executable, "-m", "sqla_datastore.cli", "browse", MODELS, *lab.arguments]
    process = subprocess.Popen(
        [*command, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=TESTS
    )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().decode().split()[0]
        assert address.startswith("http://127.0.0.1:")
        with urllib.request.urlopen(address, timeout=30) as answer:
            assert b"experiments" in answer.read()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert (process.returncode, err) == (0, b"")


def test_browse_asks_for_a_token_elsewhere(lab, monkeypatch, capsys):
    uvicorn = pytest.importorskip("uvicorn")
    monkeypatch.setattr(uvicorn.Server, "run", lambda self, sockets: None)
    assert cli.main(["browse", MODELS, *lab.arguments, "--host", "0.0.0.0", "--port", "0"]) == 0
    token = capsys.readouterr().out.split()[0].partition("/?token=")[2]
    assert len(token) > 40
    given = ["--port", "0", "--token", "my-own-token"]
    assert cli.main(["browse", MODELS, *lab.arguments, *given]) == 0
    assert "/?token=my-own-token " in capsys.readouterr().out


@pytest.mark.parametrize("token", ["", "short", "with space", "with;semicolon"])
def test_browse_takes_no_token_that_lets_everybody_in(run, token):
    pytest.importorskip("uvicorn")
    status, out, err = run("browse", "--host", "0.0.0.0", "--port", "0", "--token", token)
    assert (status, out) == (2, "")
    assert "random one" in err


def test_browse_without_its_libraries(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    status, _, err = run("browse")
    assert status == 2
    assert "pip install 'sqla_datastore[browse]'" in err


def test_browse_at_an_address_that_is_taken(run):
    pytest.importorskip("uvicorn")
    status, out, err = run("browse", "--host", "192.0.2.1", "--port", "0")
    assert (status, out, err.count("\n")) == (2, "", 1)
