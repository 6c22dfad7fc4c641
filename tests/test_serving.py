"""The labelling server: its accounts, its headers, what survives, what a second one is told."""

import json

import pytest
from labelling_server import RefusedError


def test_every_answer_forbids_scripts_that_are_not_the_servers_own(argilla_server):
    from urllib.request import urlopen

    for path in ("/", "/sign-in", "/api/v1/version"):
        with urlopen(argilla_server.url + path) as answer:
            rules = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert rules["script-src"].startswith("'self' 'sha256-")
        assert "unsafe" not in rules["script-src"]
        assert (rules["connect-src"], rules["object-src"], rules["frame-ancestors"]) == ("'self'", "'none'", "'none'")


def test_an_annotator_is_made_once_and_sees_no_others_keys(argilla_server):
    name, password, key = argilla_server.annotator("ann")
    assert argilla_server.ask("GET", "me", key=key)["username"] == name == "ann"
    assert len(password) >= 12
    with pytest.raises(RefusedError, match="403"):
        argilla_server.ask("GET", "users", key=key)


def test_the_home_names_its_server_and_its_owner_is_nobody_by_default(argilla_server):
    state = json.loads((argilla_server.home / "server.json").read_text())
    assert state["url"].startswith("http://127.0.0.1:")
    assert argilla_server.ask("GET", "me")["role"] == "owner"
    with pytest.raises(RefusedError, match="401"):
        argilla_server.ask("GET", "me", key="argilla.apikey")


def test_a_second_server_on_the_same_home_is_told_so(argilla_server, curate):
    ran = curate("review", "serve", "--home", str(argilla_server.home), "--port", "0")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-2:] == [
        f"Error: A server runs on {argilla_server.home} already.",
        "  → Stop it, or give another folder: --home DIR",
    ]


