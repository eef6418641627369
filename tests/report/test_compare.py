"""The page of several runs and its figures."""

import json
import math
import re
from statistics import mean, stdev

import numpy as np
import pytest

from pgolf.report.compare import common_predictor, comparable, groups_of, page, paired, scored_groups, tables, verdicts
from pgolf.report.files import read_run
from pgolf.run import main
from pgolf.significance import welch
from tests.report.folders import READINGS, scored, stream, trained, write_scores
from tests.report.html_tree import parse


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds of one configuration, two of another that is better by 0.05, and one that was cut off."""
    folder = tmp_path_factory.mktemp("runs")
    for seed, shift in ((1, 0.0), (2, 0.004), (3, -0.005)):
        scored(folder / f"a{seed}", seed=seed, shift=shift)
    for seed, shift in ((1, -0.05), (2, -0.058)):
        scored(folder / f"b{seed}", seed=seed, shift=shift, rate=0.02)
    trained(folder / "c", rate=0.01, ended=False)
    return [read_run(folder / name) for name in ("a1", "a2", "a3", "b1", "b2", "c")]


def test_groups_are_configurations(runs):
    groups = groups_of(runs)
    assert [(group.letter, len(group.runs)) for group in groups] == [("A", 3), ("B", 2), ("C", 1)]
    assert groups[0].name == "A: quick" and groups[1].name == "B: quick, training.muon_lr 0.02 instead of 0.04"


def test_the_table_of_differences(runs):
    root = parse(page(runs))
    section = next(one for one in root.all("section") if one.attributes.get("id") == "differences")
    rows = [[cell.text for cell in row.all("td") + row.all("th")] for row in section.one("table").all("tr")[1:]]
    assert len(rows) == 4
    for unit, key in (("nats per token", "loss"), ("bits per byte", "bpb")):
        ours, theirs = ([getattr(run.summary.score["ngram_backoff"], key) for run in part] for part in (runs[3:5], runs[:3]))
        t, p = welch(ours, theirs)
        (row,) = (row for row in rows if row[-1] == "B" and unit in row)
        assert row[:7] == [
            "2", unit, f"{mean(ours):.5f}", f"{stdev(ours):.5f}", f"{mean(ours) - mean(theirs):+.5f}", f"{t:.2f}", f"{p:.2g}",
        ]  # fmt: skip
        assert p < 0.05
    assert "one-sided" in section.text


def test_curves_lie_over_each_other(runs):
    root = parse(page(runs))
    figure = root.one("figure", "curves")
    names = [series["n"] for series in json.loads(figure.one("script").text)["s"]]
    assert names == ["a1 (A)", "a2 (A)", "a3 (A)", "b1 (B)", "b2 (B)", "c (C)"]
    for chart in root.all("figure", "chart"):
        assert re.fullmatch(r".+ \(.+\)", chart.one("div", "xlabel").text) and chart.one("h3").text
    assert "in training, or cut off after step 120" in root.text
    dots = [figure for figure in root.all("figure", "dots")][0]
    assert len(dots.all("div", "row")[1].all("b", "dot")) == 5


def test_pairs_of_runs_on_the_same_documents(runs):
    pair = paired(runs[0], runs[3], "ngram_backoff")
    assert pair.change == pytest.approx(-0.05, abs=1e-6) and pair.documents == 6 and pair.better == 1.0
    # the same shift for every byte leaves no spread but that of rounding
    assert pair.error < 1e-5 and pair.p < 1e-6
    assert paired(runs[0], runs[0], "ngram_backoff").p == 1.0
    assert paired(runs[0], runs[5], "ngram_backoff") is None and paired(runs[0], runs[1], "none") is None


def test_the_error_of_a_pair(tmp_path):
    first, second = (scored(tmp_path / name) for name in ("one", "two"))
    tokens, size, nats = stream()
    rng = np.random.default_rng(1)
    gained = rng.random(len(tokens)) * 0.1
    write_scores(second / "score.jsonl", tokens, size, {name: nats[name] - gained for name in READINGS})
    pair = paired(read_run(first), read_run(second), "ngram_backoff")
    ends = np.flatnonzero(tokens == 1) + 1
    bits = np.add.reduceat(gained, [0, *ends[:-1]]) / math.log(2)
    sizes = np.add.reduceat(size, [0, *ends[:-1]])
    rate = bits.sum() / sizes.sum()
    assert pair.change == pytest.approx(-rate, abs=1e-5)
    expected = math.sqrt(6 / 5 * ((bits - rate * sizes) ** 2).sum()) / sizes.sum()
    assert pair.error == pytest.approx(expected, rel=1e-3)


def test_other_text_is_not_paired(tmp_path):
    first, second = (scored(tmp_path / name) for name in ("one", "two"))
    summary = json.loads((second / "summary.json").read_text())
    summary["corpus"]["digest"] = "cd" * 32
    (second / "summary.json").write_text(json.dumps(summary))
    assert paired(read_run(first), read_run(second), "ngram_backoff") is None
    assert "not scored on the same documents" in page([read_run(first), read_run(second)])


def test_runs_with_other_results_share_the_last_code_length(tmp_path):
    first, second = (scored(tmp_path / name) for name in ("one", "two"))
    summary = json.loads((second / "summary.json").read_text())
    summary["score"].pop("ngram_backoff")
    summary["main"] = "adapted"
    (second / "summary.json").write_text(json.dumps(summary))
    runs = [read_run(first), read_run(second)]
    assert common_predictor(runs) == "adapted" and common_predictor([runs[0], runs[0]]) == "ngram_backoff"


def test_the_command(runs, tmp_path, capsys):
    folders = [str(run.path) for run in runs]
    assert main(["compare", *folders, "--out", str(tmp_path / "page.html")]) == 0
    said = capsys.readouterr().out
    assert tables(runs) in said and "page.html" in said and "by document" in said
    assert (tmp_path / "page.html").read_text() == page(runs)
    assert main(["compare", folders[0], "--out", str(tmp_path / "x.html")]) == 2
    assert "two runs or more" in capsys.readouterr().err
    assert main(["compare", folders[0], str(tmp_path), "--out", str(tmp_path / "x.html")]) == 1
    assert "is no run folder" in capsys.readouterr().err and not (tmp_path / "x.html").exists()


def test_nothing_scored_yet(runs):
    text = page([runs[5], runs[5]])
    assert "None of the runs has a score yet" in text and "Fewer than two of the runs are scored" in text
    assert "nothing to compare" in tables([runs[5], runs[0]])


def gave_up(path, **work):
    summary = json.loads((path / "summary.json").read_text())
    summary["scoring"]["gave_up"] = work
    (path / "summary.json").write_text(json.dumps(summary))
    return path


def test_a_verdict_sentence_a_configuration(runs):
    (one,) = verdicts(scored_groups(groups_of(runs)), "ngram_backoff")
    assert one.better is True and one.sentence.startswith("B: quick, training.muon_lr 0.02 instead of 0.04: better, -0.05")
    assert one.sentence in tables(runs)
    first = parse(page(runs)).all("section")[0]
    assert one.sentence in first.text and "good" in [item for li in first.all("li") for item in li.classes]
    (worse,) = verdicts(scored_groups(groups_of(runs[3:5] + runs[:3])), "ngram_backoff")
    assert worse.better is False and "worse, +0.05" in worse.words
    (alone,) = verdicts(scored_groups(groups_of([runs[0], runs[3]])), "ngram_backoff")
    assert alone.better is None and "two runs or more" in alone.words


def test_noise_is_no_verdict(tmp_path):
    shifts = {"a": (0.0, 0.02), "b": (0.001, 0.018)}
    runs = [read_run(scored(tmp_path / f"{name}{i}", seed=i, shift=shift, rate=0.04 if name == "a" else 0.02))
            for name, two in shifts.items() for i, shift in enumerate(two)]  # fmt: skip
    (one,) = verdicts(scored_groups(groups_of(runs)), "ngram_backoff")
    assert one.better is None and one.words.startswith("no difference beyond the spread of the seeds")


def test_no_significance_between_runs_that_gave_up_different_work(tmp_path):
    paths = [scored(tmp_path / f"a{seed}", seed=seed, shift=seed / 1000) for seed in (1, 2)]
    paths += [
        gave_up(scored(tmp_path / f"b{seed}", seed=seed, shift=-0.5, rate=0.02), first_pass_stands=0.9) for seed in (1, 2)
    ]
    runs = [read_run(path) for path in paths]
    groups = scored_groups(groups_of(runs))
    assert comparable(*groups) == "the clock made the runs give up different work"
    (one,) = verdicts(groups, "ngram_backoff")
    assert one.better is None and "not comparable" in one.words and "p =" not in one.words
    said = tables(runs)
    assert said.startswith("a1 gave up for the clock: 25.0% of the stream scored at a coarser stride")
    assert "b1 gave up for the clock: 90.0% of the stream scored by the first pass alone" in said.splitlines()
    assert paired(runs[0], runs[2], "ngram_backoff") is None and paired(runs[0], runs[1], "ngram_backoff") is not None
    assert page(runs).count("the clock made the runs give up different work") == 3  # the verdict, and a row a unit
