"""`curate doctor`: findings about installed packages, the GPU and the store, with the command that fixes each."""

import json
import os
from pathlib import Path

import pytest


def test_doctor_reports_json_and_exits_with_0_without_conflicts(curate):
    ran = curate("doctor", "--json")
    findings = json.loads(ran.stdout)
    assert {"Python", "packages", "GPU", "store", "machine"} <= {finding["topic"] for finding in findings}
    conflicts = [finding for finding in findings if finding["state"] == "conflict"]
    assert (ran.returncode, conflicts) == (0, [])


def test_doctor_names_an_incompatible_version_and_the_command_that_replaces_it(monkeypatch):
    from curate import doctor

    installed = doctor.installed_version
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.15.0" if name == "trl" else installed(name))
    findings = doctor.run_checks(Path("none.duckdb"))
    conflicts = {finding.topic: finding for finding in findings if finding.state == "conflict"}
    assert "cannot train without a Triton device" in conflicts["trl"].value
    assert conflicts["trl"].advice.startswith("pip install 'trl")


@pytest.mark.parametrize(
    ("capability", "state", "advice"), [("9.0", "ok", ""), ("7.5", "note", "pip install xformers")], ids=["H100", "T4"]
)
def test_doctor_reports_whether_a_pack_takes_one_attention_call(capability, state, advice, tmp_path, monkeypatch):
    from curate import doctor

    tool = tmp_path / "nvidia-smi"
    tool.write_text(f"#!/bin/sh\ncase $1 in *compute_cap*) echo {capability};; *) echo 'A card, 1 MiB, 580';; esac\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (finding,) = (finding for finding in doctor.run_checks(Path("none.duckdb")) if finding.topic == "attention")
    assert finding.state == state
    assert finding.advice.startswith(advice)


def test_doctor_reports_a_file_that_is_not_a_store(curate, tmp_path):
    (tmp_path / "notes.duckdb").write_text("buy milk")
    ran = curate("doctor", "--store", "notes.duckdb")
    assert ran.returncode == 1
    assert "notes.duckdb is not a curate store" in ran.stdout
