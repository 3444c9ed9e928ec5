"""The page's contents: what is looked at and nothing else, escaped, and errors that say what is."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from urllib.parse import urlencode

import pytest
from support.lab import FILES, FIRST, HOSTILE, LAST, ROWS, Base, Lab, gradient

pytest.importorskip("starlette")
from starlette.testclient import TestClient

from sqla_datastore import File
from sqla_datastore.browsing import entries as entries_module
from sqla_datastore.browsing.app import page_of
from sqla_datastore.browsing.guard import Guard
from sqla_datastore.browsing.pictures import picture
from sqla_datastore.browsing.rows import Tables
from sqla_datastore.format import Container
from sqla_datastore.storage import LocalStorage


class Parsed(HTMLParser):
    """The tags, links, texts and attributes of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.links, self.names, self.texts = set(), [], set(), []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.names |= {name for name, _ in attrs}
        self.links += [value for name, value in attrs if name in ("href", "src", "action")]

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return Lab(tmp_path_factory.mktemp("lab"))


def client_of(lab):
    app = Guard(page_of(Tables(lab.engine(), Base.metadata)), None)
    return TestClient(app, base_url="http://127.0.0.1:8765")


@pytest.fixture(scope="module")
def client(lab):
    return client_of(lab)


@pytest.fixture
def reads(monkeypatch):
    """Note which objects are opened and which entries are loaded."""
    seen = []
    opened, loaded = LocalStorage.open, Container.load
    monkeypatch.setattr(
        LocalStorage, "open", lambda self, path: seen.append("index") or opened(self, path)
    )
    monkeypatch.setattr(
        Container, "load", lambda self, name: seen.append(name) or loaded(self, name)
    )
    return seen


def address(page, *path, table="experiments", key=FIRST, **more):
    pairs = [("table", table), ("key", key), *more.items(), *(("entry", name) for name in path)]
    return f"{page}?{urlencode(pairs)}"


def shown(client, url, status=200):
    answer = client.get(url)
    assert answer.status_code == status, answer.text
    return answer.text


# -- contents --------------------------------------------------------------------------------------


def test_tables(client):
    page = Parsed(shown(client, "/"))
    assert {"/rows?table=experiments", "/rows?table=runs"} <= set(page.links)
    assert str(ROWS) in page.texts


def test_rows_a_page_at_a_time(client):
    first = shown(client, "/rows?table=experiments")
    assert first.count("/row?") == 50
    assert "rows 1 to 50" in first
    last = shown(client, "/rows?table=experiments&offset=100")
    assert last.count("/row?") == ROWS - 100
    assert 'rel="next"' not in last
    assert 'rel="next"' in first
    assert "No more rows" in shown(client, "/rows?table=experiments&offset=999")
    assert shown(client, "/rows?table=experiments&offset=nonsense") == first


def test_rows_are_searched_by_key(client):
    text = shown(client, "/rows?table=experiments&search=00000000001")
    found = re.findall(r"row\?[^\"]*key=([0-9a-f-]+)", text)
    ends = ["01", *(f"1{digit}" for digit in "0123456789abcdef")]
    assert found == [f"00000000-0000-0000-0000-0000000000{end}" for end in ends]
    assert "No key contains" in shown(client, "/rows?table=experiments&search=%25")


def test_a_row_lists_its_entries(client):
    text = shown(client, address("/row"))
    assert "64 \N{MULTIPLICATION SIGN} 96" in text
    assert "48.0 KiB" in text
    assert "pandas.DataFrame" in text
    assert "2024" not in text


def test_a_row_with_a_key_of_two_columns_and_two_values(client):
    text = shown(client, address("/row", table="runs", key="a%2Cb,1"))
    assert "<h2>data</h2>" in text
    assert "<h2>extra</h2>" in text
    text = shown(client, address("/entry", "n", table="runs", key="a%2Cb,1", column="data"))
    assert "<h1>n</h1>" in text


@pytest.mark.parametrize(
    ("path", "parts"),
    [
        (["history"], ["0.4197", "warm-up", "float64", "first 50 of 200 rows", "<polyline"]),
        (["weights"], ["mean", "(64, 96)", "<rect", "/picture?", "values: 64 of 6144"]),
        (["signal"], ["values by position", "distribution"]),
        (["labels"], ["cat", "int64"]),
        (["report"], ["After 12 epochs."]),
        (["settings"], ["datetime.date(2024, 1, 2)"]),
        (["raw"], ["00 01 02", "first 512 of 1024 bytes"]),
        (["photo"], ["/picture?"]),
        (["evaluation"], ["scores", "deeper"]),
        (["evaluation", "scores"], ["0.5"]),
        (["evaluation", "deeper", "k"], ["<pre>1"]),
    ],
    ids=lambda value: value[-1][:9] or "empty" if isinstance(value, list) else "",
)
def test_an_entry(client, path, parts):
    text = shown(client, address("/entry", *path))
    assert [part for part in parts if part not in text] == []


