"""Only Train Once: DHSPG and HESSO, optimizers that prune zero-invariant groups."""
