import dataclasses

import pytest

from pgolf.config import ArtifactSettings, Settings
from pgolf.model import submission_state
from tests.model.common import SMALL, random_model

TOKENIZER = bytes(range(256)) * 20


@pytest.fixture(scope="session")
def model():
    return random_model(SMALL, seed=1)


@pytest.fixture(scope="session")
def state(model):
    return submission_state(model)


def settings_with(**artifact) -> Settings:
    chosen = {"small_tensor": 500, "scale_floor": False, "compressor": "zstd", **artifact}
    return dataclasses.replace(Settings(), model=SMALL, artifact=ArtifactSettings(**chosen))
