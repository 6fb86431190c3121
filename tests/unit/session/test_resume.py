"""k steps, save, load, k steps are 2k steps, bit for bit, in every phase."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
import torch

import decayprune as dp
from loops import OPTIMIZERS, net, pruner_for, same, train

TOTAL = 26
THRESHOLDS = dp.Rectify(rule="thresholds", t_rate=0.0, t_len=-1.0, warm_up=0.2, cool_down=0.8)
SETTINGS: dict[str, dict[str, Any]] = {
    "tournament": {"rectify": dp.Rectify(extra=0.5)},
    "thresholds": {"rectify": THRESHOLDS},
    "all slices, cosine": {"slices": "all", "decay": "cosine", "rectify": None},
    "taylor": {"importance": "taylor"},
    "random": {"importance": "random"},
}


def through_a_file(value: Any) -> Any:
    """Saved and loaded as a careful user would."""
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def resumed(steps: int, optimizer: str, options: dict[str, Any]) -> tuple[Any, Any, dp.DecayPruner]:
    """Train so many steps, save everything, and load it into fresh objects."""
    model = net()
    opt = OPTIMIZERS[optimizer](model.parameters())
    pruner = pruner_for(model, opt, **options)
    train(model, opt, steps, pruner)
    saved = through_a_file([model.state_dict(), opt.state_dict(), pruner.state_dict()])

    torch.manual_seed(1234)  # another process has other random numbers
    fresh = net(seed=99)
    other = OPTIMIZERS[optimizer](fresh.parameters())
    again = pruner_for(fresh, other, **options)
    for target, state in zip((fresh, other, again), saved, strict=True):
        target.load_state_dict(state)
    return fresh, other, again


@pytest.mark.parametrize("optimizer", ["SGD momentum", "AdamW"])
@pytest.mark.parametrize("name", sorted(SETTINGS))
def test_resuming_at_any_step_is_going_on(name: str, optimizer: str) -> None:
    straight = net()
    opt = OPTIMIZERS[optimizer](straight.parameters())
    pruner = pruner_for(straight, opt, **SETTINGS[name])
    train(straight, opt, TOTAL, pruner)
    assert pruner.finished
    # Before the start, mid-decay, right after releases and in cool-downs, after pruning.
    released = [event.step for event in pruner.events if event.kind == "release"]
    for at in sorted({1, 4, 12, 21, *[r + 1 for r in released[-1:]]}):
        torch.manual_seed(0)
        model, other, again = resumed(at, optimizer, SETTINGS[name])
        assert again.steps == at
        train(model, other, TOTAL - at, again, first=at)
        assert same(straight, model), at
        assert again.events == pruner.events
        ours, theirs = again.lifecycle.state_dict(), pruner.lifecycle.state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs), at


def test_the_phases_above_really_occur() -> None:
    model = net()
    opt = OPTIMIZERS["SGD momentum"](model.parameters())
    pruner = pruner_for(model, opt, rectify=THRESHOLDS)
    seen = set()
    for step in range(TOTAL):
        train(model, opt, 1, pruner, first=step)
        seen |= set(pruner.lifecycle.phase.tolist())
        seen |= {"cooling"} if pruner.lifecycle.cooling(pruner.steps + 1).any() else set()
    assert seen == {0, 1, 2, "cooling"}


@pytest.mark.parametrize("optimizer", ["SGD momentum", "AdamW"])
def test_resuming_after_compaction(optimizer: str, tmp_path: Path) -> None:
    straight = net()
    opt = OPTIMIZERS[optimizer](straight.parameters())
    pruner = pruner_for(straight, opt)
    train(straight, opt, TOTAL, pruner)
    pruner.compact()
    train(straight, opt, 4, pruner, first=TOTAL)
    dp.save(tmp_path / "saved", straight)
    state = through_a_file(opt.state_dict())

    model = dp.load(tmp_path / "saved", net(seed=99))
    other = OPTIMIZERS[optimizer](model.parameters())
    other.load_state_dict(state)
    assert same(straight, model)
    train(straight, opt, 5, first=TOTAL + 4)
    train(model, other, 5, first=TOTAL + 4)
    assert same(straight, model)


@pytest.mark.parametrize("optimizer", ["SGD momentum", "AdamW"])
def test_a_pruner_resumed_after_the_cut_has_nothing_left_to_do(optimizer: str) -> None:
    whole = net()
    opt = OPTIMIZERS[optimizer](whole.parameters())
    pruner = pruner_for(whole, opt)
    train(whole, opt, TOTAL, pruner)
    report = pruner.compact()
    parts = [dp.structure(whole), whole.state_dict(), opt.state_dict(), pruner.state_dict()]
    structure, weights, moments, state = through_a_file(parts)

    model = net(seed=5)
    opt_again = OPTIMIZERS[optimizer](model.parameters())
    again = pruner_for(model, opt_again)
    dp.reshape(model, structure).load_state_dict(weights)
    opt_again.load_state_dict(moments)
    again.load_state_dict(state)
    assert again.finished
    assert str(again.compact()) == str(again.report) == str(report)
    assert again.events == pruner.events
    train(whole, opt, 4, pruner)
    train(model, opt_again, 4, again)
    assert same(whole, model)
    assert again.state_dict()["report"] == state["report"]


def test_the_state_is_small_and_plain() -> None:
    model = net()
    opt = OPTIMIZERS["AdamW"](model.parameters())
    pruner = pruner_for(model, opt)
    train(model, opt, 8, pruner)

    def plain(value: Any) -> bool:
        if isinstance(value, dict):
            return all(isinstance(k, str) and plain(v) for k, v in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return type(value) in (int, float, str, bool, type(None), torch.Tensor)

    assert plain(pruner.state_dict())
    assert not any(key for p in opt.state for key in opt.state[p] if "decay" in str(key))


class TestForeignStates:
    def state(self, **options: Any) -> dict[str, Any]:
        model = net()
        return pruner_for(model, OPTIMIZERS["SGD"](model.parameters()), **options).state_dict()

    def load(self, state: Any, **options: Any) -> None:
        model = net()
        pruner = pruner_for(model, OPTIMIZERS["SGD"](model.parameters()), **options)
        before = pruner.state_dict()
        try:
            pruner.load_state_dict(state)
        finally:
            after = pruner.state_dict()
            assert after["steps"] == before["steps"]
            assert all(torch.equal(v, after["state"][k]) for k, v in before["state"].items())

    def test_no_state_at_all(self) -> None:
        with pytest.raises(ValueError, match="pruner state of format 1, found 'list'"):
            self.load([1, 2])
        with pytest.raises(ValueError, match="pruner state of format 1, found None"):
            self.load({"model": {}})
        with pytest.raises(ValueError, match="format 1, found 7"):
            self.load(self.state() | {"format": 7})

    def test_another_model(self) -> None:
        state = self.state(ignored_layers=["c"])
        with pytest.raises(ValueError, match=r"another model.*first at c\.weight.*same ignored"):
            self.load(state)

    @pytest.mark.parametrize(
        "change",
        [
            {"budget": dp.Budget(macs=0.6)},
            {"schedule": dp.Schedule(start=2, stop=14, rounds=3, decay_steps=6)},
            {"rectify": dp.Rectify(extra=0.4)},
            {"rectify": None},
            {"scope": "local"},
            {"round_to": 2},
            {"slices": "all"},
            {"decay": "cosine"},
            {"importance": "magnitude_l1"},
            {"floor": 0.2},
        ],
        ids=str,
    )
    def test_other_settings(self, change: dict[str, Any]) -> None:
        with pytest.raises(ValueError, match=r"was saved with .*Build it as it was saved"):
            self.load(self.state(**change))
        with pytest.raises(ValueError, match=r"was saved with .*Build it as it was saved"):
            self.load(self.state(), **change)

    def test_missing_and_damaged_fields(self) -> None:
        for field in set(self.state()) - {"pinning"}:  # older ones have none
            broken = self.state()
            del broken[field]
            with pytest.raises(ValueError, match="pruner state"):
                self.load(broken)
        broken = self.state()
        broken["state"]["age"] = broken["state"]["age"][:3]
        words = r"state\.age is a tensor of shape \(3,\), expected a tensor of shape \(30,\)"
        with pytest.raises(ValueError, match=words):
            self.load(broken)
