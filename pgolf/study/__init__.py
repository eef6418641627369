"""Studies: many runs as one experiment.

A study file names a base, arms that change it, and seeds (plan.py). The driver runs the stages of every run on an executor
(driver.py, executors.py) and writes what happened into an append-only ledger (ledger.py), which is the study's whole state:
killed anywhere, the same command goes on. What came out is compared pair by pair (results.py, page.py).
"""
