"""Fused blocks and native CPU kernels."""
