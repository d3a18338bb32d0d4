"""Devices, processes and the compute configuration."""
