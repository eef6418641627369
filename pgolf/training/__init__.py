"""Training: the loop, its optimisers and schedules, averages, quantisation-aware terms, checkpoints."""
