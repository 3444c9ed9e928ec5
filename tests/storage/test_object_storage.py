"""Object stores: the suite of storages on memory and S3, and what goes wrong on the way."""

from __future__ import annotations

import copy
import multiprocessing
import os
import pickle
import re
import resource
import socket
import time
import traceback
import uuid

import pytest
from sqlalchemy import create_engine
from support.object_stores import (
    CREDENTIALS,
    Fault,
    FaultProxy,
    request,
    s3_environment,
    s3_options,
)
from support.uploads import LostAnswerSuite, UploadSuite, write

from sqla_datastore import DataStoreType, bind_storage, options
from sqla_datastore.exceptions import ConfigurationError, MissingObjectError, StorageError
from sqla_datastore.storage import LocalStorage, ObjectStorage, buckets, object_storage
from sqla_datastore.storage.binding import check_storage, open_storage, storage_for
from sqla_datastore.storage.object_errors import object_errors
from sqla_datastore.storage.protocol import those_there
from sqla_datastore.testing import StorageSuite

obstore = pytest.importorskip("obstore")
MIB = 1024 * 1024


@pytest.fixture
def configured(monkeypatch):
    """Set options for one test."""

    def configure(**settings):
        for name, value in settings.items():
            monkeypatch.setattr(options, name, value)

    return configure


@pytest.fixture
def bucket(s3_endpoint):
    name = f"b-{uuid.uuid4().hex}"
    request(s3_endpoint, "PUT", f"/{name}")
    return name


@pytest.fixture
def proxied(s3_endpoint, bucket, configured):
    """Return a storage behind a proxy, and the proxy."""
    proxy = FaultProxy(s3_endpoint)
    with proxy.running() as endpoint:
        configured(storage_options=s3_options(endpoint))
        yield ObjectStorage.at(f"s3://{bucket}/base"), proxy


def paths(storage):
    return [found.path for found in storage.list("")]


def keys(store):
    return {found["path"] for page in obstore.list(store) for found in page}


class Raw(StorageSuite):
    """Reaches the objects by a client of its own."""

    def client(self, storage):
        raise NotImplementedError

    def raw_read(self, storage, path):
        try:
            return bytes(obstore.get(self.client(storage), self.prefix + path).bytes())
        except FileNotFoundError:
            return None

    def raw_write(self, storage, path, data):
        obstore.put(self.client(storage), self.prefix + path, data)

    def raw_paths(self, storage):
        return {key.removeprefix(self.prefix) for key in keys(self.client(storage))}


@pytest.mark.parametrize("prefix", ["", "some/prefix/"])
class TestMemory(Raw):
    @pytest.fixture
    def storage(self, prefix):
        self.prefix = prefix
        return ObjectStorage.at(f"memory://{uuid.uuid4().hex}/{prefix}")

    def client(self, storage):
        return buckets._in_memory[storage.url.removeprefix("memory://").partition("/")[0]]


@pytest.mark.parametrize("prefix", ["", "some/prefix/"])
class TestS3(Raw, UploadSuite):
    @pytest.fixture
    def storage(self, s3_endpoint, bucket, prefix, configured):
        self.prefix = prefix
        self.endpoint, self.bucket = s3_endpoint, bucket
        configured(storage_options=s3_options(s3_endpoint))
        return ObjectStorage.at(f"s3://{bucket}/{prefix}")

    def client(self, storage):
        return obstore.store.S3Store(self.bucket, **s3_options(self.endpoint))

    def raw_paths(self, storage):
        unfinished = request(self.endpoint, "GET", f"/{self.bucket}?uploads").decode()
        return super().raw_paths(storage) | set(re.findall("<Key>(.*?)</Key>", unfinished))


