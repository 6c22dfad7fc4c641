"""Argilla's web page and the files in `page/` → a page that loads them, from memory and without changing the package.

The additions are files of this server, so the Content-Security-Policy permits nothing else for them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from argilla_server.static_rewrite import RewriteStaticFiles
from fastapi.staticfiles import StaticFiles
from starlette.applications import Starlette
from starlette.responses import HTMLResponse, Response

ADDITIONS = Path(__file__).parent / "page"
_PATH = "/curate"
_HEAD = "</head>"
_TAGS = f'<link rel="stylesheet" href="{_PATH}/page.css"><script type="module" src="{_PATH}/page.js"></script>'


def mount_page(application: Starlette, pages: Path) -> None:
    """Serve the web page in the folder `pages` and its additions."""
    application.mount(_PATH, _Additions(directory=ADDITIONS), name="additions")
    application.mount("/", _Pages(directory=pages, html=True), name="static")


class _Additions(StaticFiles):
    """Files that a browser asks for again each time: their names stay the same in the next release."""

    def file_response(self, *arguments: Any, **options: Any) -> Response:
        response = super().file_response(*arguments, **options)
        response.headers["cache-control"] = "no-cache"
        return response


class _Pages(RewriteStaticFiles):
    """Argilla's files; HTML files load the additions."""

    def file_response(self, full_path: Any, *arguments: Any, **options: Any) -> Response:
        if Path(full_path).suffix == ".html":
            return HTMLResponse(add_tags(Path(full_path).read_text(encoding="utf-8")))
        return super().file_response(full_path, *arguments, **options)


def add_tags(html: str) -> str:
    """A page with the tags of the additions. Raises `ValueError` for a page without a head."""
    if html.count(_HEAD) != 1:
        raise ValueError("The web page has no single </head>, so the additions cannot be loaded.")
    return html.replace(_HEAD, _TAGS + _HEAD)
