"""The SVG pictures of a run, from the same sections as the page."""

from xml.etree import ElementTree

from pgolf.report.files import read_run
from pgolf.report.page import draw
from tests.report.folders import audited, trained

TRAINING = {"loss.svg", "learning_rates.svg", "gradient_norm.svg", "speed.svg"}


def drawn(path):
    paths = draw(read_run(path), path / "pictures")
    for picture in paths:
        ElementTree.parse(picture)
    return {picture.name for picture in paths}


def test_pictures_of_a_run(tmp_path):
    assert drawn(audited(tmp_path / "run")) == TRAINING | {
        "bytes.svg", "clocks.svg", "score_breakdown.svg", "stride.svg", "epochs.svg", "by_position.svg", "by_length.svg",
        "along_the_stream.svg", "by_kind.svg", "weights_ngram_backoff.svg", "weights_temperature.svg", "compression.svg",
        "rounding_error.svg", "entropy.svg", "clip.svg", "outliers.svg", "audit_sums.svg", "audit_noise_1.svg",
    }  # fmt: skip


def test_no_scoring_no_pictures_of_it(tmp_path):
    assert drawn(trained(tmp_path / "run", ended=False)) == TRAINING
