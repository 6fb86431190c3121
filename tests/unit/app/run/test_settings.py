import dataclasses
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from decayprune.app.cli.options import with_options
from decayprune.app.run.settings import Settings


def test_defaults_suit_the_data_set() -> None:
    digits, fashion = Settings().resolved(), Settings(dataset="fashion-mnist").resolved()
    assert (digits.model, fashion.model) == ("resnet8_wide", "resnet20")
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
        ({"host": "magic"}, "--host expects one of default, dhspg, .*; found 'magic'"),
        ({"variant": "sr"}, r"--variant expects one of alone, sp, sp_sr; found 'sr'"),
        ({"host": "hesso", "importance": "taylor"}, "--importance has no effect with --host hesso"),
        ({"host": "dhspg", "rounds": 2}, "--rounds has no effect with --host dhspg"),
        ({"variant": "alone", "decay_steps": 5}, "--decay-steps has no effect with --variant al"),
        ({"epochs": -1}, "--epochs must be at least 0; found -1"),
        ({"prune_epochs": -1}, "--prune-epochs must be at least 0; found -1"),
        ({"batch_size": 0}, "--batch-size must be at least 1; found 0"),
        ({"seed": -1}, "--seed must be at least 0; found -1"),
        ({"threads": -2}, "--threads must be at least 1; found -2"),
        ({"lr": 0.0}, "--lr must be above 0; found 0.0"),
        ({"budget": 1.5}, "found 1.5"),
        ({"params_budget": 0.0}, "found 0.0"),
        ({"calibrate": -1}, "--calibrate must be at least 0; found -1"),
        ({"host": "hesso", "calibrate": 8}, "--calibrate has no effect with --host hesso"),
        ({"importance": "variance"}, "give --calibrate"),
        ({"target": "tpu", "round_to": "auto"}, "--target expects one of cpu, .*found 'tpu'"),
        ({"target": "cpu", "round_to": "8"}, "--round-to 8 for others: leave one of them out"),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Settings(**changes).resolved()  # type: ignore[arg-type]


def test_the_budget_is_half_of_the_macs_unless_another_cost_is_bounded() -> None:
    assert Settings().resolved().budgets == {"macs": 0.5}
    assert Settings(params_budget=0.3).resolved().budgets == {"params": 0.3}
    both = Settings(budget=0.4, latency_budget=0.6).resolved().budgets
    assert both == {"macs": 0.4, "latency": 0.6}


def test_a_trained_model_is_not_trained_first_and_pruned_at_a_lower_rate(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    weights.touch()
    for settings in (
        Settings(weights=str(weights)),
        Settings(model="timm:resnet18?pretrained=True"),
        Settings(model="torchvision:resnet18?weights=DEFAULT"),
    ):
        found = settings.resolved()
        assert (found.trained, found.epochs, found.lr) == (True, 0, 0.01)
        assert (found.calibrate, found.variant, found.schedule(20).decay_steps) == (16, "alone", 1)
    assert Settings(weights=str(weights), epochs=2, lr=0.3).resolved().epochs == 2
    other = Settings(weights=str(weights), new_head=True).resolved()
    assert (other.epochs, other.lr, other.variant, other.calibrate) == (1, 0.01, "alone", 16)
    with pytest.raises(ValueError, match="--new-head says that --weights are of other classes"):
        Settings(new_head=True).resolved()
    plainer = Settings(weights=str(weights), calibrate=0).resolved()
    assert (plainer.calibrate, plainer.variant) == (0, "sp_sr")
    assert Settings(weights=str(weights), decay_steps=9).resolved().variant == "sp_sr"
    assert Settings(weights=str(weights), host="hesso").resolved().calibrate is None
    assert Settings(weights=str(weights), prune_epochs=0).resolved().prune_epochs == 0
    for odd in ({"host": "hesso"}, {"variant": "sp"}, {"rounds": 2}, {"decay_steps": 3}):
        with pytest.raises(ValueError, match="--prune-epochs 0 cuts without training, which is"):
            Settings(weights=str(weights), prune_epochs=0, **odd).resolved()  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="give its --weights"):
        Settings(prune_epochs=0).resolved()
    plain = Settings(optimizer="adamw").resolved()
    assert plain.calibrate is None
    assert (plain.trained, plain.epochs, plain.lr) == (False, 4, 1e-3)


