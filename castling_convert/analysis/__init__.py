"""Measurements: multiply-accumulates, accuracy."""
