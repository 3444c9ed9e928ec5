"""URLs: one parser, nothing leaves the base, families follow from their first name."""

from __future__ import annotations

import re
from unittest import mock

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from sqla_datastore.exceptions import RefusedURLError
from sqla_datastore.storage import LocalStorage, urls
from sqla_datastore.storage.urls import (
    MANAGED_SUFFIX,
    MAX_NESTED,
    OBJECT_NAME,
    ObjectURL,
    check_path,
    is_managed,
    names_behind,
    new_object_name,
    quote_segment,
)

HEX = "0123456789abcdef" * 2
TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


class TestParse:
    @pytest.mark.parametrize(
        "url",
        [
            f"file:///runs/1/{HEX}.zip",
            f"s3:///{HEX}.zip",
            "memory:///a%20b/~x/c.zip",
            "my+scheme:///x",
        ],
    )
    def test_text_and_parts_round_trip(self, url):
        parsed = ObjectURL.parse(url)
        assert str(parsed) == url
        assert ObjectURL.parse(str(parsed)) == parsed
        assert (
            url == f"{parsed.scheme}:///{parsed.folder + '/' if parsed.folder else ''}{parsed.name}"
        )

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "x",
            "/etc/passwd",
            "file:/x",
            "file://host/x",
            "file:////x",
            "file:///",
            "file:///a//b",
            "file:///a/",
            "file:///./a",
            "file:///../a",
            "file:///a/%2E%2E/b",
            "file:///a/%2e%2e/b",
            "file:///a%2Fb",
            "file:///a%5Cb",
            "file:///a\\b",
            "file:///a b",
            "file:///a\nb",
            "file:///a?b",
            "file:///a#b",
            "file:///a%",
            "file:///a%zz",
            "file:///ä",
            "FILE:///a",
            "1:///a",
            "data:text/plain,x",
            "data:///x",
            "file:///" + "a" * 1024,
            None,
            b"file:///a",
        ],
    )
    def test_what_is_refused(self, url):
        with pytest.raises(RefusedURLError) as caught:
            ObjectURL.parse(url)
        assert caught.value.reason
        assert isinstance(caught.value, ValueError)

    @given(st.text())
    def test_any_text_is_parsed_or_refused(self, text):
        for url in (text, f"file:///{text}"):
            try:
                parsed = ObjectURL.parse(url)
            except RefusedURLError:
                continue
            assert str(parsed) == url
            assert ".." not in parsed.path.split("/")


class TestSegments:
    @given(TEXT)
    def test_a_segment_is_one_and_plain(self, text):
        segment = quote_segment(text)
        assert segment
        assert "/" not in segment
        assert segment not in (".", "..")
        if "/" not in text and "\\" not in text:
            assert check_path(segment) == segment

    @given(st.text() | st.text("aZ09-_.~/%", max_size=160) | st.integers() | st.uuids())
    @example("a" * 150)
    @example("a" * 151)
    @example("a\n")
    def test_what_stands_as_it_is_is_what_quoting_makes_of_it(self, value):
        with mock.patch.object(urls, "_AS_IT_IS", re.compile("(?!)")):
            quoted = quote_segment(value)
        assert quote_segment(value) == quoted

    @given(TEXT, TEXT)
    def test_different_values_stay_apart(self, one, other):
        assert (quote_segment(one) == quote_segment(other)) == (one == other)

    @pytest.mark.parametrize("text", ["", ".", ".."])
    def test_dots_and_nothing_have_a_form(self, text):
        assert check_path(f"runs/{quote_segment(text)}/x.zip")


