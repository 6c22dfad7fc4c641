"""The ledger: every conversation has one outcome, every lost token a reason, and losses must be allowed."""

import random
from functools import partial

import polars as pl
import pytest

from schemas.errors import TrainError
from schemas.ledger import LEDGER, read_ledger, write_ledger
from schemas.recipe import TrainSection
from train.runs.verify import _compare_ledger
from train.tokens.labels import RENDERED
from train.tokens.ledger import (
    _share,
    add_epoch_counts,
    build_ledger,
    check_limits,
    count_covered,
    coverage_metrics,
    trainable,
)


def rendered(*rows):
    """Rendered rows: a name, whether each token is in the loss, and other columns."""
    result = []
    for name, labels, extra in rows:
        ids = None if labels is None else list(range(len(labels)))
        loss_labels = None if labels is None else [number if in_loss else -100 for number, in_loss in enumerate(labels)]
        ends = [n + 1 for n, in_loss in enumerate(labels or []) if in_loss and not (*labels, 0)[n + 1]]
        plain = {"id": name, "input_ids": ids, "labels": loss_labels, "stops": ends, "omitted_turns": [], "crossing": 0}
        result.append(plain | extra)
    return pl.DataFrame(result, schema=RENDERED)


TWO_ANSWERS = [0, 0, 1, 1, 0, 0, 1, 1, 0]  # nine tokens; the answers end after tokens 4 and 8
PLAIN = ("plain", [0, 0, 1, 1], {})
LONG = ("long", TWO_ANSWERS, {})


def entry(ledger, name):
    return ledger.row(by_predicate=pl.col("conversation") == name, named=True)


def test_a_conversation_that_fits_is_kept_completely():
    ledger = build_ledger(rendered(PLAIN), TrainSection(max_length=8))
    assert ledger.schema == pl.Schema(LEDGER)
    assert entry(ledger, "plain") == {
        "conversation": "plain",
        "split": "train",
        "window": None,
        "outcome": "kept",
        "code": None,
        "reason": None,
        "tokens": 4,
        "cut": 0,
        "loss_tokens": 2,
        "loss_tokens_cut": 0,
        "per_epoch": 1,
    }


def test_a_long_conversation_is_cut_after_the_last_answer_that_fits():
    section = TrainSection(max_length=8, long="truncate")
    ledger = build_ledger(rendered(LONG), section)
    assert entry(ledger, "long")["outcome"] == "truncated"
    assert entry(ledger, "long")["cut"] == 1  # the newline after the second answer
    section = TrainSection(max_length=10, long="truncate")
    assert entry(build_ledger(rendered(LONG), section), "long")["outcome"] == "kept"


def test_no_answer_is_trained_in_part():
    rows = rendered(("long", [0] * 7 + TWO_ANSWERS, {}))
    section = TrainSection(max_length=14, long="truncate")
    ledger = build_ledger(rows, section)
    assert entry(ledger, "long") | {"reason": None} == {
        "conversation": "long",
        "split": "train",
        "window": None,
        "outcome": "truncated",
        "code": "too-long",
        "reason": None,
        "tokens": 16,
        "cut": 5,
        "loss_tokens": 2,
        "loss_tokens_cut": 2,
        "per_epoch": 1,
    }
    row = trainable(rows, ledger).row(0, named=True)
    assert row["input_ids"] == list(range(11))
    assert row["labels"] == [-100] * 9 + [9, 10]


def test_a_conversation_whose_first_answer_does_not_fit_is_dropped():
    rows = rendered(("long", [0] * 7 + TWO_ANSWERS, {}))
    ledger = build_ledger(rows, TrainSection(max_length=10, long="truncate"))
    assert entry(ledger, "long")["outcome"] == "dropped"
    assert entry(ledger, "long")["cut"] == 16
    assert entry(ledger, "long")["reason"] == ("It has 16 tokens, max_length is 10, and the first answer does not fit.")
    assert trainable(rows, ledger).is_empty()


