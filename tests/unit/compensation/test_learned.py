"""What is learned on data: nothing before, the same as by hand after, and it can be saved."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from decayprune.compensation.calibration import calibrate
from decayprune.compensation.learned import Learned
from decayprune.compensation.sensitivity import sensitivity
from decayprune.structures import trace
from loops import INPUTS, batches, net

DATA = [images for images, _ in batches(3)]


@pytest.fixture
def model() -> torch.nn.Module:
    return net().eval()


@pytest.mark.parametrize("feels", [False, True])
def test_as_by_hand(model: torch.nn.Module, feels: bool) -> None:
    structures, parameters = trace(model, INPUTS), dict(model.named_parameters())
    learned = Learned(model, structures, feels=feels)
    assert not learned.calibration.readers
    learned.learn(DATA)
    read = calibrate(model, structures, DATA)
    expected = read.importance(structures, parameters)
    if feels:
        expected = sensitivity(model, structures, DATA, read).float()
    torch.testing.assert_close(learned.importance(structures, parameters), expected)
    assert [r.name for r in learned.calibration.readers] == [r.name for r in read.readers]


class ByHand(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 8), nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.first(x)) @ self.second.T


@pytest.mark.parametrize("feels", [False, True])
def test_where_nothing_can_be_looked_at_nothing_is_learned(feels: bool) -> None:
    model = ByHand()
    with pytest.raises(
        ValueError, match=r"calibrate finds no layer to look at .* without calibrate"
    ):
        Learned(model, trace(model, torch.randn(2, 3)), feels=feels)


class Detector(nn.Module):
    """Of a part of it, what comes out is an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.felt, self.chosen = nn.Linear(3, 8), nn.Linear(8, 6), nn.Linear(8, 6)
        self.of_felt, self.of_chosen = nn.Linear(6, 2), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = torch.relu(self.stem(x))
        felt, chosen = self.of_felt(self.felt(x).relu()), self.of_chosen(self.chosen(x).relu())
        return felt, chosen.argmax(1)


def test_where_the_outputs_feel_nothing_it_is_what_layers_read() -> None:
    torch.manual_seed(0)
    model, data = Detector(), [torch.randn(16, 3) for _ in range(3)]
    structures, parameters = trace(model, data[0]), dict(model.named_parameters())
    learned = Learned(model, structures, feels=True)
    learned.learn(data)
    scores = learned.importance(structures, parameters)
    felt = sensitivity(model, structures, data, learned.calibration).float()
    read = learned.calibration.importance(structures, parameters)
    for group in structures.groups:
        part = slice(group.start, group.stop)
        assert torch.equal(scores[part], (read if group.layer == "chosen" else felt)[part])
        assert bool(scores[part].any())


def test_of_bad_data_nothing_is_learned(model: torch.nn.Module) -> None:
    learned = Learned(model, trace(model, INPUTS), feels=True)
    with pytest.raises(ValueError, match="not finite"):
        learned.learn([DATA[0], DATA[1] * torch.nan])
    assert learned.state_dict() == {"moments": {}, "sensitivity": None, "branches": None}


def test_states_before_and_after(model: torch.nn.Module) -> None:
    structures, parameters = trace(model, INPUTS), dict(model.named_parameters())
    learned = Learned(model, structures, feels=True)
    before = learned.state_dict()
    learned.learn(DATA)
    after = copy.deepcopy(learned.state_dict())
    expected = learned.importance(structures, parameters)

    learned.load_state_dict(before)
    assert learned.state_dict() == before
    learned.load_state_dict(after)
    torch.testing.assert_close(learned.importance(structures, parameters), expected)


def test_a_state_of_who_did_not_feel_is_refused(model: torch.nn.Module) -> None:
    structures = trace(model, INPUTS)
    learned, other = (Learned(model, structures, feels=feels) for feels in (True, False))
    learned.learn(DATA)
    other.learn(DATA)
    for one, state in ((learned, other.state_dict()), (other, learned.state_dict())):
        with pytest.raises(ValueError, match="what is under sensitivity in it is not that"):
            one.load_state_dict(state)
    short = learned.state_dict()
    short["sensitivity"] = short["sensitivity"][1:]
    with pytest.raises(ValueError, match="what is under sensitivity in it is not that"):
        learned.load_state_dict(short)


def test_a_damaged_state_changes_nothing(model: torch.nn.Module) -> None:
    learned = Learned(model, trace(model, INPUTS), feels=True)
    learned.learn(DATA)
    before = copy.deepcopy(learned.state_dict())
    branches, covariance = copy.deepcopy(before), copy.deepcopy(before)
    branches["branches"] = torch.ones(2)
    covariance["moments"]["fc"]["covariance"] = torch.ones(2, 3)
    for state, words in ((branches, "under branches"), (covariance, "calibrated on other layers")):
        with pytest.raises(ValueError, match=words):
            learned.load_state_dict(state)
        torch.testing.assert_close(learned.state_dict(), before)
