"""How more of this project is installed: from where it came, as its installed metadata says, into the same place."""

from __future__ import annotations

import json
from importlib.metadata import distribution
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

DISTRIBUTION = "curate-sft"


def install_command(extra: str) -> str:
    """The command that installs an extra, from the folder or the address that this installation came from.

    >>> where("gguf", None)
    "pip install 'curate-sft[gguf]'"
    """
    return where(extra, distribution(DISTRIBUTION).read_text("direct_url.json"))


def where(extra: str, direct_url: str | None) -> str:
    """The command for an installation with this `direct_url.json`; without one it came from a package index.

    >>> where("train", '{"url": "file:///opt/curate", "dir_info": {"editable": true}}')
    "pip install -e '/opt/curate[train]'"
    >>> where("train", '{"url": "https://host/curate", "vcs_info": {"vcs": "git", "commit_id": "1f"}}')
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
