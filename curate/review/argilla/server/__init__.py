"""The labelling server, run by its own environment: argilla_server is installed there, curate is not.

`python -m server.launcher` starts it with `curate/review/argilla` on the import path. Modules here import only from
this folder, argilla_server and its dependencies.
"""
