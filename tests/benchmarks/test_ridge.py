"""Ridge compensation against least squares on the data themselves."""

from __future__ import annotations

import pytest
import torch
from benchmarks.pretrained.ridge import Moments, importance, stand_in


@pytest.fixture
def vectors() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixed = torch.randn(300, 9, generator=generator, dtype=torch.float64)
    return mixed @ torch.randn(9, 9, generator=generator, dtype=torch.float64) + 3


def gathered(vectors: torch.Tensor) -> Moments:
    moments = Moments(vectors.shape[1])
    for part in vectors.split(37):
        moments.add(part)
    return moments


def test_moments_streamed_are_those_of_all_vectors_at_once(vectors: torch.Tensor) -> None:
    moments = gathered(vectors)
    torch.testing.assert_close(moments.mean, vectors.mean(0))
    torch.testing.assert_close(moments.covariance, vectors.T.cov(correction=0))
    torch.testing.assert_close(moments.variance, vectors.var(0, correction=0))


def test_stand_in_is_ridge_regression_on_the_data(vectors: torch.Tensor) -> None:
    staying, leaving = torch.tensor([0, 2, 3, 7, 8]), torch.tensor([1, 4, 5, 6])
    found = stand_in(gathered(vectors), staying, leaving, ridge=0.05)
    # The slow twin: centred data, and a row per penalised weight.
    kept = vectors[:, staying] - vectors[:, staying].mean(0)
    gone = vectors[:, leaving] - vectors[:, leaving].mean(0)
    penalty = 0.05 * kept.square().mean(0).mean() * len(vectors)
    rows = torch.cat([kept, penalty.sqrt() * torch.eye(5, dtype=torch.float64)])
    wanted = torch.cat([gone, torch.zeros(5, 4, dtype=torch.float64)])
    solved = torch.linalg.lstsq(rows, wanted).solution.T
    torch.testing.assert_close(found.weights, solved)
    expected = vectors[:, leaving].mean(0) - solved @ vectors[:, staying].mean(0)
    torch.testing.assert_close(found.offset, expected)


def test_inputs_that_depend_on_others_leave_without_a_trace(vectors: torch.Tensor) -> None:
    vectors[:, 4] = 2 * vectors[:, 0] - vectors[:, 1] + 5
    staying, leaving = torch.tensor([0, 1, 2]), torch.tensor([4])
    weight = torch.randn(6, 9, dtype=torch.float64)
    found = stand_in(gathered(vectors), staying, leaving, ridge=1e-12)
    added, bias = found.folded(weight[:, leaving])
    before = vectors[:, [0, 1, 2, 4]] @ weight[:, [0, 1, 2, 4]].T
    after = vectors[:, staying] @ (weight[:, staying] + added).T + bias
    torch.testing.assert_close(after, before, rtol=1e-6, atol=1e-6)


def test_what_is_handed_over_in_shares_adds_up(vectors: torch.Tensor) -> None:
    staying, leaving = torch.tensor([0, 1, 2, 3]), torch.tensor([4, 5])
    found = stand_in(gathered(vectors), staying, leaving)
    columns = torch.randn(6, 2, dtype=torch.float64)
    whole, bias = found.folded(columns)
    shares = [torch.tensor([0.25, 1.0]), torch.tensor([0.75, 0.0])]
    parts = [found.folded(columns, share) for share in shares]
    torch.testing.assert_close(sum(weight for weight, _ in parts), whole)
    torch.testing.assert_close(sum(offset for _, offset in parts), bias)


def test_importance_is_the_error_of_replacing_an_input_by_its_mean(vectors: torch.Tensor) -> None:
    weight = torch.randn(6, 9, dtype=torch.float64)
    scores = importance(gathered(vectors).variance, weight)
    for i in range(9):
        frozen = vectors.clone()
        frozen[:, i] = vectors[:, i].mean()
        error = ((vectors - frozen) @ weight.T).square().sum(1).mean()
        torch.testing.assert_close(scores[i], error)
