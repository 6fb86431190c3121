"""DepGraph: any Torch-Pruning pruner, made smooth and self-correcting."""
