"""The labelling server: accounts, headers, restarts, crashes, backups, background jobs."""

import itertools
import json
import socket
import sqlite3
import subprocess
import threading
import time
from contextlib import closing
from http.client import HTTPException
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest
import yaml
from support.argilla_server import LabellingServer, RefusedError


def test_every_response_forbids_scripts_from_elsewhere(argilla_server):
    for path in ("/", "/sign-in", "/api/v1/version"):
        with urlopen(argilla_server.url + path) as answer:
            rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert rules["script-src"].startswith("'self' 'sha256-")
        assert "unsafe" not in rules["script-src"]
        assert (rules["connect-src"], rules["object-src"], rules["frame-ancestors"]) == ("'self'", "'none'", "'none'")


def test_the_compose_file_has_the_same_headers_as_the_server(argilla_server, curate):
    with urlopen(argilla_server.url) as answer:
        sent = {name: answer.headers[name] for name in ("Content-Security-Policy", "X-Content-Type-Options")}
    printed = curate("review", "compose").stdout
    assert [name for name, value in sent.items() if f'{name} "{value}"' not in printed] == []
    services = yaml.safe_load(printed)["services"]
    assert services.keys() == {"proxy", "server", "worker", "elasticsearch", "postgres", "redis"}
    assert services["worker"]["image"] == services["server"]["image"] == "argilla/argilla-server:v2.8.0"


def test_an_annotator_cannot_list_accounts_and_their_keys(argilla_server):
    name, password, key = argilla_server.annotator("ann")
    assert argilla_server.ask("GET", "me", key=key)["username"] == name == "ann"
    assert len(password) >= 12
    with pytest.raises(RefusedError, match="403"):
        argilla_server.ask("GET", "users", key=key)


def test_the_home_has_the_address_of_the_server_and_no_default_owner_key(argilla_server):
    state = json.loads((argilla_server.home / "server.json").read_text())
    assert state["url"].startswith("http://127.0.0.1:")
    assert argilla_server.ask("GET", "me")["role"] == "owner"
    with pytest.raises(RefusedError, match="401"):
        argilla_server.ask("GET", "me", key="argilla.apikey")


def test_a_second_server_in_the_same_home_is_an_error(argilla_server, curate):
    ran = curate("review", "serve", "--home", str(argilla_server.home), "--port", "0")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-2:] == [
        f"Error: A server already runs in {argilla_server.home}.",
        "  → Stop it, or use another folder: --home DIR",
    ]


# a server that is stopped, killed and backed up -----------------------------------------------------------------


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """A server that these tests stop, kill and restart."""
    server = LabellingServer(tmp_path_factory.mktemp("own") / "home")
    server.start()
    yield server
    server.stop()


def password_in(text):
    lines = text.splitlines()
    return lines[next(n for n, line in enumerate(lines) if "with the password" in line) + 1].strip()


def sign_in(server, name, password):
    body = urlencode({"username": name, "password": password}).encode()
    with urlopen(f"{server.url}/api/v1/token", body) as answer:
        return json.loads(answer.read())["access_token"]


def works(server, token):
    request = Request(f"{server.url}/api/v1/me", headers={"Authorization": f"Bearer {token}"})
    with urlopen(request) as answer:
        return json.loads(answer.read())["username"]


def test_the_owners_password_is_printed_once_and_stored_as_a_digest(own):
    password = password_in(own.log.read_text())
    assert works(own, sign_in(own, "owner", password)) == "owner"
    assert all(password.encode() not in path.read_bytes() for path in own.home.rglob("*") if path.is_file())
    with closing(sqlite3.connect(own.home / "argilla.db")) as connection:
        [(digest,)] = connection.execute("SELECT password_hash FROM users").fetchall()
    assert digest.startswith("$2b$")


def test_the_server_prints_no_warnings(own):
    assert "Warning" not in own.log.read_text()


def test_other_users_cannot_read_the_home(own):
    assert own.home.stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in own.home.iterdir())


def test_a_restart_removes_temporary_files_and_keeps_sessions(own):
    token = sign_in(own, "owner", password_in(own.log.read_text()))
    (own.home / "tmp" / "left").touch()
    assert own.stop() == 0
    assert not (own.home / "tmp").exists()
    assert not (own.home / "server.json").exists()
    own.start()
    assert works(own, token) == "owner"
    assert own.log.read_text().count("with the password") == 1


def test_a_server_killed_during_a_bulk_write_restarts_consistent_and_searchable(own):
    made = dataset(own, "killed")
    thread = threading.Thread(target=push_until_it_ends, args=(own, made))
    thread.start()
    while records(own) < 300:
        time.sleep(0.01)
    own.kill()
    thread.join()
    lose_an_index_row(own)
    (own.home / "tmp" / "left").touch()
    own.start()
    written = records(own)
    assert written % BULK == 0, "a bulk is written completely or not at all"
    found = own.ask("POST", f"datasets/{made}/records/search?limit=1", {"query": {"text": {"q": "word"}}})
    assert found["total"] == own.ask("GET", f"datasets/{made}/progress")["total"] == written
    assert "Repaired after the previous run" in own.log.read_text()
    assert list((own.home / "tmp").iterdir()) == [], "temporary files of the killed server are removed"


