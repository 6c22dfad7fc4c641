"""The installation and the machine → package versions, the command that installs an extra, the number of cores."""

from __future__ import annotations

import json
import os
import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

DISTRIBUTION = "curate-sft"


def install_command(extra: str) -> str:
    """The command that installs an extra, from the folder or address of this installation.

    >>> install_command_for("gguf", None)
    "pip install 'curate-sft[gguf]'"
    """
    return install_command_for(extra, distribution(DISTRIBUTION).read_text("direct_url.json"))


def install_command_for(extra: str, direct_url: str | None) -> str:
    """The command for an installation with this `direct_url.json`; without one it came from a package index.

    >>> install_command_for("train", '{"url": "file:///opt/curate", "dir_info": {"editable": true}}')
    "pip install -e '/opt/curate[train]'"
    >>> install_command_for("train", '{"url": "https://host/curate", "vcs_info": {"vcs": "git", "commit_id": "1f"}}')
    "pip install 'curate-sft[train] @ git+https://host/curate@1f'"
    """
    if direct_url is None:
        return f"pip install '{DISTRIBUTION}[{extra}]'"
    origin: dict[str, Any] = json.loads(direct_url)
    url = urlparse(origin["url"])
    if "dir_info" in origin and url.scheme == "file":
        editable = "-e " if origin["dir_info"].get("editable") else ""
        return f"pip install {editable}'{url2pathname(url.path)}[{extra}]'"
    vcs = origin.get("vcs_info")
    address = f"{vcs['vcs']}+{origin['url']}@{vcs['commit_id']}" if vcs else origin["url"]
    return f"pip install '{DISTRIBUTION}[{extra}] @ {address}'"


def installed_version(package: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def count_cores() -> int:
    """The CPU cores that this process may use, which a container or taskset can limit."""
    return len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