def test_each_reason_has_its_code():
    rows = rendered(
        PLAIN,
        ("silent", [0, 0, 0], {}),
        ("refused", None, {"problem": "The template short refuses it: no."}),
        ("typed", [0, 1, 1], {"loss_specials": "<|im_end|>"}),
        LONG,
    )
    ledger = build_ledger(rows, TrainSection(max_length=8, long="drop"))
    assert ledger.select("conversation", "outcome", "code", "reason").rows() == [
        ("plain", "kept", None, None),
        ("silent", "dropped", "no-loss-tokens", "No token contributes to the loss: no answer is trained."),
        ("refused", "dropped", "unrendered", "The template short refuses it: no."),
        ("typed", "dropped", "special-text", "An answer contains text that is read as a special token: <|im_end|>."),
        ("long", "dropped", "too-long", "It has 9 tokens, max_length is 8."),
    ]
    assert ledger["tokens"].sum() == ledger["cut"].sum() + 4


def test_special_text_keep_keeps_special_tokens_typed_in_an_answer():
    rows = rendered(("typed", [0, 1, 1], {"loss_specials": "<|im_end|>"}))
    assert entry(build_ledger(rows, TrainSection(special_text="keep")), "typed")["outcome"] == "kept"


def test_special_tokens_typed_in_a_question_are_kept():
    rows = rendered(("typed", [0, 1, 1], {"context_specials": "<|im_end|>"}))
    assert entry(build_ledger(rows, TrainSection()), "typed")["outcome"] == "kept"


def test_by_default_a_long_conversation_is_an_error_that_suggests_four_settings():
    section, rows = TrainSection(max_length=8), rendered(PLAIN, LONG)
    with pytest.raises(TrainError) as refused:
        check_limits(build_ledger(rows, section), section, partial(build_ledger, rows))
    assert refused.value.what == "1 of 2 conversations are longer than max_length 8 tokens: long has 9."
    assert refused.value.hint == (
        "Use --set train.max_length=9, or --set train.long=truncate --set train.max_truncated=0.5, "
        "or --set train.long=drop --set train.max_dropped=0.5, or --set train.long=split --set train.max_dropped=0.5."
    )


@pytest.mark.parametrize(("long", "outcome"), [("drop", "dropped"), ("truncate", "truncated")])
def test_the_suggested_limit_for_lost_conversations_is_enough(long, outcome):
    section = TrainSection(max_length=8, long=long)
    rows = rendered(PLAIN, PLAIN, LONG)
    ledger = build_ledger(rows, section)
    with pytest.raises(TrainError, match=f"1 of 3 conversations would be {outcome}, max_{outcome} allows 0") as refused:
        check_limits(ledger, section, partial(build_ledger, rows))
    share = refused.value.hint.partition(f"train.max_{outcome}=")[2].partition(";")[0]
    check_limits(ledger, section.model_copy(update={f"max_{outcome}": float(share)}), partial(build_ledger, rows))


def test_the_split_of_a_version_is_kept():
    rows = rendered(PLAIN, LONG).with_columns(split=pl.Series(["held_out", "train"]))
    ledger = build_ledger(rows, TrainSection())
    assert ledger["split"].to_list() == ["held_out", "train"]
    assert trainable(rows, ledger)["split"].to_list() == ["held_out", "train"]


def test_the_ledger_is_written_without_leaving_temporary_files(tmp_path):
    ledger = build_ledger(rendered(PLAIN, LONG), TrainSection())
    path = write_ledger(ledger, tmp_path)
    assert [*tmp_path.iterdir()] == [path]
    assert read_ledger(path).equals(ledger)


def test_a_ledger_of_an_earlier_release_is_read_with_todays_names_and_verified(tmp_path):
    ledger = build_ledger(rendered(PLAIN, ("silent", [0, 0, 0], {})), TrainSection())
    today = add_epoch_counts(ledger, [2])
    old_names = {"outcome": "fate", "loss_tokens": "learned", "loss_tokens_cut": "learned_cut", "epoch_count": "seen"}
    old_words = {"code": ["nothing-learned"], "reason": ["It has nothing to learn: no answer of it is trained."]}
    old = (
        today.drop("per_epoch")
        .rename(old_names)
        .with_columns(pl.col(name).replace(today[name].drop_nulls(), words) for name, words in old_words.items())
    )
    old.write_parquet(tmp_path / "ledger.parquet")
    read = read_ledger(tmp_path / "ledger.parquet")
    assert read.select(today.columns).drop("reason").equals(today.drop("reason"))
    assert read["code"].to_list() == [None, "no-loss-tokens"]
    assert read_ledger(tmp_path / "ledger.parquet", "silent").equals(read.filter(pl.col("conversation") == "silent"))
    assert _compare_ledger(tmp_path / "ledger.parquet", ledger) == "every outcome"
    old.with_columns(learned=pl.col("learned") + 1).write_parquet(tmp_path / "ledger.parquet")
    assert _compare_ledger(tmp_path / "ledger.parquet", ledger) == "other outcomes"


