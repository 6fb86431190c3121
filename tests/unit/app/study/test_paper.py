import pytest

from decayprune.app.study import paper


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
