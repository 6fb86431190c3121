"""Adapters to frameworks that own the training loop; each file imports its own framework alone."""
