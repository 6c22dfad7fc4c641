"""A YAML list of mappings, or several documents → batches. Scalars stay as written: `yes` is text, not true."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import yaml

from curate.ingest.readers.batch import Batch
from curate.ingest.readers.byte_stream import ByteStream
from curate.ingest.readers.json_objects import ObjectReader
from curate.ingest.readers.table_options import TableOptions
from schemas.errors import SourceError

ROWS = 20_000
"""Records of a batch."""

MOST_EXPANDED = 10
"""Times the size of the file that its content may have when its aliases are replaced, beyond a megabyte."""

_JSON_SCALAR = re.compile(r"true|false|-?(0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?")
TAG = "tag:yaml.org,2002:"
_NOT_TEXT = {f"{TAG}{kind}" for kind in ("bool", "int", "float")}


def read_yaml(stream: ByteStream, _options: TableOptions) -> Iterator[Batch]:
    """The elements of the list, or of the only list in a mapping; or the documents of a file with several.

    Raises `SourceError` if the file is not valid YAML, has another structure, or its aliases multiply its content.
    """
    most = stream.limits.record
    text = stream.text(most)
    if text is None:
        raise SourceError(
            f"{stream.path} has more than {most:,} bytes, the maximum of a YAML file, which is read as a whole.",
            f"Write it as JSON Lines, or add --max-record {10 * most}.",
        )
    try:
        documents = list(yaml.compose_all(text, Loader=yaml.CSafeLoader))
        nodes = _find_rows(stream.path, documents)
        _check_aliases(stream.path, nodes, len(text))
        texts = [_record(node) for node in nodes]
    except (yaml.YAMLError, RecursionError) as error:
        raise SourceError(f"{stream.path} is not valid YAML: {_describe(error)}.", "Correct it.") from error
    lines = np.array([node.start_mark.line + 1 for node in nodes])
    objects = ObjectReader(stream)
    for at in range(0, len(texts), ROWS):
        yield objects.batch(pa.array(texts[at : at + ROWS], pa.large_string()), lines[at : at + ROWS])


def _find_rows(path: str, documents: Sequence[yaml.Node | None]) -> Sequence[yaml.Node]:
    """The nodes of the records."""
    filled = [document for document in documents if document is not None]
    if len(filled) > 1:
        return filled
    document = filled[0] if filled else None
    if isinstance(document, yaml.MappingNode):
        lists = [value for _, value in document.value if _is_list_of_mappings(value)]
        document = lists[0] if len(lists) == 1 else document
    if isinstance(document, yaml.SequenceNode):
        return list(document.value)
    raise SourceError(f"{path} is not a YAML list.", "Write a list with one mapping per conversation.")


def _is_list_of_mappings(node: yaml.Node) -> bool:
    return isinstance(node, yaml.SequenceNode) and bool(node.value) and isinstance(node.value[0], yaml.MappingNode)


def _check_aliases(path: str, nodes: Sequence[yaml.Node], size: int) -> None:
    """Raise `SourceError` if the content is much larger than the file when its aliases are replaced, or endless."""
    sizes: dict[int, float] = {}

    def expanded(node: yaml.Node) -> float:
        if id(node) not in sizes:
            sizes[id(node)] = float("inf")  # until it is known: a node within itself is endless
            children = node.value if isinstance(node, yaml.SequenceNode) else ()
            children = (
                [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else children
            )
            own = len(node.value) if isinstance(node, yaml.ScalarNode) else 0
            sizes[id(node)] = 2 + own + sum(map(expanded, children))
        return sizes[id(node)]

    total = sum(map(expanded, nodes))
    if total > MOST_EXPANDED * size + (1 << 20):
        raise SourceError(
            f"{path}: its aliases multiply its content ({total:,.0f} characters).", "Write values in full."
        )


def _record(node: yaml.Node) -> str:
    """The JSON text of a record, whose own scalars are strings, or null: cells are text."""
    if not isinstance(node, yaml.MappingNode):
        return _to_json(node)
    cells = (
        (key, json.dumps(value.value, ensure_ascii=False))
        if isinstance(value, yaml.ScalarNode) and not _is_null(value)
        else (key, _to_json(value))
        for key, value in node.value
    )
    return f"{{{', '.join(f'{json.dumps(str(key.value))}: {text}' for key, text in cells)}}}"


def _to_json(node: yaml.Node) -> str:
    """The JSON text of a node. A plain scalar that is not a JSON number, true, false or null is a string."""
    if isinstance(node, yaml.SequenceNode):
        return f"[{', '.join(map(_to_json, node.value))}]"
    if isinstance(node, yaml.MappingNode):
        return f"{{{', '.join(f'{json.dumps(str(key.value))}: {_to_json(value)}' for key, value in node.value)}}}"
    if _is_null(node):
        return "null"
    is_scalar = node.tag in _NOT_TEXT and _JSON_SCALAR.fullmatch(node.value)
    return str(node.value) if is_scalar else json.dumps(node.value, ensure_ascii=False)


def _is_null(node: yaml.ScalarNode) -> bool:
    return bool(node.tag == f"{TAG}null")


def _describe(error: Exception) -> str:
    mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
    where = "" if mark is None else f", line {mark.line + 1}"
    problem = error.problem if isinstance(error, yaml.MarkedYAMLError) else type(error).__name__
    return f"{problem}{where}"
