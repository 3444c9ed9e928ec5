"""The text of folder templates: what is refused when the type is made."""

from __future__ import annotations

import pytest

from sqla_datastore import ConfigurationError, DataStoreType


@pytest.mark.parametrize(
    "folder",
    [
        "{table}/{pk}",
        "{id_experiment}",
        "runs/{id}",
        "runs/run={id}",
        "{a},{b}",
        "{a}={b}",
        "a/b/c/{d}",
        "constant",
        "%41/{id}",
        "{ünïcode}",
    ],
)
def test_good_templates(folder):
    assert DataStoreType(folder=folder).folder == folder


@pytest.mark.parametrize(
    "folder",
    [
        "",
        "/",
        "/{id}",
        "{id}/",
        "a//b",
        "..",
        "../{id}",
        "a/../{id}",
        ".",
        "./{id}",
        "%2E%2E/{id}",
        "a%2Fb/{id}",
        "a\\b/{id}",
        "a b/{id}",
        "a?b/{id}",
        "a#b/{id}",
        "a\0/{id}",
        "{id",
        "id}",
        "{}",
        "{0}",
        "{id!r}",
        "{id:>5}",
        "{id.hex}",
        "{id[0]}",
        "{a b}",
        "{a-b}",
        "{a}{b}",
        "{a}-{b}",
        "{a}x{b}",
        "{pk}{table}",
        "{a}_{b}/x",
        "ünïcode/{id}",
        "file:///x/{id}",
        "/etc/{id}",
        "~/{id}\n",
    ],
)
def test_bad_templates_are_refused_when_the_type_is_made(folder):
    with pytest.raises(ConfigurationError) as caught:
        DataStoreType(folder=folder)
    assert repr(folder) in str(caught.value)


@pytest.mark.parametrize(
    ("folder", "reason"),
    [
        ("{title}-{id}", "a value of {title} may contain '-' itself"),
        ("{title}_v_{id}", "a value of {title} may contain '_v_' itself"),
        ("{title}{id}", "nothing tells where {title} ends"),
        ("{a},{title}-{id}", "a value of {title} may contain '-' itself"),
    ],
)
def test_fields_that_run_together_are_refused_with_the_reason_and_what_to_do(folder, reason):
    with pytest.raises(ConfigurationError) as caught:
        DataStoreType(folder=folder)
    message = str(caught.value)
    assert reason in message
    assert "two rows could share one folder" in message
    assert "put one of ',;=+@:!'" in message
    assert "between {title} and {id}, or '/'" in message
    for between in ",;=+@:!/":
        DataStoreType(folder=f"{{title}}{between}{{id}}")


def test_a_literal_dollar_or_brace_is_no_field(Base):
    with pytest.raises(ConfigurationError):
        DataStoreType(folder="{{id}}/{id}")
