"""Fused ConvNeXt blocks and native CPU kernels."""
