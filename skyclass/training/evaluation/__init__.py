"""Metrics, intervals, calibration: how good a model is."""
