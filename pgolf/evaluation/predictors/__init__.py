"""Ways of scoring: honest ones that a decoder can follow, and the submissions' own for comparison.

A new honest predictor is a file here with a subclass of `Predictor` (base.py), and one line in HONEST_PREDICTORS
(pgolf/config/predictors.py), which gives it its name in evaluation.mixer.honest. The tests of tests/evaluation read that list
too: that it sums to one, depends on the past alone, and gives the same in pieces, token by token, and on any number of ranks.
"""
