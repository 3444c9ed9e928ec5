"""Who may see the page: this machine's own names, or who has the token; for reading only."""

from __future__ import annotations

import pytest

pytest.importorskip("starlette")
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from sqla_datastore.browsing.guard import Guard


async def page(scope, receive, send):
    query = scope["query_string"].decode()
    await PlainTextResponse(f"secret {scope['path']} {query}")(scope, receive, send)


def client(token=None, base_url="http://127.0.0.1:8765"):
    return TestClient(Guard(page, token), base_url=base_url, follow_redirects=False)


@pytest.mark.parametrize(
    "host", ["127.0.0.1:1", "localhost", "localhost:1", "[::1]:8", "127.0.0.2"]
)
def test_own_names_pass(host):
    assert client().get("/", headers={"host": host}).text.startswith("secret")


@pytest.mark.parametrize(
    "host",
    ["evil.example", "127.0.0.1.evil.example", "localhost.evil:80", "", "[::1", "0x7f000001"],
)
def test_a_stranger_s_name_that_leads_here_does_not(host):
    answer = client().get("/", headers={"host": host})
    assert answer.status_code == 400 or host == "[::1"
    assert "secret" not in answer.text or host == "[::1"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_only_reading_is_allowed(method):
    answer = client().request(method, "/")
    assert (answer.status_code, "secret" in answer.text) == (405, False)


def test_a_token_is_needed_where_one_is_set():
    with_token = client("right", "http://lab.example")
    for given in ("", "?token=", "?token=wrong", "?token=%ff", "?token=right2"):
        answer = with_token.get(f"/rows{given}")
        assert (answer.status_code, "secret" in answer.text) == (403, False)
    for cookie in ("", "sqla_datastore_browse_80=wrong", "=;;;\x01", "sqla_datastore_browse_80"):
        assert with_token.get("/", headers={"cookie": cookie}).status_code == 403


def test_a_token_in_the_address_becomes_a_cookie_and_leaves_the_address():
    with_token = client("right", "http://lab.example")
    answer = with_token.get("/rows?table=a%26b&token=right&entry=x&entry=y")
    assert (answer.status_code, answer.headers["location"]) == (
        303,
        "/rows?table=a%26b&entry=x&entry=y",
    )
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert "right" not in answer.text
    assert with_token.get("/rows?table=x").text == "secret /rows table=x"
    # the page of another port has a token of its own
    assert with_token.get("http://lab.example:81/").status_code == 403


def test_a_redirect_stays_here():
    answer = client("t", "http://lab.example").get("http://lab.example//evil.example/?token=t")
    assert answer.headers["location"] == "/evil.example/"


def test_refusals_carry_the_policy_too():
    for answer in (client().post("/"), client("t").get("/")):
        assert "default-src 'none'" in answer.headers["content-security-policy"]