def test_a_suggested_share_is_never_too_small():
    for total in range(1, 120):
        for part in range(1, total + 1):
            assert part / total <= float(_share(part, total))


def test_epoch_counts_are_added_to_trained_rows_only():
    ledger = pl.DataFrame(
        {
            "conversation": ["a", "b", "c", "c", "d", "e"],
            "split": ["held_out", "train", "train", "train", "train", "train"],
            "outcome": ["kept", "dropped", "split", "split", "truncated", "kept"],
            "per_epoch": [1] * 6,
        }
    )
    counted = add_epoch_counts(ledger, [2, 0, 1, 0])
    assert counted["epoch_count"].to_list() == [None, None, 2, 0, 1, 0]
    assert count_covered(counted) == 1  # one window of c was not reached
    assert coverage_metrics(counted) == {"seen_conversations": 1, "seen_parts": 2, "parts": 4}
    assert coverage_metrics(counted.filter(pl.col("conversation") != "c")) == {"seen_conversations": 1}
    with pytest.raises(AssertionError):
        add_epoch_counts(ledger, [1, 1, 1])


@pytest.mark.parametrize("seed", range(5))
def test_an_epoch_has_every_row_as_often_as_it_is_used_and_counts_add_up(seed):
    rng = random.Random(seed)
    times = [rng.choice([1, 1, 1, 2, 5]) for _ in range(40)]
    talks = [(f"c{number}", [0, 1, number % 7, 1], {}) for number in range(40)]
    rows = rendered(*talks).with_columns(split=pl.lit("train"), per_epoch=pl.Series(times))
    ledger = build_ledger(rows, TrainSection())
    epoch = trainable(rows, ledger)
    assert dict(epoch.group_by("id").len().iter_rows()) == {f"c{n}": count for n, count in enumerate(times)}
    assert epoch["id"].head(40).equals(rows["id"])  # every row once before the first repeat
    counts = [rng.randrange(3) for _ in range(epoch.height)]
    counted = add_epoch_counts(ledger, counts)
    expected = epoch.with_columns(count=pl.Series(counts)).group_by("id").agg(pl.sum("count"))
    assert dict(counted.select("conversation", "epoch_count").iter_rows()) == dict(expected.iter_rows())
    assert counted["epoch_count"].sum() == sum(counts)


def test_a_row_has_the_epoch_count_of_its_pack_and_equal_rows_are_distinguished():
    from train.engines.epoch_counts import count_epochs, sequence_counts

    words = [[1, 2], [3], [4, 5, 6], [3], [3]]
    rows = pl.DataFrame({"input_ids": words, "labels": [[-100, *ids[1:]] if len(ids) > 1 else ids for ids in words]})
    places = ([2, 1], [4, 0], [3])  # rows by pack, not in their order
    packs = [pl.concat([rows[row] for row in pack]) for pack in places]
    packed = {name: [pack[name].explode().to_list() for pack in packs] for name in ("input_ids", "labels")}
    lengths = [pack["input_ids"].list.len().to_list() for pack in packs]
    counts = sequence_counts(3, 1, 7, seed=3).tolist()
    assert sorted(counts) == [2, 2, 3]
    sequences = pl.DataFrame(packed | {"seq_lengths": lengths})
    epoch_counts = count_epochs(rows, sequences, per_step=1, steps=7, seed=3).to_list()
    assert (epoch_counts[2], epoch_counts[0]) == (counts[0], counts[1])
    assert sorted(epoch_counts[row] for row in (1, 3, 4)) == sorted(counts)
