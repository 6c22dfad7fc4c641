"""The registry of shapes: the ways in which rows contain conversations.

A new shape is a module with `FIELDS` and `parse`, and one line here.
"""

from __future__ import annotations

from functools import partial

from curate.ingest.shapes import (
    alpaca,
    answers,
    argilla,
    chat_export,
    chatgpt,
    choices,
    completion_pairs,
    function_calls,
    instances,
    label_studio,
    messages,
    pairs,
    prodigy,
    raw_text,
    segments,
    sharegpt,
    sql_queries,
    squad,
    step_labels,
    tickets,
    traces,
    transcript,
    tree,
    turn_per_row,
    turn_texts,
    whatsapp,
    winner,
)
from curate.ingest.shapes.shape import Shape

_proven, _giving_way = partial(Shape, proven=True), partial(Shape, gives_way=True)
_asked = partial(_proven, detected=False)
"""Proven shapes that are used only on request, because they leave answers out."""

SHAPES: dict[str, Shape] = {
    "sharegpt": Shape(sharegpt.FIELDS, sharegpt.parse),
    "messages": Shape(messages.FIELDS, messages.parse),
    "alpaca": Shape(alpaca.FIELDS, alpaca.parse),
    "pairs": Shape(pairs.FIELDS, pairs.parse),
    "transcript": Shape(transcript.FIELDS, transcript.parse),
    "long": Shape(turn_per_row.FIELDS, turn_per_row.parse, detected=False, spans_rows=True),
    "text": Shape(raw_text.FIELDS, raw_text.parse, fallback=True, has_questions=False),
    "squad": _proven(squad.FIELDS, squad.parse, "prompt: context and question; answer: the first of answers"),
    "squad-articles": _proven(
        squad.ARTICLE_FIELDS, squad.parse_articles, "prompt: context and question; answer: the first of answers"
    ),
    "text-to-sql": _proven(sql_queries.FIELDS, sql_queries.parse, "prompt: the question; answer: the query"),
    "trivia": _proven(squad.TRIVIA_FIELDS, squad.parse, "the question; the value of the answer, without aliases"),
    "yes-no": _proven(squad.YES_NO_FIELDS, squad.parse_yes_no, "prompt: passage and question; answer: Yes or No"),
    "abstracts": _proven(
        squad.ABSTRACT_FIELDS, squad.parse_abstracts, "prompt: the contexts and the question; answer: the long answer"
    ),
    "best-answer": _proven(answers.BEST_FIELDS, answers.parse_best, "the best-rated of the answers to each prompt"),
    "first-answer": _proven(answers.FIRST_FIELDS, answers.parse_first, "the first of the answers to each prompt"),
    "answers": _proven(answers.FIELDS, answers.parse, "every answer, each a conversation with its prompt"),
    "best-branch": _proven(tree.RANKED_FIELDS, tree.parse_best, "of several replies the best-ranked", spans_rows=True),
    "tree": _proven(tree.FIELDS, tree.parse, "every branch, each a conversation", spans_rows=True),
    "best-replies": _proven(tree.RANKED_NESTED_FIELDS, tree.parse_nested_best, "of several replies the best-ranked"),
    "replies": _proven(tree.NESTED_FIELDS, tree.parse_nested, "every branch, each a conversation"),
    "chatgpt": _proven(chatgpt.FIELDS, chatgpt.parse, "the branch that ChatGPT shows, without hidden messages"),
    "choices": _proven(choices.FIELDS, choices.parse, "question and choices; the right choice, named by its letter"),
    "choices-from-0": _proven(choices.FIELDS_FROM_0, choices.parse_from_0, "the right choice, counted from 0"),
    "choices-from-1": _proven(choices.FIELDS_FROM_1, choices.parse_from_1, "the right choice, counted from 1"),
    "choice-columns": _proven(
        choices.COLUMN_FIELDS, choices.parse_columns, "question and choices; the right choice, named by its letter"
    ),
    "choice-columns-from-0": _proven(
        choices.COLUMN_FIELDS_FROM_0, choices.parse_columns_from_0, "the right choice, counted from 0"
    ),
    "choice-columns-from-1": _proven(
        choices.COLUMN_FIELDS_FROM_1, choices.parse_columns_from_1, "the right choice, counted from 1"
    ),
    "function-calls": _proven(function_calls.FIELDS, function_calls.parse, "the calls are the answer"),
    "alternating": _giving_way(turn_texts.FIELDS, turn_texts.parse, "the texts alternate, a user turn first"),
    "exchanges": _giving_way(turn_texts.EXCHANGE_FIELDS, turn_texts.parse_exchanges, "questions and answers in turn"),
    "turn-columns": _giving_way(
        turn_texts.COLUMN_FIELDS, turn_texts.parse_columns, "the columns alternate, a user turn first"
    ),
    "segments": Shape(segments.FIELDS, segments.parse),
    "trace": _proven(traces.FIELDS, traces.parse, "the messages of the input, then those of the output"),
    "generation": _proven(
        traces.GENERATION_FIELDS, traces.parse, "the messages of the input, then those of the output"
    ),
    "completion": _proven(traces.COMPLETION_FIELDS, traces.parse, "the messages, then the message of the first choice"),
    "openai-batch": _proven(
        traces.BATCH_FIELDS, traces.parse_batch, "each request with its result, by custom_id", spans_rows=True
    ),
    "openai-legacy": _proven(
        completion_pairs.FIELDS, completion_pairs.parse, "without separators, stop sequences and the leading space"
    ),
    "instances": _proven(instances.FIELDS, instances.parse, "each instance with the instruction"),
    "label-studio": _proven(
        label_studio.FIELDS, label_studio.parse, "the text of data; what each annotator wrote, or the chosen labels"
    ),
    "argilla": _proven(
        argilla.FIELDS,
        argilla.parse,
        "each annotator's correction, else the answer; to_json of Argilla 2 does not mark discarded records",
    ),
    "argilla-columns": _proven(
        argilla.COLUMN_FIELDS, argilla.parse_columns, "each annotator's correction, else the answer of the record"
    ),
    "zendesk": _proven(
        tickets.FIELDS, tickets.parse, "comments of the requester, and all other public ones as one side, joined"
    ),
    "intercom": _proven(
        tickets.PART_FIELDS, tickets.parse_parts, "messages of users, and those of admins and bots, joined"
    ),
    "slack": _proven(chat_export.SLACK_FIELDS, chat_export.parse_slack, "one conversation per thread", spans_rows=True),
    "telegram": _proven(
        chat_export.TELEGRAM_FIELDS,
        chat_export.parse_telegram,
        "the chat as one conversation, without notices and messages that have no text",
    ),
    "telegram-account": _proven(
        chat_export.TELEGRAM_ACCOUNT_FIELDS,
        chat_export.parse_telegram_account,
        "each chat, without notices and messages that have no text",
    ),
    "whatsapp": _proven(whatsapp.FIELDS, whatsapp.parse, "the chat as one conversation, without notices and media"),
    "discord": _proven(
        chat_export.DISCORD_FIELDS, chat_export.parse_discord, "the channel as one conversation", spans_rows=True
    ),
    "claude": _proven(chat_export.CLAUDE_FIELDS, chat_export.parse_claude, "the messages, without attached files"),
    "prodigy": _proven(prodigy.FIELDS, prodigy.parse, "accepted examples: the text; what was written or chosen"),
    "step-labels": _proven(step_labels.FIELDS, step_labels.parse, "the problem; the chosen steps if all are rated 1"),
    "winner": _asked(winner.FIELDS, winner.parse, "only the answer that won; ties are rejected"),
    "winner-flags": _asked(winner.FLAG_FIELDS, winner.parse, "only the answer that won; ties are rejected"),
}
"""Name → shape, in the order in which candidates are listed."""
