"""Layers that stay exact when channels or heads leave them."""
