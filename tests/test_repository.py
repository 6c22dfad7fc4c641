"""The repository: files hold no address of a package registry and no path of one machine."""

import os
import re

from support.project import ROOT, project_files


def test_no_file_holds_a_registry_address_or_an_absolute_path_of_a_machine():
    suspicious = re.compile(r"(?:index-url|find-links)[ =]\S+:|/(?:home|root|Users|work)/\w")
    texts = {path: (ROOT / path).read_bytes().decode("utf-8", "replace") for path in project_files()}
    assert [path for path, text in texts.items() if suspicious.search(text)] == []


def test_the_continuous_integration_script_is_executable():
    assert not (ROOT / ".ci").exists() or os.access(ROOT / ".ci" / "run", os.X_OK)
