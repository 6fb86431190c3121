"""What the arms are called in the docs; what has no name stays out of them."""

from __future__ import annotations

NAMES = {
    "sensitive_abrupt": "**calibrated, cut at once** (`calibrate=loader`)",
    "sensitive_abrupt_distil": "calibrated, cut at once, taught by the dense model",
    "torch_pruning_taylor_distil": "Torch-Pruning, Taylor, taught by the dense model",
    "sensitive_sp": "calibrated, smooth",
    "sensitive_sp_sr": "calibrated, smooth, releases",
    "sensitive_tpp": "calibrated, smooth, trainability preserved (TPP)",
    "sensitive_depth": "calibrated, cut at once, a quarter of the branches leaves whole",
    "ridge_abrupt": "calibrated, cut at once, ranked by variance",
    "variance_abrupt": "cut at once, ranked by variance, nothing taken over",
    "ridge_handover": "ranked by variance, smooth, releases, handed over (an ablation)",
    "ridge_sp_sr": "ranked by variance, smooth, releases",
    "ridge_abrupt_distil": "ranked by variance, cut at once, taught by the dense model",
    "ridge_sp_sr_distil": "ranked by variance, smooth, releases, taught by the dense model",
    "sp_sr": "smooth, releases, by magnitude",
    "abrupt": "cut at once, by magnitude",
    "torch_pruning_taylor": "Torch-Pruning, Taylor on the same data",
    "torch_pruning": "Torch-Pruning, group norm",
    "last_layers": "four of six layers dropped (a third of the MACs)",
    "otov2": "OTOv2 by itself",
    "otov2_divisible": "OTOv2 by itself, multiples of eight",
    "random_selection": "smooth, releases, drawn at random",
    "random_release": "smooth, by magnitude, as many MACs released at random",
    "depth": "ranked by variance, a quarter of the branches leaves whole",
    "scratch_extra": "the same shape from scratch, as many steps",
    "scratch_extra_distil": "the same shape from scratch, as many steps, taught by the dense model",
    "scratch_total": "the same shape from scratch, equal compute in all",
    "sensitive_early": "calibrated, cut after 100 steps, two loops, equal compute",
    "sensitive_within": "**calibrated, cut at step 100 of the fine-tuning**, equal compute",
    "sensitive_within_15": "calibrated, cut at step 15 of the fine-tuning, equal compute",
    "sensitive_within_300": "calibrated, cut at step 300 of the fine-tuning, equal compute",
    "sensitive_within_sp_sr": "calibrated, smooth from step 50 to 100, releases, equal compute",
    "sensitive_within_rounds": "calibrated, cut in four rounds from step 25 to 100, equal compute",
    "sensitive_within_depth": "calibrated, cut at step 100, a quarter of the branches leaves whole",
    "torch_pruning_taylor_early": "Torch-Pruning, Taylor, cut after 100 steps, equal compute",
    "dense_on": "not pruned, trained on for as long",
}

_AT_HALF = {"last_layers": "three of six layers dropped"}


def called(arm: str, budget: float) -> str | None:
    """What an arm is called at a budget of MACs; None if it has no name.

    Args:
        arm: As in the plan.
        budget: Share that stays.
    """
    return NAMES.get(arm) if budget < 0.5 else _AT_HALF.get(arm, NAMES.get(arm))
