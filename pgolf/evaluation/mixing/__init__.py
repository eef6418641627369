"""Context mixing of a token's bytes: the method of the paq programs, over the tree of all tokens.

tree.py      the vocabulary as binary decisions, bit after bit of a token's bytes
history.py   the bytes so far, and the contexts that they make
memory.py    what each context has seen
logistic.py  logits and probabilities
model.py     what each context has seen, mixed into the probability of a decision
"""
