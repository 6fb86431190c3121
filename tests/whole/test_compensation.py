"""A pruner that calibrates: better cuts at once, and everything else as without."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import nn

import decayprune as dp
from decayprune.compensation.calibration import calibrate
from decayprune.compensation.sensitivity import sensitivity
from loops import OPTIMIZERS, batches, net, pruner_for, same, train

DATA = [images for images, _ in batches(4, first=100)]


def trained() -> nn.Module:
    model = net()
    train(model, torch.optim.Adam(model.parameters(), lr=0.01), 60)
    return model


def cut_at_once(model: nn.Module, **options: Any) -> nn.Module:
    """Half of the MACs gone after one step that does not train."""
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    schedule = dp.Schedule(start=0, stop=1, decay_steps=1)
    pruner = pruner_for(model, still, schedule=schedule, rectify=None, **options)
    train(model, still, 1, pruner)
    pruner.compact()
    return model


def error(model: nn.Module, expected: list[torch.Tensor]) -> float:
    model.eval()
    pairs = zip(DATA, expected, strict=True)
    return sum(float((model(x) - y).detach().square().mean()) for x, y in pairs)


def test_the_function_survives_a_cut_much_better() -> None:
    model = trained().eval()
    expected = [model(x).detach() for x in DATA]
    plain = error(cut_at_once(copy.deepcopy(model)), expected)
    ranked = error(cut_at_once(copy.deepcopy(model), calibrate=DATA), expected)
    assert ranked < 0.5 * plain


@pytest.mark.parametrize("importance", ["sensitivity", "variance"])
def test_what_ranks_on_data_asks_for_some(importance: str) -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    with pytest.raises(ValueError, match=f"importance='{importance}' ranks by what happens on"):
        pruner_for(model, optimizer, importance=importance)


def test_with_calibration_the_default_ranks_by_sensitivity() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer, calibrate=DATA)
    state = pruner.state_dict()
    assert state["settings"]["importance"] == "sensitivity"
    expected = sensitivity(
        model, pruner.structures, DATA, calibrate(model, pruner.structures, DATA)
    )
    torch.testing.assert_close(state["learned"]["sensitivity"], expected)
    pruner.close()
    pruner = pruner_for(model, optimizer, calibrate=DATA, importance="magnitude")
    assert pruner.state_dict()["settings"]["importance"] == "magnitude"


def begun(steps: int) -> tuple[nn.Module, torch.optim.Optimizer, dp.DecayPruner]:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer, calibrate=DATA)
    train(model, optimizer, steps, pruner)
    return model, optimizer, pruner


def test_releases_and_resume_bit_for_bit() -> None:
    straight, optimizer, pruner = begun(9)
    assert any(event.kind == "release" for event in pruner.events)
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict(), pruner.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    train(straight, optimizer, 15, pruner, first=9)

    model = net(seed=5)
    resumed = OPTIMIZERS["AdamW"](model.parameters())
    again = pruner_for(model, resumed, calibrate=DATA)
    for part, state in zip((model, resumed, again), saved, strict=True):
        part.load_state_dict(state)
    train(model, resumed, 15, again, first=9)

    assert again.finished
    assert same(straight, model)
    assert again.compact().macs_after <= 0.5 * again.compact().macs_before


def test_the_optimizer_is_not_suspected_of_what_compensation_writes() -> None:
    _, _, pruner = begun(24)
    for _ in range(3):  # calls without a step of the optimizer, as in accumulation
        pruner.step()
    assert pruner.finished


# ---------------------------------------------------------------- batches of the training itself

WATCHED = {"calibrate": 4, "schedule": dp.Schedule(start=6, stop=14, rounds=2, decay_steps=5)}


def test_batches_of_the_training_are_as_good_as_a_loader() -> None:
    """With weights that stand still, those of steps 3 to 6 say what a list of them says."""
    found = []
    for given in (4, [images for images, _ in batches(4, first=2)]):
        model = trained()
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        schedule = dp.Schedule.at_once(start=6)
        pruner = pruner_for(model, still, schedule=schedule, calibrate=given)
        for parameter in model.modules():
            if isinstance(parameter, nn.BatchNorm2d):
                parameter.momentum = 0.0
        train(model, still, 6, pruner)
        assert pruner.finished
        pruner.compact()
        found.append(model.eval()(DATA[0]))
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("importance", ["sensitivity", "variance"])
def test_a_list_is_learned_from_when_the_first_round_comes(importance: str) -> None:
    """While weights move, batches 3 to 6 say the same if they were given as if they passed by."""
    ends = []
    for given in (4, [images for images, _ in batches(4, first=2)]):
        model = net()
        optimizer = OPTIMIZERS["SGD"](model.parameters())
        schedule = dp.Schedule(start=6, stop=14, decay_steps=5)
        options = {"schedule": schedule, "calibrate": given, "importance": importance}
        pruner = pruner_for(model, optimizer, **options)
        train(model, optimizer, 24, pruner)
        assert pruner.finished
        ends.append(model)
    assert same(*ends)


@pytest.mark.parametrize(("given", "read"), [(DATA, DATA), (4, None)], ids=["list", "number"])
def test_every_round_ranks_the_model_as_it_is_then(given: Any, read: Any) -> None:
    """At step 10, the second round, on the list or on what passed in steps 7 to 10."""
    model = net()
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    pruner = pruner_for(model, still, **WATCHED | {"calibrate": given})
    train(model, still, 9, pruner)
    for parameter in (one for one in model.parameters() if one.dim() == 1):
        parameter.data += 0.1  # by what somebody trained meanwhile
    twin = copy.deepcopy(model)
    train(model, still, 1, pruner, first=9)
    twin.load_state_dict({**twin.state_dict(), **dict(model.named_buffers())})
    read = read or [images for images, _ in batches(4, first=6)]
    ranked = pruner.state_dict()["learned"]["sensitivity"]
    moments = calibrate(twin, pruner.structures, read)
    torch.testing.assert_close(ranked, sensitivity(twin, pruner.structures, read, moments))


def test_a_list_that_the_model_refuses_is_refused_before_training() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    with pytest.raises(ValueError, match="not finite"):
        pruner_for(
            model, optimizer, **WATCHED | {"calibrate": [torch.full_like(DATA[0], torch.nan)]}
        )


@pytest.mark.parametrize("given", [4, DATA])
@pytest.mark.parametrize("saved_at", [1, 4, 5, 6, 9])
def test_resume_bit_for_bit_within_the_batches(saved_at: int, given: Any) -> None:
    options = WATCHED | {"calibrate": given}
    straight = net()
    optimizer = OPTIMIZERS["AdamW"](straight.parameters())
    pruner = pruner_for(straight, optimizer, **options)
    train(straight, optimizer, saved_at, pruner)
    buffer = io.BytesIO()
    torch.save([straight.state_dict(), optimizer.state_dict(), pruner.state_dict()], buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    train(straight, optimizer, 24 - saved_at, pruner, first=saved_at)
    assert not straight._forward_pre_hooks

    model = net(seed=5)
    resumed = OPTIMIZERS["AdamW"](model.parameters())
    again = pruner_for(model, resumed, **options)
    for part, state in zip((model, resumed, again), saved, strict=True):
        part.load_state_dict(state)
    train(model, resumed, 24 - saved_at, again, first=saved_at)
    assert again.finished
    assert same(straight, model)


def test_a_pruner_that_has_learned_goes_back_to_before_it_had() -> None:
    model = net()
    optimizer = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, optimizer, **WATCHED)
    train(model, optimizer, 4, pruner)
    saved = copy.deepcopy([model.state_dict(), optimizer.state_dict(), pruner.state_dict()])
    train(model, optimizer, 20, pruner, first=4)
    straight = copy.deepcopy(model)
    for part, state in zip((model, optimizer, pruner), saved, strict=True):
        part.load_state_dict(state)
    train(model, optimizer, 20, pruner, first=4)
    assert same(straight, model)


def test_a_step_whose_batch_is_kept_is_not_recorded() -> None:
    model = net()
    optimizer = OPTIMIZERS["SGD"](model.parameters())
    pruner = pruner_for(model, optimizer, **WATCHED)
    ready = []
    for step in range(7):
        ready.append(pruner.replayable)
        train(model, optimizer, 1, pruner, first=step)
    assert ready[1]
    assert not any(ready[2:6])


def test_closing_before_the_first_round_leaves_no_hook() -> None:
    model = net()
    pruner = pruner_for(model, OPTIMIZERS["SGD"](model.parameters()), **WATCHED)
    assert model._forward_pre_hooks
    pruner.close()
    assert not model._forward_pre_hooks


@pytest.mark.parametrize(
    ("calibrate", "words"), [(7, "Schedule.at_once.start=7."), (0, "found 0"), (True, "found True")]
)
def test_a_number_of_batches_that_cannot_be(calibrate: int, words: str) -> None:
    model = net()
    with pytest.raises(ValueError, match=words):
        pruner_for(
            model, OPTIMIZERS["SGD"](model.parameters()), **(WATCHED | {"calibrate": calibrate})
        )
    assert not model._forward_pre_hooks
