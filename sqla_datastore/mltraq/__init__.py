"""Reading what MLtraq stored, without MLtraq and without pickle's power.

::

    from sqla_datastore.mltraq import read_experiments

    for experiment in read_experiments(create_engine("sqlite:///mltraq.db"), "mltraq.datastore"):
        for run in experiment.runs():
            session.add(Run(id=run.id, data=DataStore(run.fields)))

MLtraq's objects are pickles of plain data, which it calls DataPak. They are read here by a machine
that knows the opcodes of plain data only and calls nothing; what asks for more is refused. Nothing
is written, neither to the files nor to the database. ``docs/coming-from/mltraq.md`` has the whole
story. `reading` is what an object may take and what errors call it, `pickled_data` the machine,
`arrays_and_frames` NumPy's and Feather's bytes, `objects` what DataPak makes of them, and
`experiments` the tables.

Source: MLtraq 0.1.165, ``mltraq/storage``.
"""

from __future__ import annotations

from sqla_datastore.mltraq.experiments import MLtraqExperiment, MLtraqRun, read_experiments
from sqla_datastore.mltraq.objects import read_bytes, read_object

__all__ = ["MLtraqExperiment", "MLtraqRun", "read_bytes", "read_experiments", "read_object"]