class TestReadyClients:
    def test_a_client_with_a_prefix(self, s3_endpoint, bucket):
        client = obstore.store.S3Store(bucket, prefix="in/here", **s3_options(s3_endpoint))
        storage = ObjectStorage(client)
        write(storage, "runs/a.zip", b"data")
        assert keys(obstore.store.S3Store(bucket, **s3_options(s3_endpoint))) == {
            "in/here/runs/a.zip"
        }
        assert storage.url == f"s3://{bucket}/in/here"
        assert paths(storage) == ["runs/a.zip"]
        assert bytes(storage.open("runs/a.zip").read(0, 9)) == b"data"

    def test_it_equals_the_storage_of_its_url(self, s3_endpoint, bucket, configured):
        configured(storage_options=s3_options(s3_endpoint))
        one = ObjectStorage(obstore.store.S3Store(bucket, prefix="p", **s3_options(s3_endpoint)))
        two = ObjectStorage.at(f"s3://{bucket}/p")
        assert one == two
        assert len({one, two, ObjectStorage.at(f"s3://{bucket}/p/")}) == 1
        assert one != ObjectStorage.at(f"s3://{bucket}/q")

    def test_a_server_of_the_environment_is_that_of_the_options(self, configured, monkeypatch):
        configured(storage_options=s3_options("http://127.0.0.1:1/"))
        one = ObjectStorage.at("s3://bucket")
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
        configured(storage_options=CREDENTIALS)
        assert one == ObjectStorage.at("s3://bucket")

    def test_the_environment_alone_names_a_server(
        self, s3_endpoint, bucket, configured, monkeypatch
    ):
        for name, value in s3_environment(s3_endpoint).items():
            monkeypatch.setenv(name, value)
        configured(storage_options={})
        storage = ObjectStorage.at(f"s3://{bucket}/environment")
        write(storage, "a.zip", b"data")
        assert storage.open("a.zip").read(0, 4) == b"data"
        # those of the options come first
        configured(storage_options={"client_options": {"allow_http": False}})
        with pytest.raises(StorageError, match="allow_http"):
            storage.size_bytes("a.zip")

    def test_another_account_is_another_place(self, configured):
        key, places = "a2V5", set()
        for account in ("one", "two"):
            configured(storage_options={"account_name": account, "account_key": key})
            places.add(ObjectStorage.at("az://container").place)
        assert places == {"one az://container", "two az://container"}

    def test_another_server_is_another_place(self, configured):
        configured(storage_options=s3_options("http://127.0.0.1:1"))
        one = ObjectStorage.at("s3://bucket")
        configured(storage_options=s3_options("http://127.0.0.1:2"))
        assert one != ObjectStorage.at("s3://bucket")

    def test_another_server_of_google_is_another_place(self, configured):
        places = set()
        for port in (1, 2):
            url = f"http://127.0.0.1:{port}"
            configured(storage_options={"base_url": url, "skip_signature": True})
            places.add(ObjectStorage.at("gs://bucket").place)
        assert places == {"http://127.0.0.1:1 gs://bucket", "http://127.0.0.1:2 gs://bucket"}

    def test_a_memory_store_is_found_by_its_url(self):
        storage = ObjectStorage(obstore.store.MemoryStore())
        write(storage, "a.zip", b"data")
        assert paths(open_storage(storage.url)) == ["a.zip"]
        assert ObjectStorage(storage._store).url == storage.url

    @pytest.mark.parametrize("store", ["GCSStore", "AzureStore"])
    def test_the_other_clients(self, store):
        config = {"account_name": "one", "account_key": "a2V5"} if store == "AzureStore" else {}
        client = getattr(obstore.store, store)("lab", prefix="in/here/", **config)
        storage = ObjectStorage(client)
        assert storage.url == {"GCSStore": "gs", "AzureStore": "az"}[store] + "://lab/in/here"

    def test_what_is_no_client(self, tmp_path):
        for client in (obstore.store.LocalStore(str(tmp_path)), LocalStorage(tmp_path), "s3://b"):
            with pytest.raises(TypeError, match="S3Store"):
                ObjectStorage(client)


class TestNaming:
    URL = "memory://naming/base"

    @pytest.fixture(params=["options", "environment", "binding", "column"])
    def found(self, request, configured, monkeypatch):
        engine = create_engine("sqlite://")
        if request.param == "options":
            configured(url=self.URL)
        elif request.param == "environment":
            monkeypatch.setenv("SQLA_DATASTORE_URL", self.URL)
        elif request.param == "binding":
            bind_storage(engine, self.URL)
        column = DataStoreType(self.URL if request.param == "column" else None)
        return storage_for(column.url, engine.dialect)

    def test_a_bucket_is_named_as_a_folder_is(self, found):
        assert isinstance(found, ObjectStorage)
        assert found.url == self.URL