def test_many_entries_are_cut(client, monkeypatch):
    monkeypatch.setattr("sqla_datastore.browsing.app._LISTED_ENTRIES", 3)
    text = shown(client, address("/row"))
    assert text.count("/entry?") == 3
    assert "the first 3 of 10 entries" in text


def test_names_of_entries_may_be_anything(client):
    assert "<pre>1" in shown(client, address("/entry", HOSTILE, key=LAST))
    assert "<pre>2" in shown(client, address("/entry", "", key=LAST))


def test_a_picture(client):
    answer = client.get(address("/picture", "photo"))
    assert answer.headers["content-type"] == "image/png"
    assert answer.content == picture(gradient())[0]
    assert client.get(address("/picture", "report")).status_code == 404
    assert client.get(address("/picture", "evaluation")).status_code == 404


def test_every_link_leads_somewhere(client):
    seen, left = set(), ["/", address("/row"), address("/row", key=LAST)]
    while left:
        url = left.pop()
        if url in seen or len(seen) > 80:
            continue
        seen.add(url)
        answer = client.get(url)
        assert answer.status_code == 200, url
        if answer.headers["content-type"].startswith("text/html"):
            page = Parsed(answer.text)
            assert all(link.startswith("/") and not link.startswith("//") for link in page.links)
            links = [link for link in page.links if "offset" not in link and link != "/rows"]
            left += links if not url.startswith("/rows") else links[:10]
    assert any(url.startswith("/picture") for url in seen)


# -- nothing is loaded that is not looked at -------------------------------------------------------


def test_each_page_reads_what_it_shows(client, reads):
    for url, expected in [
        ("/", []),
        ("/rows?table=experiments", []),
        (address("/row"), ["index"]),
        (address("/entry", "weights"), ["index", "weights"]),
        (address("/entry", "evaluation"), ["index", "evaluation", "index"]),
        (address("/entry", "evaluation", "scores"), ["index", "evaluation", "index", "scores"]),
        ("/style.css", []),
    ]:
        reads.clear()
        shown(client, url)
        assert reads == expected, url


def test_a_large_entry_waits_until_it_is_asked_for(client, reads, monkeypatch):
    monkeypatch.setattr(entries_module, "LARGEST_BYTES", 1000)
    text = shown(client, address("/entry", "history"))
    assert "Load it all the same" in text
    assert "history" not in reads
    assert client.get(address("/picture", "photo")).status_code == 200  # mapped: nothing is read
    (link,) = [link for link in Parsed(text).links if "load=1" in link]
    assert "warm-up" in shown(client, link)


# -- files -----------------------------------------------------------------------------------------

