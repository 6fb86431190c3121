"""Removing structures physically, and proving that nothing else changed."""