BULK = 50


def dataset(server, name):
    made = server.ask("POST", "datasets", {"name": name, "workspace_id": server.workspace})["id"]
    settings = {"type": "text", "use_markdown": False}
    server.ask("POST", f"datasets/{made}/fields", {"name": "text", "title": "text", "settings": settings})
    rating = {"type": "rating", "options": [{"value": n} for n in range(1, 6)]}
    body = {"name": "quality", "title": "quality", "required": True, "settings": rating}
    server.ask("POST", f"datasets/{made}/questions", body)
    server.ask("PUT", f"datasets/{made}/publish")
    return made


def push_until_it_ends(server, made):
    url = server.url
    for start in itertools.count(0, BULK):
        items = [{"fields": {"text": f"word {n}"}, "external_id": f"{n}"} for n in range(start, start + BULK)]
        headers = {"X-Argilla-Api-Key": server.api_key, "Content-Type": "application/json"}
        body = json.dumps({"items": items}).encode()
        try:
            urlopen(Request(f"{url}/api/v1/datasets/{made}/records/bulk", body, headers)).close()
        except (URLError, ConnectionError, HTTPException):
            return


def records(server):
    with closing(sqlite3.connect(server.home / "argilla.db")) as connection:
        return connection.execute("SELECT count(*) FROM records").fetchone()[0]


def lose_an_index_row(server):
    """Change the database as a server without this search index would."""
    with closing(sqlite3.connect(server.home / "argilla.db", isolation_level=None)) as connection:
        connection.execute("DELETE FROM curate_words WHERE rowid >> 8 = 1")
        connection.execute("DELETE FROM curate_documents WHERE doc = 1")


def test_a_backup_of_a_running_server_is_restored_to_another_home(own, curate, tmp_path):
    made = dataset(own, "copied")
    own.ask("POST", f"datasets/{made}/records/bulk", {"items": [{"fields": {"text": "precious"}}]})
    [one] = own.ask("GET", f"datasets/{made}/records")["items"]
    own.ask("POST", f"records/{one['id']}/responses", {"values": {"quality": {"value": 4}}, "status": "submitted"})
    ran = curate("review", "backup", "copy.db", "--home", str(own.home), "--json")
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"file": "copy.db", "answers": 1}), ran.stderr
    assert (tmp_path / "copy.db").stat().st_mode & 0o077 == 0
    ran = curate("review", "restore", "copy.db", "--home", "other", "--json")
    assert (ran.returncode, json.loads(ran.stdout)) == (0, {"home": "other", "answers": 1}), ran.stderr
    other = LabellingServer(tmp_path / "other")
    other.start()
    try:
        found = other.ask("POST", f"datasets/{made}/records/search", {"query": {"text": {"q": "precious"}}})
        assert [item["record"]["id"] for item in found["items"]] == [one["id"]]
        assert works(other, sign_in(other, "owner", password_in(own.log.read_text()))) == "owner"
        refused = curate("review", "restore", "copy.db", "--home", "other", "--replace")
        assert "A labelling server runs in other." in refused.stderr
    finally:
        other.stop()
    refused = curate("review", "restore", "copy.db", "--home", "other")
    assert "other has data already." in refused.stderr
    assert curate("review", "restore", "copy.db", "--home", "other", "--replace").returncode == 0
    assert (tmp_path / "other" / "argilla.db.before-restore").exists()


def test_a_file_that_is_not_a_backup_is_an_error_and_nothing_changes(curate, tmp_path):
    (tmp_path / "notes.txt").write_text("buy milk")
    with closing(sqlite3.connect(tmp_path / "mine.db")) as connection:
        connection.execute("CREATE TABLE songs (name)")
    for file, error in (("notes.txt", "is not a backup"), ("mine.db", "is not a backup"), ("none.db", "no none.db")):
        ran = curate("review", "restore", file, "--home", "home")
        assert (ran.returncode, error in ran.stderr) == (1, True), ran.stderr
    assert not (tmp_path / "home").exists()


def test_a_folder_that_is_not_our_environment_is_left_unchanged(curate, tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "pyvenv.cfg").write_text("home = /usr/bin")
    (mine / "notes.txt").write_text("all my work")
    ran = curate("review", "serve", "--only-set-up", CURATE_REVIEW_ENVIRONMENT=str(mine))
    assert (ran.returncode, "is not an environment of this server; it was left unchanged" in ran.stderr) == (1, True)
    assert (mine / "notes.txt").read_text() == "all my work"


