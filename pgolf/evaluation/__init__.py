"""Scoring: validation tokens behind a guard, windows, predictors, and the bits per byte they add up to."""
