import io

from rich.console import Console

from decayprune.app.cli.progress import shown


def written(terminal: bool, ticks: int, total: int) -> str:
    file = io.StringIO()
    console = Console(file=file, force_terminal=terminal, width=120)
    with shown(console) as watch:
        watch.phase("train", total, 0)
        for i in range(ticks):
            watch.tick(f"loss {i}")
        watch.phase("cut", 1, 0)
        watch.tick()
    return file.getvalue()


def test_a_pipe_gets_a_few_plain_lines() -> None:
    assert written(terminal=False, ticks=100, total=100).splitlines() == [
        "training the dense model: 20/100  loss 19",
        "training the dense model: 40/100  loss 39",
        "training the dense model: 60/100  loss 59",
        "training the dense model: 80/100  loss 79",
        "training the dense model: done  loss 99",
        "cutting and checking: done",
    ]


def test_short_phases_say_only_that_they_are_over() -> None:
    lines = written(terminal=False, ticks=5, total=5).splitlines()
    assert lines == ["training the dense model: done  loss 4", "cutting and checking: done"]


def test_a_resumed_phase_goes_on_counting() -> None:
    file = io.StringIO()
    with shown(Console(file=file, width=120)) as watch:
        watch.phase("finetune", 100, 39)
        watch.tick()
    assert file.getvalue().startswith("fine-tuning the compact model: 40/100")


def test_a_terminal_gets_bars_and_a_phase_that_ends_early_is_full() -> None:
    found = written(terminal=True, ticks=30, total=100)
    assert "\x1b" in found
    assert "30/30" in found
    assert "loss 29" in found