class TestURLs:
    @pytest.mark.parametrize(
        "url",
        [
            *("s3://", "s3:///a", "s3://user:secret@bucket", "s3://b/../c", "s3://b//c"),
            *("s3://b/%2F", "s3://b?region=x", "s3://b/c?x=1", "gs://-b", "az://b/c#d"),
            "memory://",
        ],
    )
    def test_what_names_no_bucket(self, url):
        for call in (check_storage, open_storage):
            with pytest.raises(ConfigurationError) as caught:
                call(url)
            assert "secret" not in str(caught.value)

    def test_an_unknown_option(self, configured):
        configured(storage_options={"acces_key_id": "hidden"})
        with pytest.raises(ConfigurationError, match="acces_key_id") as caught:
            open_storage("s3://bucket")
        assert "hidden" not in str(caught.value)

    def test_without_obstore(self, monkeypatch):
        monkeypatch.setitem(__import__("sys").modules, "obstore", None)
        with pytest.raises(ConfigurationError, match="object-stores"):
            open_storage("s3://bucket")
        assert check_storage("s3://bucket") == "s3://bucket"

    @pytest.mark.parametrize("url", ["memory://m/a/b", "MEMORY://m/a/b/"])
    def test_one_place_has_one_url(self, url):
        assert open_storage(url).url == "memory://m/a/b"

    @pytest.mark.parametrize("value", [0, -1, float("nan"), 10**9])
    def test_request_seconds(self, value):
        with pytest.raises(ValueError, match="request_seconds"):
            options.request_seconds = value

    def test_storage_options(self):
        for value in (None, [("region", "x")], {1: 2}):
            with pytest.raises(TypeError, match="storage_options"):
                options.storage_options = value


class TestSecrets:
    SECRET = CREDENTIALS["secret_access_key"]

    def test_they_are_shown_nowhere(self, configured, s3_endpoint, bucket):
        configured(storage_options=s3_options(s3_endpoint))
        storage = ObjectStorage.at(f"s3://{bucket}/base")
        write(storage, "a.zip", b"data")
        pickled = pickle.dumps(storage)
        for shown in (repr(storage), str(storage), storage.url, storage.place, repr(options)):
            assert self.SECRET not in shown
        assert self.SECRET.encode() not in pickled
        assert "secret_access_key" in repr(options)
        assert pickle.loads(pickled) == storage
        assert paths(pickle.loads(pickled)) == ["a.zip"]
        assert copy.deepcopy(storage) == storage

    def test_an_answer_is_not_quoted(self):
        """A server may repeat what it was sent, and on Azure a URL may be a password."""
        said = (
            "Generic MicrosoftAzure error: Error performing GET https://host/a?sv=1&sig=SECRET in "
            "2ms - Server returned non-2xx status code: 403 Forbidden: <?xml version='1.0'?><Error>"
            "<Code>AuthFailed</Code><Message>SECRET</Message></Error>\n\nDebug: SECRET"
        )
        with pytest.raises(StorageError) as caught, object_errors("az:///a", "az://c"):
            raise obstore.exceptions.GenericError(said)
        assert "SECRET" not in "".join(traceback.format_exception(caught.value))
        for part in ("az:///a", "az://c", "https://host/a", "403", "AuthFailed", "credentials"):
            assert part in str(caught.value)

    def test_a_ready_client_is_not_pickled(self, s3_endpoint, bucket):
        storage = ObjectStorage(obstore.store.S3Store(bucket, **s3_options(s3_endpoint)))
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(storage)


