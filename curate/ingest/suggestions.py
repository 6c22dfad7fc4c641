"""A table that fits no shape by its names → the mappings that its cells suggest, or the reason that there is none."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import permutations

import polars as pl

from curate.ingest.column_content import Content, describe_column
from curate.ingest.column_names import find_named, name_words
from curate.ingest.shapes import SHAPES
from curate.ingest.shapes.roles import to_role
from curate.ingest.shapes.shape import ColumnMapping, is_mostly
from schemas.text import shell_quote

_MAX_COLUMNS = 200
"""Columns that are inspected."""

_MAX_TEXTS = 12
"""Columns that are tried as question and answer."""

_MAX_PAIRS = 3
"""Pairs that are suggested."""

_MAX_LISTED = 8
"""Columns that are listed with an example."""

_CLOSE = 1.0
"""Pairs whose scores differ by less are both suggested: a clear name counts 3, a question mark in all cells 2."""

QUESTION_WORDS = {
    **dict.fromkeys(("question", "questions", "prompt", "prompts", "query", "instruction", "instructions"), 3.0),
    **dict.fromkeys(("problem", "ask", "inquiry", "enquiry", "frage", "pregunta", "domanda", "pergunta"), 3.0),
    **dict.fromkeys(
        ("vraag", "вопрос", "问题", "問題", "質問", "질문", "pytanie", "soru", "fråga", "سؤال", "प्रश्न"), 3.0
    ),
    **dict.fromkeys(("input", "inputs", "user", "human", "customer", "client", "student", "utterance"), 2.5),
    **dict.fromkeys(("q", "body", "issue", "request", "task", "goal", "claim", "anliegen"), 2.0),
    **dict.fromkeys(("title", "subject", "message", "description", "article", "document", "text", "content"), 1.0),
}
ANSWER_WORDS = {
    **dict.fromkeys(("answer", "answers", "response", "responses", "reply", "output", "outputs", "completion"), 3.0),
    **dict.fromkeys(("solution", "antwort", "respuesta", "réponse", "reponse", "risposta", "resposta"), 3.0),
    **dict.fromkeys(
        ("antwoord", "ответ", "回答", "答案", "答え", "답변", "odpowiedź", "cevap", "svar", "جواب", "उत्तर"), 3.0
    ),
    **dict.fromkeys(("assistant", "bot", "gpt", "ai", "agent", "ideal", "resolution", "fix", "lösung"), 2.5),
    **dict.fromkeys(("targets", "target", "summary", "highlights", "abstract", "gold"), 2.0),
    **dict.fromkeys(("explanation", "rationale", "definition", "translation", "result", "advice", "a"), 1.5),
    **dict.fromkeys(("code", "story", "text", "content", "comment", "note"), 0.5),
}
_CONTEXT_WORDS = ("context", "passage", "document", "article", "background", "input", "body", "details", "paragraph")
_OTHER_WORDS = {
    *("id", "ids", "uuid", "url", "link", "links", "date", "time", "score", "count", "rating", "type"),
    *("category", "tag"),
    *("tags", "lang", "language", "source", "author", "tokens", "toks", "html", "model", "status", "dataset", "topic"),
    *("label", "intent", "name", "group", "wrong", "incorrect", "bad", "rejected", "worse", "history", "metadata"),
}
_SHORT = ("words", "numbers", "flags")
_NO_ANSWERS = {"context", "passage", "passages", "paragraph", "paragraphs", "background", "prompt"}
_CHOICE = re.compile(r"(?:choice|option|opt|op|ending|answer|ans|distractor)?[ _]?(?:[0-9]|[a-f])", re.IGNORECASE)
"""Names of columns with the choices of a question, if there are several."""

_CHOICES = {"choices", "options", "endings", "candidates", "distractors", "multiple choice targets", "mc1 targets"}
"""Names of columns with all choices of a question."""

_GROUP_WORDS = {"id", "conversation", "ticket", "thread", "session", "chat", "case", "dialogue", "dialog"}
_ORDER_WORDS = {
    *("time", "timestamp", "date", "at", "created", "sent", "turn", "index", "order", "position", "seq", "sequence"),
}
_TRUE, _FALSE = {"true", "t", "1", "yes", "y"}, {"false", "f", "0", "no", "n"}
_FLAGS = {
    **dict.fromkeys(
        ("inbound", "incoming", "is inbound", "from customer", "is customer", "from user", "is user"), True
    ),
    **dict.fromkeys(("outbound", "outgoing", "is outbound", "from agent", "is agent", "is bot", "from bot"), False),
}
"""Names of columns that are true for the turns of users, or for those of the assistant."""


def describe_columns(table: pl.DataFrame) -> dict[str, Content]:
    """The content of each column, of the first `_MAX_COLUMNS`."""
    return {name: describe_column(table[name], name) for name in table.columns[:_MAX_COLUMNS]}


def suggest_mappings(table: pl.DataFrame) -> list[ColumnMapping]:
    """The mappings that the names and cells suggest, best first; none if the table has no texts for them."""
    contents = describe_columns(table)
    long = suggest_long(table, contents)
    if long is not None:
        return [long]
    return _pairs_in_objects(table, contents) or suggest_pairs(contents)


def suggest_pairs(contents: Mapping[str, Content]) -> list[ColumnMapping]:
    """The pairs of text columns with the best score, and those that are nearly as good."""
    no_pairs = {*find_choices(list(contents)), *_numbered_turns(list(contents))}
    texts = sorted(
        (content for content in contents.values() if _may_be_text(content) and content.column not in no_pairs),
        key=lambda content: -max(_names(content.column)),
    )
    pairs = [pair for pair in permutations(texts[:_MAX_TEXTS], 2) if _is_pair(*pair)]
    scored = sorted(((_score(*pair, contents), *pair) for pair in pairs), key=lambda entry: -entry[0])
    best = scored[0][0] if scored else 0.0
    good = [entry for entry in scored if best > 0 and entry[0] > best - _CLOSE]
    found = [_complete(question.column, answer.column, contents) for _, question, answer in good[:_MAX_PAIRS]]
    return [*found, *(alpaca for mapping in found[:1] for alpaca in _as_alpaca(mapping))]


def find_choices(columns: Sequence[str]) -> list[str]:
    """The columns with the choices of a question: `choices`, or several such as `choice0` and `B`."""
    named = [name for name in columns if " ".join(name_words(name)) in _CHOICES]
    lettered = [name for name in columns if name.strip() and _CHOICE.fullmatch(name.strip())]
    return named or (lettered if len(lettered) > 1 else [])


def _numbered_turns(columns: Sequence[str]) -> list[str]:
    """The columns of three or more with the same name and a number, such as `turn_1`."""
    bases = {name: tuple(name_words(name)[:-1]) for name in columns if name_words(name)[-1:] and name[-1].isdigit()}
    counts = Counter(bases.values())
    return [name for name, base in bases.items() if counts[base] >= 3]


def list_commands(mappings: Sequence[ColumnMapping]) -> str:
    """The hint with the import command of each mapping, once."""
    commands = list(dict.fromkeys(mapping.as_command() for mapping in mappings))
    first = "Choose one" if len(commands) > 1 else "Map them, for example"
    return f"{first}; with --dry-run it only shows examples:{''.join(commands)}"


def list_contents(contents: Mapping[str, Content]) -> str:
    """The columns with the kind and an example of their cells, for a table without a question and an answer."""
    lines = [f"\n    {shown(content)}" for content in list(contents.values())[:_MAX_LISTED]]
    more = f"\n    and {len(contents) - _MAX_LISTED:,} more" if len(contents) > _MAX_LISTED else ""
    return "".join(lines) + more


def may_be_plain_text(content: Content) -> bool:
    """Whether a column of sentences may be text for continued pretraining: it has no questions."""
    return content.asks < 0.5 and _names(content.column)[0] < 2


def shown(content: Content) -> str:
    """A column with the kind and an example of its cells: `id: numbers, such as 7`."""
    return f"{content.column}: {content.kind}" + (f", such as {content.example}" if content.example else "")


# --------------------------------------------------------------------------------------------------------------- pairs


def _may_be_text(content: Content) -> bool:
    """Whether a column has sentences, or other short texts under a clear name."""
    return content.kind == "text" or (content.kind in _SHORT and max(_names(content.column)) >= 3)


def _is_pair(question: Content, answer: Content) -> bool:
    """Whether no name contradicts the roles, and one of the columns has sentences."""
    (asks, is_answer), (asked, answers) = _names(question.column), _names(answer.column)
    is_context = bool(_NO_ANSWERS & set(name_words(answer.column)[-1:]))
    return (
        not (is_context or (asked >= 1 and answers <= 0) or (is_answer >= 2 and asks <= 0))
        and question.kind == "text"
        and (answer.kind == "text" or answers >= 3)
    )


def _score(question: Content, answer: Content, contents: Mapping[str, Content]) -> float:
    """How well two columns fit as question and answer: by names, question marks, length and order."""
    asks, is_answer = _names(question.column)
    asked, answers = _names(answer.column)
    length = math.log2(max(answer.words, 0.5) / max(question.words, 0.5)) / 2
    columns = list(contents)
    is_before = columns.index(question.column) < columns.index(answer.column)
    repeated = 1.5 * (question.is_repeated + answer.is_repeated)
    no_text = 0.0 if answer.kind == "text" else 2.0
    return (
        (asks - is_answer / 2 + answers - asked / 2)
        + 2 * (question.asks - answer.asks)
        + max(-1.0, min(1.0, length))
        + (0.5 if is_before else 0.0)
        - repeated
        - no_text
    )


def _names(column: str) -> tuple[float, float]:
    """How much a name says that a column has questions, and answers. A name of other content counts against both."""
    words = name_words(column.rsplit(".", 1)[-1])  # of a path into objects, the last key
    other = 3.0 if words and (words[-1] in _OTHER_WORDS or words[0] in _OTHER_WORDS) else 0.0
    asks = max((QUESTION_WORDS.get(word, 0.0) for word in words), default=0.0)
    answers = max((ANSWER_WORDS.get(word, 0.0) for word in words), default=0.0)
    if asks and answers:  # question_text, answer_to_question: the first of equal words counts
        asks, answers = (
            (asks, 0.0) if asks > answers or (asks == answers and words[0] in QUESTION_WORDS) else (0.0, answers)
        )
    return asks - other, answers - other


def _complete(question: str, answer: str, contents: Mapping[str, Content]) -> ColumnMapping:
    """The mapping of a question and an answer, with the columns of a context and a system prompt."""
    rest = [c for name, c in contents.items() if name not in (question, answer) and c.kind == "text"]
    context = next(
        (c.column for c in rest if not c.is_repeated and set(name_words(c.column)) & set(_CONTEXT_WORDS)), None
    )
    system = next((c.column for c in rest if _is_system(c)), None)
    fields = {"question": question, "answer": answer, "context": context, "system": system}
    found = ColumnMapping("pairs", {name: column for name, column in fields.items() if column is not None})
    return exclude_optional(found, list(contents))


def exclude_optional(mapping: ColumnMapping, columns: Sequence[str]) -> ColumnMapping:
    """The mapping with an empty column for each field that would be added by its name, so that options repeat it."""
    left = [name for name in columns if name not in mapping.fields.values()]
    excluded = {
        name: ""
        for name, field in SHAPES[mapping.shape].fields.items()
        if not field.required and name not in mapping.fields and any(find_named(field.names, left))
    }
    return ColumnMapping(mapping.shape, {**mapping.fields, **excluded})


def _as_alpaca(mapping: ColumnMapping) -> list[ColumnMapping]:
    """The mapping with an instruction before the question instead of a system prompt that is called instructions."""
    system = mapping.fields.get("system", "")
    if not set(name_words(system)) & {"instruction", "instructions"}:
        return []
    fields = {"instruction": system, "input": mapping.fields["question"], "output": mapping.fields["answer"]}
    return [ColumnMapping("alpaca", fields)]


def _is_system(content: Content) -> bool:
    words = name_words(content.column)
    return "system" in words or (content.is_repeated and bool({"instruction", "instructions", "persona"} & set(words)))


def _pairs_in_objects(table: pl.DataFrame, contents: Mapping[str, Content]) -> list[ColumnMapping]:
    """The pairs of texts in the objects of a column such as `translation`, or of two such as `inputs` and `outputs`."""
    objects = [name for name, content in contents.items() if content.kind == "objects"]
    if not objects or len(suggest_pairs(contents)) > 0:
        return []
    inner: dict[str, Content] = {}
    for name in objects:
        inner |= {path: describe_column(cells, path) for path, cells in _inner_columns(table, name)}
    return suggest_pairs({**inner, **{name: c for name, c in contents.items() if name not in objects}})


def _inner_columns(table: pl.DataFrame, name: str) -> Iterator[tuple[str, pl.Series]]:
    """The texts under the keys of a column of objects, by the path that `--map` accepts."""
    filled = table[name].drop_nulls()
    keys = re.findall(r'"([^"\\.\[\]\d][^"\\.\[\]]*)"\s*:\s*"', filled[0]) if filled.len() else []
    for key in dict.fromkeys(keys[:_MAX_TEXTS]):
        mapping = ColumnMapping("pairs", {"question": f"{name}.{key}"})
        yield f"{name}.{key}", mapping.column(table, "question")


# ---------------------------------------------------------------------------------------------------------- long format


def suggest_long(table: pl.DataFrame, contents: Mapping[str, Content]) -> ColumnMapping | None:
    """The mapping of a table with one turn per row: a column with roles, one with repeated ids, one with texts."""
    role = next((name for name in contents if _has_roles(table[name].rename("name"))), None)
    return None if role is None else _long_mapping(table, contents, role)


def suggest_flagged(table: pl.DataFrame) -> tuple[ColumnMapping, str] | None:
    """The mapping of a table with one turn per row and a flag such as `inbound`, and the options for its values."""
    contents = describe_columns(table)
    flag = next((name for name in contents if " ".join(name_words(name)) in _FLAGS), None)
    values = [] if flag is None else table[flag].rename("flag").drop_nulls().unique(maintain_order=True).to_list()
    if flag is None or len(values) != 2 or not set(map(str.casefold, values)) <= _TRUE | _FALSE:
        return None
    asks = _FLAGS[" ".join(name_words(flag))]
    roles = ["human" if (value.casefold() in _TRUE) == asks else "gpt" for value in values]
    mapping = _long_mapping(table, contents, flag)
    options = " ".join(f"--role {shell_quote(f'{value}={role}')}" for value, role in zip(values, roles, strict=True))
    return (mapping, options) if mapping is not None and len(set(roles)) == 2 else None


def _long_mapping(table: pl.DataFrame, contents: Mapping[str, Content], role: str) -> ColumnMapping | None:
    """The mapping with a column of roles, if another has ids of conversations in which both sides speak."""
    texts = [c for c in contents.values() if c.kind == "text" and c.column != role and not c.is_repeated]
    if not texts:
        return None
    text = max(texts, key=lambda content: content.words).column
    groups = [c for c in contents.values() if c.column not in (role, text) and _is_group(c)]
    groups = [c for c in groups if _has_both_sides(table[c.column].rename("group"), table[role].rename("role"))]
    if not groups:
        return None
    group = max(groups, key=lambda content: bool(_GROUP_WORDS & set(name_words(content.column)))).column
    order = next((c.column for c in contents.values() if _is_order(c) and c.column not in (role, text, group)), None)
    fields = {"group_by": group, "order_by": order, "role": role, "text": text}
    return ColumnMapping("long", {name: column for name, column in fields.items() if column is not None})


def _has_both_sides(groups: pl.Series, roles: pl.Series) -> bool:
    """Whether several roles occur in at least half of the groups: an author or a language has one."""
    sides = pl.DataFrame([groups, roles]).drop_nulls().group_by("group").agg(pl.col("role").n_unique())["role"]
    return is_mostly(sides > 1)


def _has_roles(cells: pl.Series) -> bool:
    """Whether the cells are names of roles, with a user and an assistant among them."""
    names = cells.drop_nulls().head(1_000).unique()
    if not 2 <= names.len() <= 20:
        return False
    roles = pl.DataFrame({"name": names}).select(to_role(pl.col("name"))).to_series()
    return roles.null_count() == 0 and {"human", "gpt"} <= set(roles)


def _is_group(content: Content) -> bool:
    words = set(name_words(content.column))
    return (
        content.kind in ("ids", "numbers", "words", "choice letters")
        and content.distinct < 0.8
        and not words & {"lang", "language", "rank"}
    )


def _is_order(content: Content) -> bool:
    return content.kind in ("dates", "numbers", "index") and bool(_ORDER_WORDS & set(name_words(content.column)))
