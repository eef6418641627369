"""An artifact as something to score with: used by the scoring stage, the codec and the audit alike."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgolf.artifact.pack import Artifact, read_artifact
from pgolf.config import Settings
from pgolf.data import load_tokenizer
from pgolf.model import Network
from pgolf.model.rounding import FakeRounding

if TYPE_CHECKING:
    from pgolf.evaluation.predictors.ngram_backoff import Learnt
    from pgolf.evaluation.primer import Primer


class LoadedScorer(NamedTuple):
    model: Network
    ngram_table: "Learnt | None"
    """What the artifact carries for the n-gram back-off to begin with."""
    artifact: Artifact
    primer: "Primer | None" = None
    """What it carries for the context mixing to read first, and the bytes of its tokens."""


def load_scorer(artifact: Path | Artifact, settings: Settings, device="cpu") -> LoadedScorer:
    """The network of an artifact (its path, or already read) as these settings score with it."""
    if not isinstance(artifact, Artifact):
        artifact = read_artifact(artifact)
    model = artifact.build_model(device, FakeRounding.left_on(settings.training, device))
    return LoadedScorer(model, ngram_table_of(artifact), artifact, primer_of(artifact, settings))


def ngram_table_of(artifact: Artifact) -> "Learnt | None":
    if not artifact.sections.get("ngram_backoff"):
        return None
    from pgolf.evaluation.predictors.ngram_backoff import learnt_from_bytes

    return learnt_from_bytes(artifact.sections["ngram_backoff"], "the artifact's section ngram_backoff")


def primer_of(artifact: Artifact, settings: Settings) -> "Primer | None":
    if "context_mixing" not in settings.evaluation.mixer.honest:
        return None
    from pgolf.evaluation.primer import SECTION, Primer, primer_from_bytes

    pieces, vocab = load_tokenizer("the artifact's tokenizer", artifact.tokenizer).pieces, artifact.model_settings.vocab_size
    # a network may have more entries than its tokenizer: tokens without bytes
    whole = [piece or b"" for piece in pieces] + [b""] * (vocab - len(pieces))
    return Primer(whole, primer_from_bytes(artifact.sections.get(SECTION, b""), vocab, f"the artifact's section {SECTION}"))
