"""Learning while scoring: from chunks of the stream, or document by document. Only committed tokens are learnt from."""

from pgolf.evaluation.adaptation.chunks import ChunkAdapter

__all__ = ["ChunkAdapter"]
