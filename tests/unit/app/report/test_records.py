import pytest

from decayprune.app.report.records import EventRow, Moment, RefusalRow, Summary, decode, parse
from run_folders import event, summary


def test_a_row_becomes_its_record() -> None:
    found = parse(EventRow, event(14, "release", 1), "events.jsonl, line 3")
    assert (found.step, found.kind, found.structure, found.layer) == (14, "release", 1, "conv")
    assert (found.c_rate, found.work) == (0.5, None)


def test_what_a_record_holds_is_read_by_its_own_records() -> None:
    found = parse(Summary, summary(), "report.json")
    assert found.refusals == (RefusalRow("fc", 10, "the model's output"),)
    assert found.rounds == (10, 20)
    assert found.limits.stop == 30


def test_fields_that_may_be_missing_have_defaults_and_others_are_named() -> None:
    row = {"step": 1, "phase": "train", "loss": 0.5, "lr": 0.1}
    assert parse(Moment, row, "here").accuracy is None
    del row["phase"]
    with pytest.raises(ValueError, match=r"here: expected the field 'phase', found \['loss'"):
        parse(Moment, row, "here")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"step": True}, "a whole number >= 0, found True"),
        ({"step": 2**53 + 1}, "a whole number >= 0, found 9007199254740993"),
        ({"loss": float("inf")}, "finite number or null, found inf"),
        ({"phase": "warm-up"}, "one of 'train', 'prune', 'finetune', found 'warm-up'"),
    ],
)
def test_a_value_of_another_kind_is_refused(change: dict[str, object], expected: str) -> None:
    row = {"step": 1, "phase": "train", "loss": 0.5, "lr": 0.1, **change}
    with pytest.raises(ValueError, match=expected):
        parse(Moment, row, "here")


def test_infinities_are_decoded_as_none_and_damage_is_named() -> None:
    assert decode('{"a": NaN, "b": [-Infinity, 1]}', "here") == {"a": None, "b": [None, 1]}
    with pytest.raises(ValueError, match=r"here: expected JSON, found '{'\. The file is damaged"):
        decode("{", "here")
