"""Scoring: validation tokens behind a guard, windows, readings, and the bits per byte they add up to."""
