"""Monitors over tokens: calibrated on a run, kept in a small file, tried on another run."""