class TestFaults:
    """Our error, within the time that was set, that names object, storage, cause and next step."""

    CALLS = {
        "create": lambda storage: write(storage, "runs/a.zip", b"data"),
        "upload": lambda storage: write(storage, "runs/a.zip", bytes(9 * MIB)),
        "open": lambda storage: storage.open("runs/a.zip"),
        "list": lambda storage: list(storage.list("runs")),
        "remove": lambda storage: storage.remove(["runs/a.zip"]),
    }

    def failure(self, storage, call, *, no_answer=False):
        begin = time.monotonic()
        with pytest.raises(StorageError) as caught:
            self.CALLS[call](storage)
        assert time.monotonic() - begin < 15
        text = str(caught.value)
        assert caught.value.url in ("s3:///runs/a.zip", "s3:///runs")
        assert storage.url in text
        assert "\n" not in text
        assert TestSecrets.SECRET not in text
        assert caught.value.no_answer is no_answer
        return text

    @pytest.mark.parametrize("call", ["create", "upload", "open", "list", "remove"])
    def test_a_missing_bucket(self, configured, s3_endpoint, call):
        configured(storage_options=s3_options(s3_endpoint))
        assert "make it" in self.failure(ObjectStorage.at("s3://nowhere/base"), call)

    @pytest.mark.parametrize("call", CALLS)
    def test_a_closed_port(self, configured, call):
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{closed.getsockname()[1]}"
            configured(storage_options=s3_options(endpoint), request_seconds=2)
            storage = ObjectStorage.at("s3://bucket/base")
            assert "endpoint" in self.failure(storage, call, no_answer=True)

    @pytest.mark.parametrize("call", CALLS)
    def test_an_endpoint_that_does_not_answer(self, configured, call):
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
            configured(storage_options=s3_options(endpoint), request_seconds=1)
            storage = ObjectStorage.at("s3://bucket/base")
            assert "request_seconds" in self.failure(storage, call, no_answer=True)

    @pytest.mark.parametrize("call", CALLS)
    @pytest.mark.parametrize(
        ("status", "advice"),
        [
            *((400, "see docs/object-stores.md"), (403, "credentials"), (429, "fewer")),
            *((500, "try again later"), (503, "fewer")),
        ],
    )
    def test_refused_requests(self, proxied, configured, call, status, advice):
        storage, proxy = proxied
        configured(request_seconds=1)
        proxy.rule = lambda seen: Fault(status=status)
        assert advice in self.failure(storage, call, no_answer=status in (429, 500, 503))
        assert len(proxy.seen) < 40

    def test_a_store_that_does_not_answer_is_not_waited_for_again(self, configured, monkeypatch):
        """Removing thousands of objects takes as long as removing 32."""
        tried = []

        def delete(store, key):
            tried.append(key)
            raise obstore.exceptions.GenericError("HTTP error: error sending request")

        monkeypatch.setattr(obstore, "delete", delete)
        storage = ObjectStorage.at("s3://bucket")
        with pytest.raises(StorageError, match="endpoint"):
            storage.remove(f"runs/{number}.zip" for number in range(1_000))
        assert 1 <= len(tried) <= 32

    def test_what_is_there_is_asked_for_together(self, proxied):
        storage, proxy = proxied
        names = [f"runs/{number}.zip" for number in range(40)]
        for name in names[::2]:
            write(storage, name, b"x")
        proxy.rule = lambda seen: Fault(status=403) if "/1.zip" in seen.target else None
        proxy.latency = 0.02
        # of the one that is refused nobody can tell
        assert those_there(storage, names) == {*names[::2], "runs/1.zip"}
        assert proxy.most_at_once > 5

    def test_a_store_that_does_not_answer_is_not_asked_again(self, configured, monkeypatch):
        tried = []

        def head(store, key):
            tried.append(key)
            raise obstore.exceptions.GenericError("HTTP error: error sending request")

        monkeypatch.setattr(obstore, "head", head)
        names = {f"runs/{number}.zip" for number in range(1_000)}
        assert those_there(ObjectStorage.at("s3://bucket"), names) == names
        assert 1 <= len(tried) <= 32

    @pytest.mark.parametrize(
        "faults", [[Fault(status=403)], [Fault(cut_request=True), Fault(status=403)]]
    )
    def test_an_object_that_cannot_go_keeps_no_other(self, proxied, faults):
        """Not where it is asked for twice, either: the store answers."""
        storage, proxy = proxied
        names = [f"runs/{number}.zip" for number in range(50)]
        for name in names:
            write(storage, name, b"x")
        left = [*faults]
        proxy.rule = lambda seen: (
            left.pop(0) if seen.method == "DELETE" and "/7.zip" in seen.target else None
        )
        with pytest.raises(StorageError, match="credentials") as caught:
            storage.remove(names)
        assert not caught.value.no_answer
        assert paths(storage) == ["runs/7.zip"]

    def test_http_that_was_not_allowed(self, configured, s3_endpoint, bucket):
        configured(storage_options=s3_options(s3_endpoint, client_options={}))
        assert "allow_http" in self.failure(ObjectStorage.at(f"s3://{bucket}/base"), "create")

    def test_new_options_hold_for_open_storages(self, configured, s3_endpoint, bucket):
        configured(storage_options=s3_options("http://127.0.0.1:1"), request_seconds=1)
        storage = ObjectStorage.at(f"s3://{bucket}/base")
        self.failure(storage, "create", no_answer=True)
        configured(storage_options=s3_options(s3_endpoint))
        write(storage, "a.zip", b"data")
        assert paths(storage) == ["a.zip"]

    def test_an_object_that_vanished(self, proxied):
        storage, _ = proxied
        write(storage, "a.zip", bytes(MIB))
        reader = storage.open("a.zip")
        storage.remove(["a.zip"])
        for call in (lambda: reader.read(0, 5), lambda: reader.read_many([(0, 5)])):
            with pytest.raises(MissingObjectError) as caught:
                call()
            assert caught.value.url == "s3:///a.zip"


class TestLostAnswers(LostAnswerSuite):
    """Those of S3."""


