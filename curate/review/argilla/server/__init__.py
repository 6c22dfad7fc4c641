"""The server's side, run by the Python of the server's own environment: argilla_server is there, curate is not.

`python -m server.launcher` starts it, with `curate/argilla` on the path, so nothing here imports from outside this
folder but argilla_server and what it brings along.
"""
