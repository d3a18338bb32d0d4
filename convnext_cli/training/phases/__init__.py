"""Phases before and after the training loop."""
