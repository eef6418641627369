"""Ways of scoring, one class a file: honest ones that a decoder could follow, and the submissions' own for comparison.

A new honest one is a subclass of `Predictor` (base.py) with a name, `score` for spans, and `predict` and `observe` for single
tokens; a line in `readers_of` (pgolf/evaluation/evaluate.py) gives it a name in the settings, and a line in `honest()` of
tests/evaluation/test_predictors.py has it checked: that it sums to one, knows the past alone, and says the same in pieces,
token by token, and on any number of ranks. If it wants to know the model's opinion of particular symbols, `look` names
them before the model is asked.
"""
