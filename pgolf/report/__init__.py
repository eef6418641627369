"""Pictures and pages from a run folder's files, without torch."""
