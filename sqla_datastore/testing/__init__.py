"""Conformance suites for third parties' storages and codecs; needs pytest.

Subclass a suite in a test module, give it the fixture that it asks for, and run pytest::

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
from sqla_datastore.testing.storage_suite import StorageSuite

__all__ = ["CodecSuite", "StorageSuite", "decode_value", "encode_value"]