def test_the_digits_as_they_are_take_widths_and_threads_that_show_something() -> None:
    found = Settings().resolved()
    assert (found.model, found.threads, found.round_to) == ("resnet8_wide", 1, "32")
    others: list[dict[str, Any]] = [
        {"model": "resnet8"},
        {"budget": 0.1},  # multiples of 32 do not reach it
        {"latency_budget": 0.5, "target": "onnxruntime"},
        {"host": "hesso"},
        {"dataset": "fashion-mnist"},
    ]
    assert [Settings(**words).resolved().round_to for words in others] == [None] * len(others)
    chosen = Settings(threads=2, round_to="none").resolved()
    assert (chosen.threads, chosen.round_to) == (2, "none")


def test_the_line_to_type_gives_the_same_settings() -> None:
    found = Settings(host="hesso", ignored_layers="stem.*,head", bf16=False, seed=3).resolved()
    line = found.command()
    assert "--ignored-layers 'stem.*,head'" in line
    assert "--no-bf16" in line
    words = shlex.split(line)[2:]
    given: dict[str, Any] = {}
    app = typer.Typer(add_completion=False)

    @app.command()
    @with_options
    def prune(ctx: typer.Context, **options: Any) -> None:
        given.update(options)

    assert CliRunner().invoke(app, words).exit_code == 0
    assert Settings(**{name: given[name] for name in found.to_dict()}).resolved() == found


def test_the_spellings_of_version_0_1_are_understood() -> None:
    old = Settings(host="torch-pruning", variant="sp+sr")
    assert (old.host, old.variant) == ("depgraph", "sp_sr")
    kept = Settings(host="depgraph").resolved().to_dict()
    kept |= {"host": "torch-pruning", "variant": "sp+sr"}
    assert Settings.from_dict(kept) == Settings(host="depgraph").resolved()


def test_a_dict_gives_the_same_settings_back_and_nothing_else() -> None:
    settings = Settings(dataset="cifar10", variant="sp", seed=4).resolved()
    assert Settings.from_dict(settings.to_dict()) == settings
    # A folder of a version that had fewer options.
    newer = ("weights", "image_size", "loss", "metric", "teacher", "latency_budget", "optimizer")
    newer += ("scope", "round_to", "floor", "ignored_layers")
    older = {k: v for k, v in settings.to_dict().items() if k not in newer}
    assert Settings.from_dict(older) == settings
    del older["depth"]
    assert Settings.from_dict(older).depth is None
    with pytest.raises(ValueError, match="these differ: newer"):
        Settings.from_dict(settings.to_dict() | {"newer": 1})
    with pytest.raises(ValueError, match="these differ: seed"):
        Settings.from_dict({k: v for k, v in settings.to_dict().items() if k != "seed"})


def test_the_schedule_fits_into_the_pruning_epochs() -> None:
    for steps in (1, 2, 19, 430):
        for settings in (Settings(prune_epochs=3), Settings(prune_epochs=3, rounds=2)):
            schedule = settings.resolved().schedule(steps)
            assert schedule.stop + schedule.decay_steps <= 3 * steps
            assert schedule.decay_steps >= 1
    exact = Settings(prune_epochs=2, decay_steps=7, rounds=4).resolved().schedule(20)
    assert (exact.stop, exact.rounds, exact.decay_steps) == (33, 4, 7)


def test_the_default_begins_to_decay_at_once_and_hosts_have_their_time() -> None:
    epochs = {"prune_epochs": 15, "finetune_epochs": 10}
    ours, host = (Settings(host=h, **epochs).resolved().schedule(20) for h in ("default", "dhspg"))
    assert (ours.rounds, ours.decay_steps, ours.stop) == (1, 50, 50)
    assert (host.decay_steps, host.stop) == (50, 250)


def test_alone_selects_when_the_smooth_variants_do_and_cuts_at_once() -> None:
    for rounds in (None, 3):
        smooth = Settings(rounds=rounds).resolved().schedule(20)
        alone = Settings(rounds=rounds, variant="alone").resolved().schedule(20)
        assert alone == dataclasses.replace(smooth, decay_steps=1)
        assert smooth.decay_steps > 1


def test_a_decay_longer_than_the_pruning_is_refused() -> None:
    settings = Settings(prune_epochs=2, decay_steps=40).resolved()
    with pytest.raises(
        ValueError, match=r"below the 40 steps of pruning.*found 40.*--prune-epochs"
    ):
        settings.schedule(20)