class TestCosts:
    def test_a_small_object_is_one_request(self, proxied):
        storage, proxy = proxied
        write(storage, "a.zip", bytes(8 * MIB))
        assert [(seen.method, seen.sent) for seen in proxy.seen] == [("PUT", 8 * MIB)]

    def test_opening_is_one_request(self, proxied):
        storage, proxy = proxied
        write(storage, "a.zip", bytes(MIB))
        proxy.seen.clear()
        reader = storage.open("a.zip")
        assert reader.size_bytes == MIB
        assert reader.read(MIB - 65536, 65536) == bytes(65536)
        assert [(seen.method, seen.got) for seen in proxy.seen] == [("GET", 65536)]

    def test_near_ranges_are_one_request(self, proxied):
        storage, proxy = proxied
        write(storage, "a.zip", bytes(MIB))
        reader = storage.open("a.zip")
        proxy.seen.clear()
        reader.read_many([(0, 1000), (1064, 1000), (2128, 10)])
        assert [(seen.method, seen.got) for seen in proxy.seen] == [("GET", 2138)]

    def test_a_listing_is_one_request(self, proxied, monkeypatch):
        storage, proxy = proxied
        monkeypatch.setattr(object_storage, "_LISTED", 10)
        names = [f"runs/{number:02d}.zip" for number in range(30)]
        for name in names:
            write(storage, name, b"x")
        proxy.seen.clear()
        assert paths(storage) == names
        assert len(proxy.seen) == 1

    def test_removals_are_made_at_the_same_time(self, proxied):
        storage, proxy = proxied
        names = [f"runs/{number}.zip" for number in range(20)]
        for name in names:
            write(storage, name, b"x")
        proxy.latency = 0.05
        storage.remove(names)
        assert proxy.most_at_once > 5
        assert paths(storage) == []

    def test_what_is_uploaded_in_parts_takes_little_memory(self, configured, s3_endpoint, bucket):
        configured(storage_options=s3_options(s3_endpoint))
        storage, piece = ObjectStorage.at(f"s3://{bucket}"), bytes(256 * 1024)
        write(storage, "warm.zip", bytes(9 * MIB))
        gained = []
        with storage.create("a.zip") as writer:
            before = _resident()
            for _ in range(400):
                writer.write(piece)
                gained.append(_resident() - before)
        assert storage.size_bytes("a.zip") == 100 * MIB
        assert max(gained) < 40 * MIB

    def test_parts_have_eight_mebibytes(self, proxied):
        storage, proxy = proxied
        with storage.create("a.zip") as writer:
            for _ in range(80):
                writer.write(bytes(256 * 1024))
        assert [seen.sent for seen in proxy.seen if seen.method == "PUT"].count(8 * MIB) == 2
        assert max(seen.sent for seen in proxy.seen) == 8 * MIB
        assert len(proxy.seen) == 6  # a look at the name, the begin, three parts, the end

    def test_large_ranges_are_read_in_pieces(self, proxied, monkeypatch):
        storage, proxy = proxied
        monkeypatch.setattr(object_storage, "_READ_AT_ONCE", 1000)
        data = bytes(range(256)) * 1000
        write(storage, "a.zip", data)
        reader = storage.open("a.zip")
        proxy.seen.clear()
        assert reader.read(5, 2500) == data[5:2505]
        found = reader.read_many([(0, 600), (600, 600), (7, 2500), (10_000, 10)])
        assert [bytes(each) for each in found] == [
            data[:600],
            data[600:1200],
            data[7:2507],
            data[10_000:10_010],
        ]
        assert max(seen.got for seen in proxy.seen) == 1000


def _resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _forked(storage, results):
    try:
        write(storage, "b.zip", b"data")
    except StorageError as err:
        results.put(str(err))
    else:
        results.put("written")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
class TestForks:
    def run(self, method, storage):
        context = multiprocessing.get_context(method)
        results = context.Queue()
        process = context.Process(target=_forked, args=(storage, results))
        process.start()
        try:
            return results.get(timeout=60)
        finally:
            process.kill()
            process.join()

    def test_a_forked_process_is_refused(self, proxied):
        storage, _ = proxied
        write(storage, "a.zip", b"data")
        found = self.run("fork", storage)
        for part in ("forked", "spawn", storage.url):
            assert part in found
        assert paths(storage) == ["a.zip"]

    def test_a_process_that_was_forked_before_the_first_use(self, monkeypatch):
        monkeypatch.setattr(buckets, "_used_in", None)
        storage = ObjectStorage.at("memory://forks")
        assert buckets._used_in is None
        assert self.run("fork", storage) == "written"
