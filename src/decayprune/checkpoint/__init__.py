"""Portable artefacts: weights and structure in files, and files that a crash cannot tear."""
