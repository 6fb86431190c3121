"""Beside a training loop: arguments, ownership, counted steps, save and resume."""
