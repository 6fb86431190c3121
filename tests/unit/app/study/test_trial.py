from __future__ import annotations

from typing import Any

import pytest

from decayprune.app.study.trial import Training, Trial

BASE = Trial(
    task="digits",
    model="resnet8",
    dense=Training(epochs=2, lr=0.1, milestones=(0.5,)),
    training=Training(epochs=1, lr=0.01),
)


def test_a_name_says_what_a_trial_is_and_changes_with_every_choice() -> None:
    others = [
        BASE.with_(seed=1),
        BASE.with_(variant="sp"),
        BASE.with_(training=Training(epochs=1, lr=0.02)),
        BASE.with_(training=Training(epochs=1, lr=0.01, optimizer="adamw")),
        BASE.with_(options={"scope": "local"}),
        BASE.with_(limit=10),
    ]
    assert BASE.name.startswith("digits-resnet8-default-0.25-sp_sr-s0-")
    assert len({trial.name for trial in [BASE, *others]}) == 7


def test_names_of_runs_that_exist_remain() -> None:
    assert "optimizer" not in BASE.to_dict()["training"]
    assert BASE.name.endswith("-313cf610")


def test_variants_hosts_and_budgets_share_a_dense_network_and_seeds_do_not() -> None:
    same = [BASE.with_(variant="alone"), BASE.with_(host="hesso"), BASE.with_(budget=0.1)]
    assert {trial.dense_name for trial in same} == {BASE.dense_name}
    assert BASE.with_(seed=1).dense_name != BASE.dense_name
    assert BASE.with_(dense=Training(epochs=3, lr=0.1)).dense_name != BASE.dense_name


def test_a_dict_gives_the_trial_back() -> None:
    trial = BASE.with_(options={"reg": 1e-4}, steps=3)
    assert Trial.from_dict(trial.to_dict()) == trial
    adam = trial.with_(training=Training(epochs=1, lr=0.01, optimizer="adamw"))
    assert Trial.from_dict(adam.to_dict()) == adam
    with pytest.raises(ValueError, match="no field colour"):
        Trial.from_dict({**trial.to_dict(), "colour": 1})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Trial\.host is one of default, .*found 'nobody'"):
        BASE.with_(host="nobody")
    with pytest.raises(ValueError, match=r"Trial\.variant is one of alone"):
        BASE.with_(variant="sr")
    with pytest.raises(ValueError, match=r"Training\.optimizer is one of sgd, adamw; found 'adam'"):
        Training(epochs=1, lr=0.1, optimizer="adam")  # type: ignore[arg-type]


@pytest.mark.parametrize("added", [{"restarts": (0.5,)}, {"warm": 10}])
def test_what_was_added_leaves_old_names_alone_and_comes_back_from_dict(added: Any) -> None:
    assert not BASE.to_dict()["training"].keys() & added.keys()
    again = BASE.with_(training=Training(epochs=2, lr=0.1, **added))
    assert again.name != BASE.name
    assert Trial.from_dict(again.to_dict()) == again
