import shlex

import pytest

from decayprune.recipes.settings import Settings


def test_defaults_suit_the_data_set() -> None:
    digits, fashion = Settings().resolved(), Settings(dataset="fashion-mnist").resolved()
    assert (digits.model, fashion.model) == ("resnet8", "resnet20")
    assert digits.batch_size == 64
    assert digits.threads is not None
    assert digits.device in ("cpu", "cuda")
    assert digits.resolved() == digits


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dataset": "mnist"}, "one of digits, .*found 'mnist'"),
        ({"data": "a:b"}, "give --model as well"),
        ({"data": "a:b", "model": "a:c", "batch_size": 8}, "--batch-size has no effect"),
        ({"host": "magic"}, "--host expects 'default'; found 'magic'"),
        ({"epochs": -1}, "--epochs must be at least 0; found -1"),
        ({"prune_epochs": 0}, "--prune-epochs must be at least 1; found 0"),
        ({"batch_size": 0}, "--batch-size must be at least 1; found 0"),
        ({"seed": -1}, "--seed must be at least 0; found -1"),
        ({"threads": -2}, "--threads must be at least 1; found -2"),
        ({"lr": 0.0}, "--lr must be above 0; found 0.0"),
        ({"budget": 1.5}, "found 1.5"),
        ({"params_budget": 0.0}, "found 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes).resolved()  # type: ignore[arg-type]


def test_json_gives_the_same_settings_back_and_nothing_else() -> None:
    settings = Settings(dataset="cifar10", rectify=False, seed=4).resolved()
    assert Settings.from_json(settings.to_json()) == settings
    with pytest.raises(ValueError, match="these differ: newer"):
        Settings.from_json(settings.to_json() | {"newer": 1})
    with pytest.raises(ValueError, match="these differ: seed"):
        Settings.from_json({k: v for k, v in settings.to_json().items() if k != "seed"})


@pytest.mark.parametrize(
    "line",
    [
        "decayprune prune",
        "decayprune prune --dataset fashion-mnist --budget 0.3 --no-rectify --seed 2",
        "decayprune prune --model resnet20 --epochs 3 --bf16",
        "decayprune prune --model 'my nets:small' --data nets:loaders --decay-steps 5",
    ],
)
def test_the_command_line_says_what_differs_from_the_defaults(line: str) -> None:
    words = iter(shlex.split(line)[2:])
    given: dict[str, object] = {}
    for word in words:
        name = word[2:].replace("-", "_")
        if name in ("no_rectify", "bf16"):
            given[name.removeprefix("no_")] = not name.startswith("no_")
        else:
            text = next(words)
            kind = {"budget": float, "seed": int, "epochs": int, "decay_steps": int}
            given[name] = kind.get(name, str)(text)
    assert Settings(**given).resolved().command() == line  # type: ignore[arg-type]


def test_the_schedule_fits_into_the_pruning_epochs() -> None:
    for steps in (1, 2, 19, 430):
        for settings in (Settings(prune_epochs=3), Settings(prune_epochs=3, rounds=2)):
            schedule = settings.resolved().pruning(steps)["schedule"]
            assert schedule.stop + schedule.decay_steps <= 3 * steps
            assert schedule.decay_steps >= 1
    exact = Settings(prune_epochs=2, decay_steps=7, rounds=4).resolved().pruning(20)["schedule"]
    assert (exact.stop, exact.rounds, exact.decay_steps) == (33, 4, 7)


def test_arguments_of_the_pruner() -> None:
    settings = Settings(budget=0.4, params_budget=0.6, rectify=False, importance="taylor")
    arguments = settings.resolved().pruning(20)
    assert arguments["budget"].bounds == {"macs": 0.4, "params": 0.6}
    assert arguments["rectify"] is None
    assert arguments["importance"] == "taylor"
    assert Settings().resolved().pruning(20)["rectify"] is not None


def test_a_decay_longer_than_the_pruning_is_refused() -> None:
    settings = Settings(prune_epochs=2, decay_steps=40).resolved()
    with pytest.raises(
        ValueError, match=r"below the 40 steps of pruning.*found 40.*--prune-epochs"
    ):
        settings.pruning(20)
