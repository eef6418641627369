"""An artifact as something to score with: used by the scoring stage, the codec and the audit alike."""

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from pgolf.artifact.pack import Artifact, read_artifact
from pgolf.config import Settings
from pgolf.model import Network
from pgolf.model.rounding import FakeRounding

if TYPE_CHECKING:
    from pgolf.evaluation.predictors.ngram_backoff import Learnt


class LoadedScorer(NamedTuple):
    model: Network
    ngram_table: "Learnt | None"
    """What the artifact carries for the n-gram back-off to begin with."""
    artifact: Artifact


def load_scorer(artifact: Path | Artifact, settings: Settings, device="cpu") -> LoadedScorer:
    """The network of an artifact (its path, or already read) as these settings score with it."""
    if not isinstance(artifact, Artifact):
        artifact = read_artifact(artifact)
    model = artifact.build_model(device, FakeRounding.left_on(settings.training, device))
    return LoadedScorer(model, ngram_table_of(artifact), artifact)


def ngram_table_of(artifact: Artifact) -> "Learnt | None":
    if not artifact.sections.get("ngram_backoff"):
        return None
    from pgolf.evaluation.predictors.ngram_backoff import learnt_from_bytes

    return learnt_from_bytes(artifact.sections["ngram_backoff"], "the artifact's section ngram_backoff")