class TestFamilies:
    def test_new_names_are_objects_names(self):
        names = {new_object_name(nested) for nested in (0, 0, 1, 12)}
        assert len(names) == 4
        assert all(OBJECT_NAME.fullmatch(name) for name in names)

    def test_a_single_object_is_its_own_family(self):
        url = ObjectURL.parse(f"file:///runs/{HEX}.zip")
        assert url.nested_count == 0
        assert url.family() == [url]

    @pytest.mark.parametrize("folder", ["runs/1/", ""])
    def test_a_family_follows_from_its_first_name(self, folder):
        url = ObjectURL.parse(f"file:///{folder}{HEX}-3.zip")
        assert [str(each) for each in url.family()] == [
            f"file:///{folder}{HEX}-3.zip",
            f"file:///{folder}{HEX}-3.1.zip",
            f"file:///{folder}{HEX}-3.2.zip",
            f"file:///{folder}{HEX}-3.3.zip",
        ]

    def test_every_member_finds_its_siblings(self):
        url = ObjectURL.parse(f"file:///runs/{HEX}-3.zip")
        for member in url.family():
            assert [member.nested(index) for index in range(3)] == url.family()[1:]

    def test_members_know_their_numbers(self):
        url = ObjectURL.parse(f"file:///runs/{HEX}-3.zip")
        assert [each.number for each in url.family()] == [-1, 0, 1, 2]
        assert [each.family_size for each in url.family()] == [3] * 4
        single = ObjectURL.parse(f"file:///runs/{HEX}.zip")
        assert (single.number, single.family_size) == (-1, 0)

    def test_managed_objects_have_families_too(self):
        name = new_object_name(2, MANAGED_SUFFIX)
        family = ObjectURL.parse(f"file:///runs/{name}").family()
        assert [each.name for each in family] == [
            name,
            name.replace(".io", ".1.io"),
            name.replace(".io", ".2.io"),
        ]
        assert {each.root() for each in family} == {family[0]}
        assert family[1].nested(1) == family[2]
        assert all(is_managed(each.name) for each in family)
        assert not any(OBJECT_NAME.fullmatch(each.name) for each in family)

    def test_names_of_managed_objects(self):
        assert is_managed(f"{HEX}.bin")
        for name in (new_object_name(), new_object_name(1), f"{HEX}-1.bin", "x.bin", "x.io.zip"):
            assert not is_managed(name)

    def test_a_nested_object_has_no_family_of_its_own(self):
        assert ObjectURL.parse(f"file:///{HEX}-3.2.zip").nested_count == 0

    @pytest.mark.parametrize(
        "name", ["x.zip", f"{HEX}.tmp", f"{HEX}-0.zip", f"{HEX[:-1]}.zip", f"{HEX}-3.0.zip"]
    )
    def test_foreign_names_have_no_family(self, name):
        assert not OBJECT_NAME.fullmatch(name)
        assert ObjectURL.parse(f"file:///{name}").nested_count == 0

    @pytest.mark.parametrize("count", [MAX_NESTED + 1, 9_999_999, 10**30])
    @pytest.mark.parametrize("rest", [".zip", ".1.zip", ".io.zip"])
    def test_more_than_a_value_can_have_is_refused(self, count, rest):
        with pytest.raises(RefusedURLError, match="more than 1000000"):
            ObjectURL.parse(f"file:///runs/{HEX}-{count}{rest}")
        assert not OBJECT_NAME.fullmatch(f"{HEX}-{count}{rest}")

    def test_as_many_as_a_value_can_have(self):
        url = ObjectURL.parse(f"file:///runs/{HEX}-{MAX_NESTED}.zip")
        *_, last = url.family_paths()
        assert last == f"runs/{HEX}-{MAX_NESTED}.{MAX_NESTED}.zip"


class TestNamesBehindATextOfARow:
    def test_a_large_family_whose_first_object_is_missing_is_not_believed(self, tmp_path):
        name = f"runs/{HEX}-{MAX_NESTED}.zip"
        storage = LocalStorage(tmp_path)
        assert [each.path for each in names_behind(storage, f"file:///{name}")] == [name]

    def test_a_large_family_whose_first_object_is_there(self, tmp_path):
        name, storage = f"runs/{HEX}-2000.zip", LocalStorage(tmp_path)
        with storage.create(name):
            pass
        assert len(names_behind(storage, f"file:///{name}")) == 2001

    def test_a_large_family_that_is_going_to_be_written(self, tmp_path):
        url, storage = f"file:///runs/{HEX}-2000.zip", LocalStorage(tmp_path)
        assert len(names_behind(storage, url, lambda name: name.path in url)) == 2001

    def test_what_is_refused_has_none(self, tmp_path):
        assert names_behind(LocalStorage(tmp_path), f"file:///{HEX}-9999999.zip") == []


@given(st.text("ab./~%2F-_\\\0 é\n", max_size=8))
def test_ordinary_paths_are_those_that_a_closer_look_takes_too(path):
    if urls._ORDINARY.fullmatch(path):
        nothing = re.compile(r"(?!)")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(urls, "_ORDINARY", nothing)
            assert check_path(path) == path
