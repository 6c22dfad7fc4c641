"""What the labelling server answers to clients without an account, and to requests without an end."""

import contextlib
import json
import socket
import sqlite3
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from urllib.parse import urlencode, urlsplit

import pytest

from curate.review.argilla.server.rate_limit import MAX_KEYS, RateLimit, SignInLimit


def request(server, method, path, body=None, headers=None):
    """Status, headers and body of the response, whatever the status is."""
    with closing(HTTPConnection(urlsplit(server.url).netloc, timeout=60)) as connection:
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()


@pytest.mark.parametrize(
    "path",
    [
        "/api/v1/status",
        "/api/v1/docs",
        "/api/v1/redoc",
        "/api/v1/openapi.json",
        "/openapi.json",
        "/docs",
        "/api",
        "/api/v1/me",
        "/api/v1/users",
        "/api/v1/nothing",
    ],
)
def test_without_an_account_it_is_not_said_what_exists(argilla_server, path):
    status, headers, body = request(argilla_server, "GET", path)
    assert (status, json.loads(body)) == (401, {"detail": "Could not validate credentials"})
    assert headers["content-security-policy"]


def test_the_sign_in_page_works_without_an_account(argilla_server):
    for path in ("/", "/sign-in", "/api/v1/version", "/api/v1/settings", "/api/v1/oauth2/providers"):
        assert request(argilla_server, "GET", path)[0] == 200


def test_large_requests_are_refused_before_they_are_read(argilla_server):
    _, _, key = argilla_server.annotator("ann")
    length = {"Content-Length": str(10**9), "Content-Type": "application/json"}
    keyed = {"X-Argilla-Api-Key": key}
    for method, path, headers, status in (
        ("POST", "/api/v1/token", length, 413),
        ("POST", "/api/v1/me/responses/bulk", length, 401),
        ("POST", "/api/v1/me/responses/bulk", length | keyed, 413),
        ("POST", "/api/v1/datasets", length | {"X-Argilla-Api-Key": argilla_server.api_key}, 413),
        ("POST", "/sign-in", length, 405),
        ("GET", "/" + "a" * 2000, {}, 414),
        ("GET", "/?" + "a" * 20_000, {}, 414),
        ("GET", "/", {f"X-{number}": "a" for number in range(150)}, 431),
    ):
        assert request(argilla_server, method, path, b"" if "Content-Length" in headers else None, headers)[0] == status
    assert request(argilla_server, "POST", "/api/v1/token", iter([b"a" * 3000] * 2))[0] == 413


def test_a_header_without_an_end_ends_the_connection(argilla_server):
    with closing(socket.create_connection(urlsplit(argilla_server.url).netloc.split(":"))) as client:
        client.settimeout(60)
        client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(1000):
                client.sendall(b"a" * 10_000)
            assert b"400" in client.recv(1000)
            return
    # The server has closed the connection before it read the ten megabytes.


SLOW_STARTS = (
    b"",
    b"GET /api/v1/version HTTP/1.1\r\nX-Slow: ",
    b"POST /api/v1/token HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nusername=",
)


def test_clients_that_send_nothing_or_one_byte_a_second_are_disconnected(argilla_server):
    clients = [socket.create_connection(urlsplit(argilla_server.url).netloc.split(":")) for _ in SLOW_STARTS]
    for client, start in zip(clients, SLOW_STARTS, strict=True):
        client.sendall(start)
    end, waiting = time.monotonic() + 60, clients
    while waiting:
        assert time.monotonic() < end, "a connection stayed open for a minute"
        time.sleep(1)
        waiting = [client for client in waiting if is_open(client, sends=client is not clients[0])]
    for client in clients:
        client.close()


def is_open(client, *, sends):
    try:
        if sends:
            client.send(b"a")
        client.setblocking(False)
        client.recv(1000)  # the end, or a response before it
    except BlockingIOError:
        return True
    except ConnectionError:
        pass
    return False


def test_a_request_for_a_web_socket_is_answered_as_a_request(argilla_server):
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Key": "x", "Sec-WebSocket-Version": "13"}
    assert request(argilla_server, "GET", "/api/v1/me", headers=upgrade)[0] == 401


def test_the_files_of_the_page_are_sent_compressed(argilla_server):
    plain = request(argilla_server, "GET", "/sign-in")
    small = request(argilla_server, "GET", "/sign-in", headers={"Accept-Encoding": "gzip, br"})
    again = request(argilla_server, "GET", "/sign-in", headers={"Accept-Encoding": "br"})
    assert (small[0], small[1]["content-encoding"], len(small[2])) == (200, "br", int(small[1]["content-length"]))
    assert len(small[2]) < len(plain[2]) / 2
    assert small[2] == again[2]


