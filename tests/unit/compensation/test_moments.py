"""Streamed moments against those of all vectors at once."""

from __future__ import annotations

import pytest
import torch

from decayprune.compensation.moments import RunningMoments, pooled


def streamed(parts: list[torch.Tensor]) -> RunningMoments:
    running = RunningMoments(parts[0].shape[1])
    for part in parts:
        running.add(part)
    return running


def test_batches_add_up_to_the_moments_of_the_whole() -> None:
    torch.manual_seed(0)
    whole = torch.randn(60, 5) @ torch.randn(5, 5) + torch.tensor([0.0, 1, -2, 3, 4])
    found = streamed(list(whole.split([7, 1, 30, 22]))).result()

    assert found.count == 60
    torch.testing.assert_close(found.mean, whole.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        found.covariance, torch.cov(whole.double().T, correction=0), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        found.products, whole.double().T @ whole.double() / 60, rtol=1e-5, atol=1e-5
    )


def test_a_small_variance_survives_a_large_mean() -> None:
    torch.manual_seed(0)
    whole = 1e3 + 1e-2 * torch.randn(4000, 3)
    found = streamed(list(whole.split(500))).result()
    torch.testing.assert_close(found.variance, whole.double().var(0, False), rtol=1e-2, atol=0)


def test_what_several_saw_is_what_one_would_have_seen() -> None:
    torch.manual_seed(0)
    whole = torch.randn(50, 4) + 3
    apart = pooled([streamed([part]).result() for part in whole.split([10, 39, 1])])
    alone = streamed([whole]).result()

    assert apart.count == 50
    torch.testing.assert_close(apart.mean, alone.mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(apart.covariance, alone.covariance, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_few_vectors_have_no_variance(rows: int) -> None:
    found = streamed([torch.ones(rows, 3)]).result()
    assert found.count == rows
    assert found.variance.tolist() == [0, 0, 0]
