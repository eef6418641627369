"""Learning while scoring: from chunks of the stream, or document by document. Only committed tokens are learnt from."""

from pgolf.evaluation.adaptation.chunks import ChunkAdapter
from pgolf.evaluation.adaptation.lora import LoraScorer, batches_of, score_documents

__all__ = ["ChunkAdapter", "LoraScorer", "batches_of", "score_documents"]