def test_guidelines_are_shown_without_html(argilla_server):
    form = '# Rules\n\n<form action="/x"><input type="password"></form>'
    body = {"name": "guided", "workspace_id": argilla_server.workspace, "guidelines": form}
    made = argilla_server.ask("POST", "datasets", body)
    assert made["guidelines"] == form.replace("<", "&lt;")
    changed = argilla_server.ask("PATCH", f"datasets/{made['id']}", {"guidelines": made["guidelines"] + " <b>"})
    assert changed["guidelines"] == form.replace("<", "&lt;") + " &lt;b>"
    argilla_server.ask("DELETE", f"datasets/{made['id']}")


# sign in ---------------------------------------------------------------------------------------------------------


def sign_in(server, name, password, address):
    """Sign in as through a proxy, from this address: status and headers, and the token."""
    body = urlencode({"username": name, "password": password})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": address}
    status, sent, text = request(server, "POST", "/api/v1/token", body, headers)
    return status, sent, json.loads(text).get("access_token")


def test_wrong_passwords_are_limited_and_say_when_to_try_again(argilla_server):
    name, password, _ = argilla_server.annotator("limited")
    answers = [sign_in(argilla_server, name, "wrong", "192.0.2.1") for _ in range(8)]
    assert [status for status, *_ in answers] == [401] * 5 + [429] * 3
    assert 0 < int(answers[-1][1]["retry-after"]) <= 30
    assert sign_in(argilla_server, name, password, "192.0.2.1")[0] == 429
    assert sign_in(argilla_server, name, password, "192.0.2.2")[0] == 201


def test_a_wrong_password_and_an_unknown_name_are_told_apart_by_nothing(argilla_server):
    name, *_ = argilla_server.annotator("ann")
    wrong = request_token(argilla_server, name, "wrong", "192.0.2.20")
    unknown = request_token(argilla_server, "no-such-name", "wrong", "192.0.2.20")
    assert wrong == unknown
    assert request_token(argilla_server, "n" * 3000, "wrong", "192.0.2.20") == wrong


def request_token(server, name, password, address):
    body = urlencode({"username": name, "password": password})
    headers = {"Content-Type": "application/x-www-form-urlencoded", "X-Forwarded-For": address}
    status, _, text = request(server, "POST", "/api/v1/token", body, headers)
    return status, text