def make_backup(path):
    """Write a file that is accepted as a backup."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript("CREATE TABLE alembic_version (version_num); CREATE TABLE responses (id);")


def test_a_backup_replaces_damaged_data_which_are_renamed(curate, tmp_path):
    make_backup(tmp_path / "good.db")
    home = tmp_path / "home"
    home.mkdir()
    for name in ("argilla.db", "argilla.db-wal", "argilla.db-shm"):
        (home / name).write_bytes(b"garbage" * 1000)
    ran = curate("review", "restore", "good.db", "--home", "home", "--replace")
    assert (ran.returncode, "Traceback" in ran.stderr) == (0, False), ran.stderr
    left = {path.name for path in home.iterdir()} - {"lock"}
    aside = {f"argilla.db.before-restore{end}" for end in ("", "-wal", "-shm")}
    assert left == {"argilla.db", *aside}
    assert (home / "argilla.db").read_bytes() == (tmp_path / "good.db").read_bytes()
    assert (home / "argilla.db").stat().st_mode & 0o077 == 0


def test_a_failed_backup_is_explained_and_leaves_no_file(curate, tmp_path):
    home = tmp_path / "home"
    home.mkdir()
    make_backup(home / "argilla.db")
    ran = curate("review", "backup", "none/copy.db", "--home", "home")
    assert (ran.returncode, "Traceback" in ran.stderr) == (1, False), ran.stderr
    (home / "argilla.db").write_bytes(b"garbage" * 1000)
    ran = curate("review", "backup", "copy.db", "--home", "home")
    assert (ran.returncode, "Traceback" in ran.stderr) == (1, False), ran.stderr
    assert [path.name for path in tmp_path.iterdir() if "copy" in path.name] == []


# accounts --------------------------------------------------------------------------------------------------------


def test_accounts_are_added_listed_and_given_new_passwords(own, curate):
    home = ("--home", str(own.home))
    made = json.loads(curate("review", "users", "add", "eve", *home, "--json").stdout)
    assert works(own, sign_in(own, "eve", made["password"])) == "eve"
    assert own.ask("GET", "me/workspaces", key=made["api_key"])["items"][0]["name"] == "curate"
    again = curate("review", "users", "add", "eve", *home)
    assert (again.returncode, "The account eve exists already." in again.stderr) == (1, True)
    new = json.loads(curate("review", "users", "password", "eve", *home, "--json").stdout)["password"]
    assert works(own, sign_in(own, "eve", new)) == "eve"
    with pytest.raises(HTTPError, match="401"):
        sign_in(own, "eve", made["password"])
    accounts = json.loads(curate("review", "users", "list", *home, "--json").stdout)
    assert [(one["name"], one["role"]) for one in accounts] == [("owner", "owner"), ("eve", "annotator")]


def test_another_server_is_used_by_url_with_its_key_in_the_environment(own, curate):
    listed = curate("review", "users", "list", "--url", own.url, "--json", ARGILLA_API_KEY=own.api_key)
    assert json.loads(listed.stdout)[0]["name"] == "owner"
    keyless = curate("review", "users", "list", "--url", own.url, ARGILLA_API_KEY="")
    assert f"There is no key for {own.url}." in keyless.stderr
    wrong = curate("review", "users", "list", "--url", own.url, ARGILLA_API_KEY="wrong")
    assert "does not accept the key." in wrong.stderr
    body = {"first_name": "a", "username": "an-admin", "role": "admin", "password": "12345678"}
    admin = curate(
        "review", "users", "add", "x", "--url", own.url, ARGILLA_API_KEY=own.ask("POST", "users", body)["api_key"]
    )
    assert "does not permit this with this key." in admin.stderr
    away = curate("review", "users", "list", "--url", "http://127.0.0.1:9", ARGILLA_API_KEY="any")
    assert "http://127.0.0.1:9 does not answer" in away.stderr
    nowhere = curate("review", "users", "list", "--home", "nowhere")
    assert "No labelling server runs in nowhere." in nowhere.stderr


class Redirect(BaseHTTPRequestHandler):
    """Redirects to another path, and records the keys received."""

    keys: ClassVar[list] = []

    def do_GET(self):
        self.keys.append((self.path, self.headers["X-Argilla-Api-Key"]))
        self.send_response(302 if self.path.startswith("/api") else 204)
        self.send_header("Location", "/other")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_redirect_does_not_receive_the_key(curate):
    listener = HTTPServer(("127.0.0.1", 0), Redirect)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    ran = curate("review", "users", "list", "--url", f"http://127.0.0.1:{listener.server_port}", ARGILLA_API_KEY="k")
    listener.shutdown()
    assert (ran.returncode, "answered 302" in ran.stderr) == (1, True), ran.stderr
    assert Redirect.keys == [("/api/v1/users", "k")]


def test_a_port_in_use_is_an_error(own, curate):
    port = own.url.rpartition(":")[2]
    ran = curate("review", "serve", "--home", "mine", "--port", port)
    assert (ran.returncode, f"cannot listen on 127.0.0.1:{port}" in ran.stderr) == (1, True)


def test_the_environment_is_installed_once_and_a_failure_is_explained(curate, tmp_path):
    broken = {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_FIND_LINKS": "", "PIP_RETRIES": "0"}
    folder = tmp_path / "environment"
    ran = curate("review", "serve", "--only-set-up", CURATE_REVIEW_ENVIRONMENT=str(folder), **broken)
    assert ran.returncode == 1
    assert "The labelling server's environment could not be installed" in ran.stderr
    assert not (folder / "ready").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all my work")
    ran = curate("review", "serve", "--only-set-up", CURATE_REVIEW_ENVIRONMENT=str(tmp_path / "mine"))
    assert (ran.returncode, "is not an environment of this server; it was left unchanged" in ran.stderr) == (1, True)
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all my work"
    ran = curate("review", "serve", "--only-set-up", **broken)  # installed: nothing is fetched
    assert ran.returncode == 0


# jobs ------------------------------------------------------------------------------------------------------------


class Listener(BaseHTTPRequestHandler):
    """Records the events of a webhook."""

    events: ClassVar[list] = []

    def do_POST(self):
        self.events.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_):
        pass


def test_a_webhook_receives_events_from_its_creation_to_its_deletion(own):
    listener = HTTPServer(("127.0.0.1", 0), Listener)
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    made = dataset(own, "webhook")
    own.ask("POST", f"datasets/{made}/records/bulk", {"items": [{"fields": {"text": "before"}}]})
    url = f"http://127.0.0.1:{listener.server_port}/"
    webhook = own.ask("POST", "webhooks", {"url": url, "events": ["record.created"], "description": "test"})
    own.ask("POST", f"datasets/{made}/records/bulk", {"items": [{"fields": {"text": "after"}}]})
    wait_until(lambda: Listener.events)
    own.ask("DELETE", f"webhooks/{webhook['id']}")
    own.ask("POST", f"datasets/{made}/records/bulk", {"items": [{"fields": {"text": "too late"}}]})
    time.sleep(1.5)
    listener.shutdown()
    assert [event["data"]["fields"] for event in Listener.events] == [{"text": "after"}]


def test_jobs_survive_a_restart_of_an_external_redis(tmp_path):
    server, port = LabellingServer(tmp_path / "home"), free_port()
    redis = start_redis(port)
    try:
        server.start("--redis", f"redis://127.0.0.1:{port}/0")
        arguments = Path(f"/proc/{server.pid}/cmdline").read_bytes()
        assert (b"server.launcher" in arguments, b"redis://" in arguments) == (
            True,
            False,
        )  # the address can contain a password
        made = dataset(server, "queued")
        server.ask("POST", f"datasets/{made}/records/bulk", {"items": [{"fields": {"text": "one"}}]})
        [one] = server.ask("GET", f"datasets/{made}/records")["items"]
        answer = {"values": {"quality": {"value": 4}}, "status": "submitted"}
        server.ask("POST", f"records/{one['id']}/responses", answer)
        wait_for_status_job(server, made)
        redis.kill()
        wait_until(lambda: "Redis does not answer" in server.log.read_text())
        redis.wait()
        redis = start_redis(port)
        wait_for_status_job(server, made)
    finally:
        assert server.stop() == 0
        redis.kill()
        redis.wait()


def start_redis(port):
    from curate.review.argilla.process import install_environment

    script = f"from fakeredis import TcpFakeServer; TcpFakeServer(('127.0.0.1', {port})).serve_forever()"
    redis = subprocess.Popen([str(install_environment(lambda *_: None)), "-c", script], stderr=subprocess.DEVNULL)
    wait_until(lambda: listens(port))
    return redis


def wait_for_status_job(server, made):
    with closing(sqlite3.connect(server.home / "argilla.db", isolation_level=None)) as connection:
        connection.execute("UPDATE records SET status = 'pending'")
    wait_until(lambda: change_guidelines(server, made))
    wait_until(lambda: server.ask("GET", f"datasets/{made}/progress")["completed"] == 1)


def change_guidelines(server, made):
    """Make a change that queues a job; False if the connection was closed by Redis, which happens once."""
    try:
        server.ask("PATCH", f"datasets/{made}", {"guidelines": "Be kind."})
    except RefusedError as error:
        if "redis.exceptions.ConnectionError" not in str(error):
            raise
        return False
    return True


def free_port():
    with closing(socket.socket()) as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def listens(port):
    with closing(socket.socket()) as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not become true"
        time.sleep(0.05)
