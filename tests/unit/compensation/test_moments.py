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
    torch.testing.assert_close(found.mean.double(), whole.double().mean(0), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        found.covariance.double(), torch.cov(whole.double().T, correction=0), rtol=1e-5, atol=1e-5
    )
    torch.testing.assert_close(
        found.products, whole.double().T @ whole.double() / 60, rtol=1e-5, atol=1e-5
    )


def test_a_small_variance_survives_a_large_mean() -> None:
    torch.manual_seed(0)
    whole = 1e3 + 1e-2 * torch.randn(4000, 3)
    found = streamed(list(whole.split(500))).result()
    torch.testing.assert_close(
        found.variance.double(), whole.double().var(0, False), rtol=1e-2, atol=0
    )


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


def test_many_batches_lose_no_digits() -> None:
    torch.manual_seed(0)
    mixing = torch.randn(6, 6)
    batches = [torch.randn(500, 6) @ mixing + 5 for _ in range(64)]
    found, whole = streamed(batches).result(), torch.cat(batches).double()
    expected = torch.cov(whole.T, correction=0)
    scale = expected.diagonal().max()
    error = (found.covariance.double() - expected).abs().max() / scale
    assert float(error) < 1e-5


def test_a_sum_keeps_one_square_and_no_more() -> None:
    running = streamed([torch.ones(2, 3), torch.zeros(4, 3)])
    assert running._sums is not None
    assert [part.numel() for part in running._sums] == [3, 3, 9]
    assert {part.dtype for part in running._sums} == {torch.float32}
    place = running._sums[2].data_ptr()
    assert running.result().covariance.data_ptr() == place
