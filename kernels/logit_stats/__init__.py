"""Log-sum-exp, entropy and single log-probabilities of softmax(logits / temperature), from one sweep over the logits."""

from pgolf.kernels.logit_stats.op import LogitStats, logit_stats

__all__ = ["LogitStats", "logit_stats"]
