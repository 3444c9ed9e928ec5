"""The command: what it prints, its exit statuses, and that the demo checks what it shows."""

from __future__ import annotations

import re
import subprocess
import sys
import uuid

import pytest
from support import object_stores

from sqla_datastore import __version__, options
from sqla_datastore.cli import main as cli
from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.storage import LocalStorage
from sqla_datastore.storage.binding import open_storage


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sqla_datastore.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def test_the_installed_command_is_this_one():
    from importlib.metadata import entry_points

    (command,) = entry_points(group="console_scripts", name="sqla-datastore")
    assert command.load() is cli.main


def test_version():
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"sqla-datastore {__version__}\n")


@pytest.mark.parametrize("arguments", [(), ("nonsense",), ("demo", "--nonsense")])
def test_unknown_arguments_are_refused_with_status_2(arguments):
    done = run(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "usage: sqla-datastore" in done.stderr


def test_help_imports_no_library():
    code = (
        "import sys; from sqla_datastore.cli import main as cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'numpy', 'pandas', 'pyarrow', 'alembic'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


# -- demo ------------------------------------------------------------------------------------------


def test_demo_shows_every_step_on_80_columns(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["demo"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    shown = [line for line in out.splitlines() if str(tmp_path) not in line]
    assert max(map(len, shown)) <= 80
    titles = re.findall(r"^-- (\d)\. (.*?) -+$", out, re.MULTILINE)
    assert [number for number, _ in titles] == ["1", "2", "3", "4"]
    for text in ("numpy.ndarray uint8 (3, 3)", "pandas.DataFrame", "pandas.Series category"):
        assert text in out
    assert re.search(r"url_a = file:///weights/adam-2/[0-9a-f]{32}\.io\.zip\n", out)
    assert re.search(r"url_b = file:///reports/[0-9a-f]{32}\.bin\n", out)
    assert out.count("[ok]") == 10


def test_demo_removes_what_it_made(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert cli.main(["demo"]) == 0
    assert list(tmp_path.iterdir()) == []
    empty, new = tmp_path / "empty", tmp_path / "parent" / "new"
    empty.mkdir()
    for folder in (empty, new):
        assert cli.main(["demo", "--folder", str(folder)]) == 0
    assert list(empty.iterdir()) == []
    assert not new.exists()


def test_demo_keeps_its_files_when_told(tmp_path, capsys):
    folder = tmp_path / "kept"
    assert cli.main(["demo", "--folder", str(folder), "--keep"]) == 0
    assert str(folder) in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir()) == ["demo.db", "storage"]
    assert len(list(folder.glob("storage/runs/adam-2/*.zip"))) == 2


def test_demo_leaves_a_folder_with_files_alone(tmp_path, capsys):
    (tmp_path / "thesis.txt").write_text("precious")
    assert cli.main(["demo", "--folder", str(tmp_path)]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(
        f"sqla-datastore: error: {str(tmp_path)!r} is not an empty folder; "
        "give a new or an empty one (Background"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_demo_in_a_place_that_is_a_file(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--folder", str(tmp_path / "file" / "below")]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sqla-datastore: error: ")
    assert err.count("\n") == 1


def test_demo_says_which_promise_was_broken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(LocalStorage, "remove", lambda self, paths: None)
    assert cli.main(["demo", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == (
        "sqla-datastore: broken promise: the storage is as it was before\n"
    )


@pytest.fixture(params=["memory", "s3"])
def base(request, monkeypatch):
    """The URL of a storage that is empty, and no folder."""
    name = f"b-{uuid.uuid4().hex}"
    if request.param == "memory":
        return f"memory://{name}/demo"
    endpoint = request.getfixturevalue("s3_endpoint")
    object_stores.request(endpoint, "PUT", f"/{name}")
    monkeypatch.setattr(options, "storage_options", object_stores.s3_options(endpoint))
    return f"s3://{name}/demo"


def test_demo_in_an_object_store(base, capsys):
    pytest.importorskip("obstore")
    assert cli.main(["demo", "--storage", base]) == 0
    out = capsys.readouterr().out
    assert out.count("[ok]") == 10
    scheme = base.partition(":")[0]
    assert re.search(rf"inputs is at {scheme}:///runs/adam-1/[0-9a-f]{{32}}\.zip\n", out)
    assert list(open_storage(base).list("")) == []


def test_demo_leaves_a_storage_with_objects_alone(base, capsys):
    pytest.importorskip("obstore")
    with open_storage(base).create("thesis.txt") as writer:
        writer.write(b"precious")
    assert cli.main(["demo", "--storage", base]) == 2
    assert f"{base!r} is not empty; give another prefix" in capsys.readouterr().err
    assert [found.path for found in open_storage(base).list("")] == ["thesis.txt"]
    assert cli.main(["demo", "--storage", f"{base}/below", "--keep"]) == 0
    assert len(list(open_storage(f"{base}/below").list(""))) == 4


def test_an_error_of_ours_is_one_line_with_status_2(monkeypatch, capsys):
    def refuse(*_, **__):
        raise RefusedURLError("a\nb", "it has\n two lines")

    monkeypatch.setattr("sqla_datastore.cli.demo.run", refuse)
    assert cli.main(["demo"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("sqla-datastore: error: refused 'a\\nb': it has\\n two lines (Background")
    assert err.count("\n") == 1
