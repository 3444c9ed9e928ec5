"""For tests, by pytest: of applications, and of third parties' storages and codecs.

``docs/testing.md`` tells how an application is tested: with the fixtures of
`sqla_datastore.testing.plugin`, with `FailingStorage` and `assert_nothing_left`.

For storages and codecs there are conformance suites. Subclass one in a test module, give it the
fixture that it asks for, and run pytest::

    class TestMyStorage(StorageSuite):
        @pytest.fixture
        def storage(self, tmp_path):
            return MyStorage(tmp_path)

        def raw_read(self, storage, path): ...
        def raw_write(self, storage, path, data): ...
        def raw_paths(self, storage): ...

    class TestMyCodec(CodecSuite):
        @pytest.fixture
        def codec(self):
            return MyCodec()

        @pytest.fixture
        def values(self):
            return [MyValue(1), MyValue(2)]

`encode_value` and `decode_value` take a single value through the same path, for tests of your own.
"""

from __future__ import annotations

from sqla_datastore.testing.codec_suite import CodecSuite, decode_value, encode_value
from sqla_datastore.testing.failing_storage import FailingStorage
from sqla_datastore.testing.nothing_left import assert_nothing_left
from sqla_datastore.testing.storage_suite import StorageSuite

__all__ = [
    "CodecSuite",
    "FailingStorage",
    "StorageSuite",
    "assert_nothing_left",
    "decode_value",
    "encode_value",
]
