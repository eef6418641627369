"""The sections of one run's page, each from what the run folder holds; where something is missing, they say so."""
