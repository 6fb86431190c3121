import math

import pytest

from decayprune.app.study import dense, paper


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
        ("cifar10", "vgg16", "gate-decorator"),
        ("cifar10", "resnet56", "gate-decorator"),
        ("imagenet", "resnet50", "dhspg"),
    }
    with pytest.raises(ValueError, match="resnet56-cifar10-depgraph-sl"):
        paper.recipe("resnet57")


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
