"""A fixed sample of the field zoo, and that its checks can fail."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from benchmarks.field.families import FAMILIES, MODELS
from benchmarks.field.measure import BUDGET, Draw, measure
from benchmarks.field.page import document, page
from torch import Tensor, nn

SAMPLE = (
    "own_gan_generator",
    "own_edsr",
    "own_rrdb",
    "own_vae",
    "own_siamese",
    "own_film",
    "own_hypernetwork",
    "own_gan_discriminator",
    "own_tcn",
    "own_wavenet",
    "lraspp_mobilenet_v3_large",
)


# The old weight norm is what the network of that name is about.
@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated:FutureWarning")
@pytest.mark.parametrize("name", SAMPLE)
def test_is_pruned_to_the_budget_and_stays_what_it_was(name: str) -> None:
    row = measure(MODELS[name])
    assert row["outcome"] == "pruned", row["words"]
    assert row["macs_after"] <= BUDGET * row["macs_before"]
    assert row["error_evaluation"] < 1e-4


class Narrow(nn.Module):
    """Computes something else on other inputs than those that a pruner has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.a(x))
        return self.b(y) if x.mean() > 0 else self.b(y) * y.shape[1]


def _narrow() -> tuple[nn.Module, Draw]:
    signs = iter([1.0, -1.0])
    return Narrow(), lambda: next(signs) * torch.rand(2, 4)


def _cannot_run() -> tuple[nn.Module, Draw]:
    return nn.Linear(4, 8), lambda: torch.rand(2, 5)


def _single() -> tuple[nn.Module, Draw]:
    return nn.Linear(4, 8), lambda: torch.rand(2, 4)


@pytest.mark.parametrize(
    ("make", "outcome"),
    [(_narrow, "compared"), (_cannot_run, "made"), (_single, "refused")],
)
def test_what_goes_wrong_is_told_by_its_step(
    make: Callable[[], tuple[nn.Module, Draw]], outcome: str
) -> None:
    row = measure(make)
    assert row["outcome"] == outcome
    assert row["words"]


def test_the_page_counts_what_was_found_by_family() -> None:
    refused = {"outcome": "refused", "words": "Nothing | at all", "params_before": 5}
    found = document({"own_edsr": measure(MODELS["own_edsr"]), "own_vae": refused})
    assert list(found["families"]) == list(FAMILIES)
    text = page(found)
    assert "| own nets | 2 | 1 | 1 | 0 |" in text
    assert "| **all** | **2** | **1** | **1** | **0** |" in text
    assert "| own_edsr | 0.1" in text
    assert "**refused**: Nothing \\| at all |" in text
