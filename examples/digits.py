"""Train a few small models on scikit-learn's digits, keep what they produce, compare the runs.

    python examples/digits.py --database sqlite:///digits.db --storage digits.storage

What a query filters or sorts by (the model's name, its accuracy) is a plain column. Arrays and
frames are entries of a `DataStore`: the comparison at the end loads only those that it needs.
Needs scikit-learn. Each call adds an experiment.
"""

from __future__ import annotations

import argparse
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from sklearn.model_selection import train_test_split
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.tree import DecisionTreeClassifier
from sqlalchemy import ForeignKey, String, create_engine, select
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from sqla_datastore import DataStore, DataStoreType, bind_storage

MODELS = {
    "logistic": LogisticRegression(max_iter=500),
    "neighbours": KNeighborsClassifier(n_neighbors=5),
    "bayes": GaussianNB(),
    "tree": DecisionTreeClassifier(max_depth=10, random_state=0),
}


class Base(DeclarativeBase):
    pass


class Experiment(Base):
    """One split of the data, which all its runs share."""

    __tablename__ = "digits_experiments"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    title: Mapped[str] = mapped_column(String(80))
    data: Mapped[DataStore] = mapped_column(DataStoreType())
    runs: Mapped[list[Run]] = relationship(
        back_populates="experiment", cascade="all, delete-orphan"
    )


class Run(Base):
    """One model, trained and tested."""

    __tablename__ = "digits_runs"

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    id_experiment: Mapped[uuid.UUID] = mapped_column(ForeignKey(Experiment.id))
    model: Mapped[str] = mapped_column(String(80))
    accuracy: Mapped[float]
    output: Mapped[DataStore] = mapped_column(DataStoreType())
    metrics: Mapped[DataStore] = mapped_column(DataStoreType())
    experiment: Mapped[Experiment] = relationship(back_populates="runs")


def split() -> DataStore:
    """Return the training and test data."""
    digits = load_digits()
    parts = train_test_split(digits.data / 16, digits.target, test_size=0.4, random_state=0)
    names = ("train_images", "test_images", "train_labels", "test_labels")
    return DataStore(zip(names, parts, strict=True), classes=list(range(10)))


def train(name: str, data: DataStore) -> Run:
    """Train one model and return its run, not stored yet."""
    model = MODELS[name]
    started = time.perf_counter()
    model.fit(data.train_images, data.train_labels)
    seconds = time.perf_counter() - started
    predictions = model.predict(data.test_images)
    return Run(
        model=name,
        accuracy=float(np.mean(predictions == data.test_labels)),
        output=DataStore(
            predictions=predictions,
            probabilities=model.predict_proba(data.test_images),
            coefficients=DataStore(coefficients(model)),
        ),
        metrics=DataStore(
            per_class=per_class(data, predictions),
            confusion=confusion_matrix(data.test_labels, predictions),
            parameters=model.get_params(),
            seconds=seconds,
        ),
    )


def coefficients(model: Any) -> dict[str, Any]:
    """Return the arrays that a fitted model consists of, where it has any."""
    names = ("coef_", "intercept_", "theta_", "var_", "feature_importances_")
    return {name.rstrip("_"): getattr(model, name) for name in names if hasattr(model, name)}


def per_class(data: DataStore, predictions: Any) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each digit."""
    columns = precision_recall_fscore_support(data.test_labels, predictions, zero_division=0)
    names = ("precision", "recall", "f1", "support")
    return pd.DataFrame(
        dict(zip(names, columns, strict=True)), index=pd.Index(data.classes, name="digit")
    )


def store_runs(session: Session) -> uuid.UUID:
    """Train all models, each run in a transaction of its own, and return the experiment's key."""
    experiment = Experiment(title="digits, 60 % for training", data=split())
    session.add(experiment)
    session.commit()
    for name in MODELS:
        experiment.runs.append(train(name, experiment.data))
        session.commit()
    return experiment.id


def compare(session: Session, id_experiment: uuid.UUID) -> None:
    """Print how the runs of an experiment differ."""
    best_first = select(Run).where(Run.id_experiment == id_experiment).order_by(Run.accuracy.desc())
    runs = session.scalars(best_first).all()
    table = pd.DataFrame(
        [
            {
                "model": run.model,
                "accuracy": run.accuracy,
                "hardest digit": run.metrics.per_class["f1"].idxmin(),
                "its f1": run.metrics.per_class["f1"].min(),
                "training [s]": run.metrics.seconds,
                "coefficients": sum(array.size for array in run.output.coefficients.values()),
            }
            for run in runs
        ]
    )
    print(table.to_string(index=False, float_format="{:.3f}".format))

    best, second = runs[:2]
    labels = best.experiment.data.test_labels
    differ = best.output.predictions != second.output.predictions
    right = best.output.predictions[differ] == labels[differ]
    print(
        f"\n{best.model} and {second.model} disagree on {differ.sum()} of {labels.size} digits; "
        f"{best.model} is right on {right.sum()} of them."
    )

    mistakes = best.metrics.confusion - np.diag(np.diag(best.metrics.confusion))
    truth, guess = np.unravel_index(mistakes.argmax(), mistakes.shape)
    print(f"Its most frequent mistake: {truth} taken for {guess} ({mistakes.max()} times).")
    print(f"\nWhat the run of {best.model} holds:\n{best.output}\n{best.metrics}")


def main() -> None:
    """Train, store, query."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--database", default="sqlite:///digits.db", metavar="URL")
    parser.add_argument("--storage", type=Path, default=Path("digits.storage"), metavar="PATH")
    arguments = parser.parse_args()

    engine = create_engine(arguments.database)
    bind_storage(engine, arguments.storage)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        id_experiment = store_runs(session)
    # a session of its own: nothing below comes from memory
    with Session(engine) as session:
        compare(session, id_experiment)
    engine.dispose()


if __name__ == "__main__":
    main()
