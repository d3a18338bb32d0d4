"""Decode, transform and load images."""
