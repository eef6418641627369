"""Pictures and pages from a run folder's files; knows nothing of torch."""
