"""Make the golden files beside this script with the real MLtraq.

They are what MLtraq 0.1.165 wrote, and need not be made again. Should they: in an environment of
its own, ``pip install mltraq==0.1.165 && python tests/mltraq/golden/make.py``.

``datapak``, ``compressed`` and ``pickle`` are one object each, ``mltraq.db`` and
``mltraq.datastore`` a database with the folder of its data store.
"""

import datetime
import os
import uuid
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pyarrow as pa
from mltraq import Bunch, DataStore, DataStoreIO, Sequence, create_session, options
from mltraq.storage.archivestore import Archive, ArchiveStore
from mltraq.storage.serialization import serialize

GOLDEN = Path(__file__).parent

PLAIN = {
    "none": None,
    "flags": [True, False],
    "large": -(2**70),
    "number": -1.5,
    "text": "Größe",
    "bytes": b"\0\xff",
    "pair": (1, (2, [3])),
    "members": {1, "a", (2, 3)},
    "numbers": {1: "one", (1, 2): "pair"},
}


def every_type(folder: str) -> dict:
    Path(folder, "notes.txt").write_text("a note")
    moments = np.array(["2024-01-02T03:04:05.123456", "2024-01-03"], "datetime64[us]")
    return PLAIN | {
        "bunch": Bunch(outer=Bunch(inner=1)),
        "sequence": Sequence(
            pd.DataFrame({"idx": [0, 1], "timestamp": moments, "loss": [0.9, 0.4]})
        ),
        "archive": Archive.create(src_dir=folder),
        "frame": pd.DataFrame(
            {"name": ["a", None], "kind": pd.Categorical(["x", "y"])},
            index=pd.Index([10, 20], name="id"),
        ),
        "series": pd.Series([1, 2, 3]),
        "named": pd.Series([0.5], name="loss"),
        "table": pa.table({"a": [1, 2], "b": ["x", "y"]}),
        "array": np.arange(6).reshape(2, 3),
        "columns first": np.asfortranarray(np.arange(4.0).reshape(2, 2)),
        "empty": np.empty((0, 3)),
        "scalar": np.array(True),
        "records": np.array([(1, 0.5)], dtype=[("größe", "<i4"), ("b", ">f8")]),
        "moment": np.datetime64("2024-01-02T03:04:05.123456", "us"),
        "key": uuid.UUID(int=7),
    }


def make_objects() -> None:
    with TemporaryDirectory() as folder:
        value = every_type(folder)
    (GOLDEN / "datapak").write_bytes(serialize(value))
    with options().ctx({"serialization.compression.codec": "zlib"}):
        (GOLDEN / "compressed").write_bytes(serialize(value))
    with options().ctx({"serialization.serializer": "PickleSerializer"}):
        shared = [1, 2]
        (GOLDEN / "pickle").write_bytes(
            serialize(
                PLAIN
                | {"frozen": frozenset({1}), "array": bytearray(b"x"), "twice": [shared, shared]}
            )
        )


def make_experiments() -> None:
    os.chdir(GOLDEN)  # where the data store's folder goes by default
    session = create_session("sqlite:///mltraq.db")
    digits = session.create_experiment("Digits 8x8")
    digits.fields.note = "first try"
    digits.fields.shared = DataStore(grid=np.eye(2))
    with TemporaryDirectory() as folder:
        Path(folder, "notes.txt").write_text("a note")
        digits.fields.notes = ArchiveStore(src_dir=folder)
        for rate in (0.1, 0.2):
            with digits.run() as run:
                run.fields.rate = rate
                run.fields.is_good = rate < 0.15
                run.fields.begin = datetime.datetime(2024, 1, 2, 3, 4, 5)
                run.fields.tags = ["a", "b"]
                run.fields.ds = DataStore(a=np.zeros(10), b=pd.Series([1, 2, 3]))
                run.fields.ds2 = DataStore(c=123)
                prefix = f"self_managed/{digits.id_experiment}"
                run.fields.url_a = DataStoreIO.serialize_write(np.full(3, rate), prefix).url
                run.fields.url_b = DataStoreIO.write(b"11111", prefix).url
        digits.persist()
    session.create_experiment("empty").persist()


options().set("tqdm.disable", True)
options().set("reproducibility.sequential_uuids", True)
make_objects()
make_experiments()
