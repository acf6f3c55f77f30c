"""Who is answered, and with which headers: real requests to a running dashboard."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from gradtf_fl.dashboard import Sources
from gradtf_fl.dashboard.guard import HEADERS
from tests.dashboard.conftest import HOSTILE, Serve, running

PATHS = ["/", "/budgets", "/events/budgets", "/static/dashboard.css", "/static/dashboard.js", "/nowhere"]


def raw(port: int, request: str) -> str:
    """Status line of the answer to exactly these bytes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as stream:
        stream.sendall(request.encode("latin-1"))
        return stream.recv(4096).decode("latin-1").partition("\r\n")[0]


def test_the_link_opens_once(ledger: Path) -> None:
    with running(Sources(ledgers=(ledger,))) as server, httpx.Client() as client:
        base, _, token = server.url.partition("/open?token=")
        assert len(token) >= 43  # 32 bytes
        assert client.get(f"{base}/open").status_code == 401
        assert client.get(f"{base}/open?token={token[:-1]}").status_code == 401
        assert client.get(f"{base}/open?token=%F0%9F%92%A9").status_code == 401
        assert client.head(server.url).status_code == 401  # what looks ahead does not use it up
        first = client.get(server.url)
        assert (first.status_code, first.headers["location"]) == (303, "/")
        cookie = first.headers["set-cookie"]
        assert cookie.endswith("; HttpOnly; SameSite=Strict; Path=/")
        assert f"gradtf_dashboard_{server.port}=" in cookie
        assert token not in cookie
        assert client.get(server.url).status_code == 401
        assert client.get(f"{base}/budgets").status_code == 200  # the cookie stays good
        client.cookies.clear()
        assert client.get(server.url).status_code == 401
        assert client.get(f"{base}/budgets").status_code == 401


def test_cookies_of_other_programs_on_loopback_are_in_nobody_s_way(serve: Serve, ledger: Path) -> None:
    served = serve(ledgers=(ledger,))
    ((name, value),) = served.client.cookies.items()
    for header in (f'{{"a": [1]}}; _xsrf=2|x; {name}={value}', f"{name}=tossed; {name}={value}; b"):
        assert httpx.get(f"{served.base}/budgets", headers={"Cookie": header}).status_code == 200
    assert httpx.get(f"{served.base}/budgets", headers={"Cookie": f"x{name}={value}"}).status_code == 401


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_answered_without_the_cookie(serve: Serve, ledger: Path, path: str) -> None:
    served = serve(ledgers=(ledger,))
    for cookies in ({}, {f"gradtf_dashboard_{served.server.port}": "guessed"}):
        answer = httpx.get(f"{served.base}{path}", cookies=cookies)
        assert answer.status_code == 401
        assert "clinic" not in answer.text
        assert "gradtf dashboard" in answer.text


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "127.0.0.1@evil.example", "localhost.evil", "10.0.0.1", "[::2]"]
)
def test_another_host_name_is_refused_with_the_cookie_too(serve: Serve, ledger: Path, host: str) -> None:
    served = serve(ledgers=(ledger,))
    for name in (host, f"{host}:{served.server.port}"):
        for path in ("/budgets", "/open?token=x"):
            assert served.client.get(path, headers={"Host": name}).status_code == 403
    assert served.client.get("/budgets", headers={"Host": f"localhost:{served.server.port}"}).status_code == 200


def test_requests_without_or_with_two_host_names_are_refused(serve: Serve, ledger: Path) -> None:
    port = serve(ledgers=(ledger,)).server.port
    assert " 400 " in raw(port, "GET /budgets HTTP/1.1\r\nConnection: close\r\n\r\n")
    two = "GET /budgets HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n"
    assert raw(port, two).split()[1] in ("400", "403")
    assert " 403 " in raw(port, "GET /budgets HTTP/1.0\r\n\r\n")


def test_every_answer_has_every_header(serve: Serve, ledger: Path, organization: Path) -> None:
    served = serve(ledgers=(ledger,), organization=organization)
    client, strange = served.client, {"Host": "evil.example"}
    answers = {
        200: [client.get(path) for path in ("/budgets", "/static/dashboard.css", "/adapters", "/log")],
        303: [client.get("/")],
        401: [httpx.get(f"{served.base}/budgets")],
        403: [client.get("/budgets", headers=strange), client.post("/adapters/choose")],
        404: [client.get("/nowhere"), client.get("/static/secret"), client.get("/events/nowhere")],
        405: [client.post("/budgets"), client.get("/adapters/choose")],
        409: [client.get("/adapters/confirm?round=9"), client.get("/adapters/confirm?round=x")],
    }
    for status, found in answers.items():
        for answer in found:
            assert answer.status_code == status, answer.url
            for name, value in HEADERS.items():
                assert answer.headers.get_list(name) == [value], (answer.url, name)
            assert "server" not in answer.headers
    policy = HEADERS["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy


def test_a_stream_has_them_too_and_tells_the_page_s_parts(serve: Serve, ledger: Path) -> None:
    served = serve(ledgers=(ledger,))
    with served.client.stream("GET", "/events/budgets") as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        assert answer.headers["content-security-policy"] == HEADERS["Content-Security-Policy"]
        lines = answer.iter_lines()
        assert next(lines) == "event: part"
        assert next(lines).startswith('data: {"id": "budgets-budgets"')


def test_a_page_says_nothing_of_other_sites_and_loads_nothing(serve: Serve, ledger: Path, organization: Path) -> None:
    served = serve(ledgers=(ledger,), organization=organization)
    for path in ("/budgets", "/adapters", "/log", "/static/dashboard.css", "/static/dashboard.js"):
        text = served.text(path)
        assert "http:" not in text
        assert "https:" not in text
        assert "style=" not in text
        assert " on" not in "".join(part for part in text.split("<")[1:] if part.startswith("script"))
        assert HOSTILE not in text
