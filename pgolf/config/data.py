"""[data]: which text, and in which order."""

from dataclasses import dataclass
from typing import Literal

from pgolf.config.checks import at_least


@dataclass(frozen=True)
class DataSettings:
    path: str = ""
    """Folder with shards (challenge format). Empty: the built-in corpus, made from this Python's own documentation."""
    tokenizer: str = ""
    """SentencePiece model the shards were made with. Empty: the one in the data folder."""
    vocabulary: Literal["dataset", "preset"] = "dataset"
    """dataset: model.vocab_size follows the data in path, unless it is given. preset: data of another one are refused."""
    loader: Literal["sequential", "coprime"] = "sequential"
    """sequential: one stream through the sorted shards. coprime: blocks of many shards at coprime strides."""
    held_out_tokens: int = 0
    """Tokens at the end of the training text (at most a tenth of its last shard) that training leaves out; the weights of
    the honest n-gram back-off are learnt on them when the run is packed. 0: none, and the n-gram back-off starts without."""

    def validate(self) -> None:
        at_least(0, "data", self, "held_out_tokens")
