"""Pretrain the built-in weights."""
