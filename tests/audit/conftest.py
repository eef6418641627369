"""A scored run with random weights, which the tests of runs and of records share."""

import dataclasses

import pytest

from pgolf.artifact.code import make_script
from pgolf.artifact.pack import write_artifact
from pgolf.cli.common import CACHE
from pgolf.config import at_scale, load_preset, to_toml
from pgolf.data import default_dataset
from pgolf.folder import RunFolder
from pgolf.model import build_model, submission_state
from pgolf.run import main
from pgolf.summary import ArtifactSize


@pytest.fixture(scope="session")
def dataset():
    return default_dataset(CACHE, vocab_size=1024)


def folder_of(path, preset, dataset, **mixer):
    """A run that is packed, with sharp random weights, so that its distributions are no uniform ones."""
    settings = at_scale(load_preset(preset), "tiny")
    evaluation = dataclasses.replace(
        settings.evaluation,
        window=64,
        stride=32,
        max_tokens=600,
        whole_windows=False,
        adaptation=dataclasses.replace(settings.evaluation.adaptation, chunk_tokens=128),
        mixer=dataclasses.replace(settings.evaluation.mixer, **mixer),
    )
    settings = dataclasses.replace(settings, evaluation=evaluation)
    found = RunFolder(path)
    found.config.write_text(to_toml(settings))
    model = build_model(settings.model, seed=1)
    model.tok_emb.weight.data *= 100
    size = write_artifact(found.artifact, submission_state(model), settings, dataset.tokenizer_path.read_bytes(),
                          code_bytes=len(make_script(settings, "cpu")))  # fmt: skip
    found.update_summary(artifact=ArtifactSize(**size.as_dict(), seconds=1.0))
    return found


@pytest.fixture(scope="session")
def hedge(tmp_path_factory, dataset):
    """#745, with adaptation between chunks."""
    found = folder_of(tmp_path_factory.mktemp("hedge"), "pr745", dataset)
    assert main(["score", str(found.path), "--device", "cpu"]) == 0
    return found