ACTIVE = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
LOG = b"a line\n" * 700_000
PNG = picture(gradient())[0]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A client of a page about a row with files."""
    lab = Lab(tmp_path_factory.mktemp("files"))
    lab.add_files(
        page=File(io.BytesIO(ACTIVE), '\u20ac "<b>.html', "text/html"),
        drawing=File(io.BytesIO(ACTIVE), "a.svg", "image/svg+xml"),
        photo=File(io.BytesIO(PNG), "a.png"),
        disguised=File(io.BytesIO(PNG), "a.html", "text/html"),
        log=File(io.BytesIO(LOG), "a.log", "text/plain"),
        noise=File(io.BytesIO(b"\0\xff" * 9), "a.txt"),
        tree={"config.json": File(io.BytesIO(b"{}"), "config.json")},
    )
    return client_of(lab)


def of_file(page, *path):
    return address(page, *path, key=FILES)


def test_a_row_names_its_files(files):
    texts = Parsed(shown(files, of_file("/row"))).texts
    assert {"File", "a.log, text/plain", '\u20ac "<b>.html, text/html'} <= set(texts)


@pytest.mark.parametrize("name", ["page", "drawing"])
def test_active_contents_are_shown_as_text_and_sent_for_saving(files, name):
    page = Parsed(shown(files, of_file("/entry", name)))
    assert ACTIVE.decode() in "".join(page.texts)
    assert not {"script", "svg", "img", "iframe", "object", "embed"} & page.tags
    assert files.get(of_file("/picture", name)).status_code == 404
    (link,) = [link for link in page.links if link.startswith("/file")]
    answer = files.get(link)
    assert answer.content == ACTIVE
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"].startswith("attachment;")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_name_of_a_file_fits_a_header(files):
    headers = files.get(of_file("/file", "page")).headers
    name = "%E2%82%AC%20%22%3Cb%3E.html"
    assert headers["content-disposition"] == f"attachment; filename*=UTF-8''{name}"


@pytest.mark.parametrize("name", ["photo", "disguised"])
def test_a_small_picture_is_shown_by_what_its_bytes_are(files, name):
    assert "<img" in shown(files, of_file("/entry", name))
    answer = files.get(of_file("/picture", name))
    assert (answer.headers["content-type"], answer.content) == ("image/png", PNG)


def test_a_large_file_is_not_read_and_can_be_downloaded(files, monkeypatch):
    monkeypatch.setattr(entries_module, "LARGEST_BYTES", 1000)
    with monkeypatch.context() as patched:
        patched.setattr(File, "read", None)
        text = shown(files, of_file("/entry", "log"))
    assert "a line" not in text
    assert "more than 4.0 MiB" in text
    assert files.get(of_file("/file", "log")).content == LOG


def test_what_is_no_text_is_shown_as_bytes(files):
    assert "00 ff 00 ff" in shown(files, of_file("/entry", "noise"))
    assert "config.json" in shown(files, of_file("/entry", "tree"))


@pytest.mark.parametrize("path", [(), ("tree",), ("nonsense",)])
def test_there_are_no_files_but_files(files, path):
    assert files.get(of_file("/file", *path)).status_code == 404


# -- hostile ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        f"/rows?table=experiments&search={LAST}",
        address("/row", key=LAST),
        address("/entry", HOSTILE, key=LAST),
        address("/entry", "labels", key=LAST),
        address("/entry", "report", key=LAST),
        f"/rows?{urlencode({'table': HOSTILE})}",
        f"/rows?{urlencode({'table': 'experiments', 'search': HOSTILE})}",
        address("/row", key=HOSTILE),
        address("/entry", HOSTILE + "x"),
        address("/entry", "x", column=HOSTILE),
        "/<script>",
        "/entry?entry=%ED%A0%80&table=experiments&key=" + str(FIRST),
        "/rows?table=%00%ff",
        "/row",
        "/entry?" + "entry=x&" * 1000,
    ],
)
def test_what_is_hostile_is_shown_and_not_run(client, url):
    text = client.get(url).text
    page = Parsed(text)
    assert "script" not in page.tags
    assert "style" not in page.tags | page.names
    assert not any(name.startswith("on") for name in page.names)
    assert text.replace("\n", "").isprintable()


def test_a_browser_is_told_to_run_nothing(client):
    for url in ("/", "/nonsense", address("/picture", "photo"), "/style.css"):
        headers = client.get(url).headers
        policy = dict(part.split(" ", 1) for part in headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert "script-src" not in policy
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


# -- what is not there -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("/nonsense", "no such page"),
        ("/rows?table=nonsense", "experiments"),
        (address("/row", key="nonsense"), "its first keys are"),
        (address("/entry", "nonsense"), "history"),
        (address("/entry", "report", "x"), "no entries"),
        (address("/entry", "x", column="nonsense"), "data"),
        (address("/entry"), "names no entry"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(client, url, told):
    text = shown(client, url, status=404)
    assert told in text
    assert "/rows?table=experiments" in text


def test_a_row_whose_object_is_missing_or_damaged(tmp_path):
    lab = Lab(tmp_path)
    client = client_of(lab)
    third, fourth = (f"00000000-0000-0000-0000-00000000000{n}" for n in "34")
    (path,) = (lab.storage / "experiments" / third).iterdir()
    path.unlink()
    (path,) = (lab.storage / "experiments" / fourth).iterdir()
    path.write_bytes(b"damaged")
    text = shown(client, address("/row", key=third))
    assert 'role="alert"' in text
    assert third in text
    assert 'role="alert"' in shown(client, address("/row", key=fourth))
    assert "missing" in shown(client, address("/entry", "n", key=third), status=404)
    assert "cannot be read" in shown(client, address("/entry", "n", key=fourth), status=422)
    (lab.folder / "lab.db").write_bytes(b"nonsense" * 1000)
    assert "database cannot be read" in shown(client, "/", status=503)