def test_requests_are_answered_while_passwords_are_checked(argilla_server):
    """The same number of passwords, checked in the event loop, would delay every one of these requests."""
    name, _, key = argilla_server.annotator("ann")
    stop = threading.Event()

    def attack(number):
        while not stop.is_set():
            sign_in(argilla_server, f"{name}{number}", "wrong", f"10.0.0.{number}")

    threads = [threading.Thread(target=attack, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    try:
        answered = [
            request(argilla_server, "GET", "/api/v1/me", headers={"X-Argilla-Api-Key": key})[0] for _ in range(30)
        ]
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert answered == [200] * 30


def test_a_rate_limit_recovers_and_forgets_the_least_recent_key():
    now = [0.0]
    limit = RateLimit(3, 10, clock=lambda: now[0])
    for _ in range(3):
        assert limit.wait("ann") == 0
        limit.take("ann")
    assert limit.wait("ann") == 10
    limit.give_back("ann")
    assert limit.wait("ann") == 0
    now[0] = 1000.0
    for _ in range(3):
        limit.take("ann")
    assert limit.wait("ann") == 10, "no more than the burst is saved up"
    for number in range(MAX_KEYS + 100):
        limit.take(number)
    assert len(limit) == MAX_KEYS
    assert limit.wait("ann") == 0


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def limit(clock):
    return SignInLimit(clock=lambda: clock[0])


def test_an_address_that_tries_many_names_is_limited(limit):
    waits = [limit.start(f"name-{number}", "a") for number in range(22)]
    assert waits == [0.0] * 20 + [5.0] * 2


def test_wrong_passwords_from_everywhere_do_not_lock_an_annotator_out(limit, clock):
    assert limit.start("ann", "home") == 0
    limit.succeed("ann", "home")
    attempts = [limit.start("ann", f"address-{number}") for number in range(60)]
    assert attempts == [0.0] * 50 + [10.0] * 10
    assert limit.start("ann", "home") == 0, "the address where ann signed in before"
    clock[0] = 11.0
    assert limit.start("ann", "a new address") == 0, "the limit of a name recovers"


def test_wrong_passwords_behind_the_same_proxy_do_not_lock_an_annotator_out(limit):
    assert limit.start("ann", "proxy") == 0
    limit.succeed("ann", "proxy")
    assert [limit.start(f"name-{number}", "proxy") for number in range(21)][-1] == 5
    assert [limit.start("ann", "proxy") for _ in range(6)] == [0.0] * 5 + [30.0], "ann's own attempts are limited"


def test_correct_passwords_are_not_counted(limit):
    for _ in range(100):
        assert limit.start("ann", "a") == 0
        limit.succeed("ann", "a")


# sessions --------------------------------------------------------------------------------------------------------


def test_a_new_password_ends_tokens_and_keys(argilla_server, curate):
    name, password, key = argilla_server.annotator("renewed")
    token = sign_in(argilla_server, name, password, "192.0.2.30")[2]
    assert status_of_me(argilla_server, token=token) == status_of_me(argilla_server, key=key) == 200
    ran = curate("review", "users", "password", name, "--home", str(argilla_server.home), "--json")
    new = json.loads(ran.stdout)
    assert status_of_me(argilla_server, token=token) == status_of_me(argilla_server, key=key) == 401
    assert status_of_me(argilla_server, key=new["api_key"]) == 200
    token = sign_in(argilla_server, name, new["password"], "192.0.2.30")[2]
    assert status_of_me(argilla_server, token=token) == 200


def test_the_token_of_a_deleted_account_is_not_accepted_for_another_with_its_name(argilla_server):
    body = {"first_name": "x", "username": "again", "role": "annotator", "password": "12345678"}
    first = argilla_server.ask("POST", "users", body)
    token = sign_in(argilla_server, "again", "12345678", "192.0.2.40")[2]
    assert status_of_me(argilla_server, token=token) == 200
    argilla_server.ask("DELETE", f"users/{first['id']}")
    argilla_server.ask("POST", "users", body)
    assert status_of_me(argilla_server, token=token) == 401


def test_a_token_that_the_server_did_not_sign_is_not_accepted(argilla_server):
    assert status_of_me(argilla_server, token="a.b.c") == 401
    assert status_of_me(argilla_server, token="") == 401


def status_of_me(server, token=None, key=None):
    headers = {"X-Argilla-Api-Key": key} if key else {"Authorization": f"Bearer {token}"}
    return request(server, "GET", "/api/v1/me", headers=headers)[0]


# permissions -----------------------------------------------------------------------------------------------------


@pytest.fixture
def answered(argilla_server):
    """The ids of a dataset and its record, with an answer of two annotators and metadata that they must not see."""
    ask = argilla_server.ask
    made = ask("POST", "datasets", {"name": f"private-{time.time_ns()}", "workspace_id": argilla_server.workspace})[
        "id"
    ]
    text = {"type": "text", "use_markdown": False}
    ask("POST", f"datasets/{made}/fields", {"name": "text", "title": "text", "settings": text})
    body = {
        "name": "quality",
        "title": "q",
        "required": True,
        "settings": {"type": "rating", "options": [{"value": 1}, {"value": 2}]},
    }
    ask("POST", f"datasets/{made}/questions", body)
    hidden = {"name": "score", "title": "s", "settings": {"type": "integer"}, "visible_for_annotators": False}
    ask("POST", f"datasets/{made}/metadata-properties", hidden)
    ask("PUT", f"datasets/{made}/publish")
    ask("POST", f"datasets/{made}/records/bulk", {"items": [{"fields": {"text": "x"}, "metadata": {"score": 1}}]})
    [record] = ask("GET", f"datasets/{made}/records")["items"]
    for name, value in (("ann", 1), ("bob", 2)):
        answer = {"values": {"quality": {"value": value}}, "status": "submitted"}
        ask("POST", f"records/{record['id']}/responses", answer, key=argilla_server.annotator(name)[2])
    return made, record["id"]


def test_annotators_read_only_their_own_answers(argilla_server, answered):
    made, record = answered
    paths = [
        ("GET", f"records/{record}", None),
        ("GET", f"datasets/{made}/records?include=responses", None),
        ("POST", f"me/datasets/{made}/records/search?include=responses", {}),
        ("POST", f"datasets/{made}/records/search?include=responses", {}),
        ("GET", f"datasets/{made}/users/progress", None),
        ("GET", f"me/datasets/{made}/metrics", None),
        ("GET", f"datasets/{made}/progress", None),
        ("GET", "users", None),
        ("GET", f"workspaces/{argilla_server.workspace}/users", None),
    ]
    bob = argilla_server.ask("GET", "me", key=argilla_server.annotator("bob")[2])
    for method, path, body in paths:
        headers = {"X-Argilla-Api-Key": argilla_server.annotator("ann")[2], "Content-Type": "application/json"}
        content = None if body is None else json.dumps(body)
        status, _, text = request(argilla_server, method, f"/api/v1/{path}", content, headers)
        assert status in (200, 403), path
        assert not any(secret in text.decode() for secret in (bob["id"], '"bob"', '"score"')), path
    own = argilla_server.ask("GET", f"records/{record}", key=argilla_server.annotator("ann")[2])
    assert [each["values"]["quality"]["value"] for each in own["responses"]] == [1]
    everything = argilla_server.ask("GET", f"records/{record}")
    assert (len(everything["responses"]), everything["metadata"]) == (2, {"score": 1})
    with closing(sqlite3.connect(argilla_server.home / "argilla.db")) as connection:
        stored = connection.execute("SELECT metadata FROM records WHERE id = ?", [record.replace("-", "")]).fetchone()
    assert json.loads(stored[0]) == {"score": 1}, "what is left out of a response stays stored"
