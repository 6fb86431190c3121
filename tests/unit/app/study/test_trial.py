import math

import pytest

from decayprune.app.study import dense, paper
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
    assert "optimizer" not in BASE.to_json()["training"]
    assert BASE.name.endswith("-313cf610")


def test_variants_hosts_and_budgets_share_a_dense_network_and_seeds_do_not() -> None:
    same = [BASE.with_(variant="alone"), BASE.with_(host="hesso"), BASE.with_(budget=0.1)]
    assert {trial.dense_name for trial in same} == {BASE.dense_name}
    assert BASE.with_(seed=1).dense_name != BASE.dense_name
    assert BASE.with_(dense=Training(epochs=3, lr=0.1)).dense_name != BASE.dense_name


def test_json_gives_the_trial_back() -> None:
    trial = BASE.with_(options={"reg": 1e-4}, steps=3)
    assert Trial.from_json(trial.to_json()) == trial
    adam = trial.with_(training=Training(epochs=1, lr=0.01, optimizer="adamw"))
    assert Trial.from_json(adam.to_json()) == adam
    with pytest.raises(ValueError, match="no field colour"):
        Trial.from_json({**trial.to_json(), "colour": 1})


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Trial\.host is one of default, .*found 'nobody'"):
        BASE.with_(host="nobody")
    with pytest.raises(ValueError, match=r"Trial\.variant is one of alone"):
        BASE.with_(variant="sr")
    with pytest.raises(ValueError, match=r"Training\.optimizer is one of sgd, adamw; found 'adam'"):
        Training(epochs=1, lr=0.1, optimizer="adam")  # type: ignore[arg-type]


def test_recipes_are_those_of_the_paper() -> None:
    tasks = {(r.trial.task, r.trial.model.split(":")[-1], r.trial.host) for r in
             paper.RECIPES.values()}  # fmt: skip
    assert tasks == {
        ("cifar10", "vgg16", "dhspg"),
        ("cifar10", "resnet50", "dhspg"),
        ("cifar10", "resnet56", "depgraph"),
        ("cifar10", "resnet56", "depgraph-sl"),
        ("cifar100", "vgg19", "depgraph"),
        ("cifar100", "vgg19", "depgraph-sl"),
        ("cifar10", "vgg16", "gate"),
        ("cifar10", "resnet56", "gate"),
        ("imagenet", "resnet50", "dhspg"),
    }
    with pytest.raises(ValueError, match="resnet56-cifar10-depgraph-sl"):
        paper.recipe("resnet57")


def test_restarts_leave_old_names_alone_and_come_back_from_json() -> None:
    assert "restarts" not in BASE.to_json()["training"]
    again = BASE.with_(training=Training(epochs=2, lr=0.1, restarts=(0.5,)))
    assert again.name != BASE.name
    assert Trial.from_json(again.to_json()) == again


@pytest.mark.parametrize("name", [n for n in paper.RECIPES if n.endswith("-sl")])
def test_sparse_recipes_train_each_part_as_published(name: str) -> None:
    trial = paper.recipe(name).trial
    of = dense.rate(trial.training, 200)
    rates = [of(epoch) for epoch in range(200)]
    part = [1e-2] * 60 + [1e-3] * 20 + [1e-4] * 20
    assert rates == pytest.approx(part + part)
    assert trial.options["sparse_weight_decay"] == 0


def test_gate_decorator_fine_tunes_from_a_hundredth_down() -> None:
    for name in ("vgg16-cifar10-gate-decorator", "resnet56-cifar10-gate-decorator"):
        how = paper.recipe(name).trial.training
        of = dense.rate(how, how.epochs)
        rates = [of(epoch) for epoch in range(how.epochs - 40, how.epochs)]
        wanted = [0.005 * (1 + math.cos(math.pi * epoch / 40)) for epoch in range(40)]
        assert rates == pytest.approx(wanted)
