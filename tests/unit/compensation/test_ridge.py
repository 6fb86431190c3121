"""The closed form against ordinary least squares on the data themselves, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from decayprune.compensation.moments import Moments, RunningMoments
from decayprune.compensation.ridge import folded, stand_in

STAYING, LEAVING = torch.tensor([0, 2, 3, 5]), torch.tensor([1, 4])


def data() -> Tensor:
    torch.manual_seed(0)
    return (torch.randn(200, 6) @ torch.randn(6, 6) + torch.arange(6.0)).double()


def moments_of(x: Tensor):  # type: ignore[no-untyped-def]
    running = RunningMoments(x.shape[1])
    running.add(x)
    return running.result()


@pytest.mark.parametrize("offset", [True, False])
def test_it_is_least_squares(offset: bool) -> None:
    x = data()
    known = x[:, STAYING]
    if offset:
        known = torch.cat([known, torch.ones(len(x), 1).double()], 1)
    expected = torch.linalg.lstsq(known, x[:, LEAVING]).solution.T

    fit = stand_in(moments_of(x), STAYING, LEAVING, offset=offset, ridge=1e-12)
    torch.testing.assert_close(fit.weights, expected[:, :4], rtol=1e-3, atol=1e-3)
    if offset:
        torch.testing.assert_close(fit.offset, expected[:, 4], rtol=1e-3, atol=1e-2)
    else:
        assert not fit.offset.any()


def test_the_penalty_is_ridge_regression() -> None:
    x, ridge = data(), 0.1
    centred = x - x.mean(0)
    scale = centred[:, STAYING].square().mean()
    rows = (ridge * scale * len(x)) ** 0.5 * torch.eye(4).double()
    known = torch.cat([centred[:, STAYING], rows])
    wanted = torch.cat([centred[:, LEAVING], torch.zeros(4, 2).double()])
    expected = torch.linalg.lstsq(known, wanted).solution.T
    fit = stand_in(moments_of(x), STAYING, LEAVING, offset=True, ridge=ridge)
    torch.testing.assert_close(fit.weights, expected, rtol=1e-4, atol=1e-4)


def test_inputs_that_never_vary_are_no_reason_to_fail() -> None:
    x = torch.ones(20, 6).double()
    fit = stand_in(moments_of(x), STAYING, LEAVING, offset=True)
    torch.testing.assert_close(fit.weights @ x[0, STAYING] + fit.offset, x[0, LEAVING])


def test_variances_that_are_rounding_are_no_reason_to_fail() -> None:
    noise = torch.tensor([[1.0, 3.0, 0.0, 0.0], [3.0, 1.0, 0.0, 0.0]]) * 1e-44  # not of any vectors
    covariance = torch.cat([noise, torch.zeros(2, 4)])
    moments = Moments(9, torch.arange(4.0), covariance)
    fit = stand_in(moments, torch.tensor([0, 1]), torch.tensor([2, 3]), offset=True)
    assert bool((fit.weights == 0).all())
    assert fit.offset.tolist() == [2, 3]


def test_one_variance_far_above_the_rest_is_no_reason_to_fail() -> None:
    covariance = torch.diag(torch.tensor([1e6, 1.0, 1.0, 1.0]))
    covariance[1, 2] = covariance[2, 1] = 1500.0  # as sums in float32 may leave it
    covariance[0, 3] = covariance[3, 0] = 5e5
    moments = Moments(9, torch.zeros(4), covariance)
    fit = stand_in(moments, torch.tensor([0, 1, 2]), torch.tensor([3]), offset=True)
    assert fit.weights[0, 0] == pytest.approx(0.5, abs=0.01)
    assert fit.weights[0, 1:].abs().max() < 1e-9


def test_a_linear_layer_does_its_work_without_what_can_be_predicted() -> None:
    x, weight, bias = data(), torch.randn(3, 6).double(), torch.randn(3).double()
    x[:, LEAVING] = x[:, STAYING] @ torch.randn(4, 2).double() + 1.5  # predictable
    fit = stand_in(moments_of(x), STAYING, LEAVING, offset=True, ridge=1e-9)
    gain, lift = folded(fit, weight[:, LEAVING])
    found = x[:, STAYING] @ (weight[:, STAYING] + gain).T + bias + lift
    torch.testing.assert_close(found, x @ weight.T + bias, rtol=1e-3, atol=1e-2)


def test_so_does_a_convolution() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(4, 6, 8, 8).double(), torch.randn(3, 6, 3, 3).double()
    x[:, LEAVING] = torch.einsum("nkhw,kr->nrhw", x[:, STAYING], torch.randn(4, 2).double())
    fit = stand_in(
        moments_of(x.movedim(1, -1).flatten(0, -2)), STAYING, LEAVING, offset=False, ridge=1e-9
    )
    gain, lift = folded(fit, weight[:, LEAVING])
    found = F.conv2d(x[:, STAYING], weight[:, STAYING] + gain, padding=1)
    torch.testing.assert_close(found, F.conv2d(x, weight, padding=1), rtol=1e-4, atol=1e-4)
    assert not lift.any()


def test_a_bias_takes_the_offset_of_every_position_of_the_kernel() -> None:
    fit = stand_in(moments_of(data()), STAYING, LEAVING, offset=True)
    columns = torch.randn(3, 2, 3, 3).double()
    _, lift = folded(fit, columns)
    slow = [sum(columns[o, r].sum() * fit.offset[r] for r in range(2)) for o in range(3)]
    torch.testing.assert_close(lift, torch.stack(slow))
