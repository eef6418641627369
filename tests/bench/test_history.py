"""The page of the branch's switches: what is run, what is compared, what is said of it."""

import json

import pytest

from bench import history
from bench.history import BASE, PACKED, SCORED, SYSTEMS, TRAINED, HistoryError
from pgolf.config import preset_names, to_table, to_toml
from pgolf.summary import Corpus, Summary, write_summary
from tests import summaries

SEEDS = [3, 4, 5]


def flat(settings) -> dict:
    found = {}

    def walk(table, path):
        for key, value in table.items():
            if isinstance(value, dict):
                walk(value, f"{path}{key}.")
            else:
                found[path + key] = value

    walk(to_table(settings), "")
    return found


@pytest.mark.parametrize("row", [*TRAINED, *PACKED, *SCORED], ids=lambda row: row.title)
def test_a_row_changes_what_it_says_and_nothing_else(row):
    base, changed = (flat(history.base_settings(changes, 100, 3)) for changes in ({}, row.changes))
    different = {name for name in base if base[name] != changed[name]}
    assert different == row.changes.keys()
    stages = {"train": ("model", "training", "seed"), "pack": ("artifact",), "score": ("evaluation",)}
    assert all(name.split(".")[0] in stages[row.stage] for name in different)


def test_every_run_is_made_once_and_the_base_before_those_that_borrow(tmp_path):
    jobs = history.jobs_of(tmp_path, 100, SEEDS)
    paths = [job.path for job in jobs]
    assert len(set(paths)) == len(paths)
    runs = {row.run for row in (BASE, *TRAINED, *PACKED, *SCORED)} | SYSTEMS.keys() & set(preset_names())
    assert len(jobs) == len(SEEDS) * len(runs)
    for place, job in enumerate(jobs):
        if job.stage != "train":
            # so far before it that no number of workers can overtake
            assert paths.index(job.base) + len(TRAINED) < place
    compared = {(row.run, row.against) for row in (*TRAINED, *PACKED, *SCORED)}
    assert all(tmp_path / f"{name}-3" in paths for pair in compared for name in pair)


def test_rows_that_share_a_run_share_its_settings():
    by_run: dict[str, set] = {}
    for row in (*TRAINED, *PACKED, *SCORED):
        by_run.setdefault(row.run, set()).add(json.dumps([row.changes, row.stage], sort_keys=True))
    assert all(len(settings) == 1 for settings in by_run.values())


def test_runs_of_other_settings_are_refused_and_finished_ones_kept(tmp_path):
    job = history.jobs_of(tmp_path, 100, SEEDS)[0]
    assert not history.is_done(job)
    job.path.mkdir()
    (job.path / "config.toml").write_text(to_toml(job.settings))
    assert not history.is_done(job)
    write_summary(job.path / "summary.json", Summary(score={"sliding": summaries.score()}))
    assert history.is_done(job)
    other = history.jobs_of(tmp_path, 101, SEEDS)[0]
    with pytest.raises(HistoryError, match="base-3 holds a run of other settings; delete it"):
        history.is_done(other)


@pytest.mark.parametrize(
    ("found", "said"),
    [
        ([-0.010, -0.011, -0.012], "better"),
        ([0.010, 0.011, 0.012], "worse"),
        ([-0.010, -0.001, -0.012], "within noise"),
        ([-0.01, 0.01], "within noise"),
        # the borders of the paired t-test: mean 1, half-width 4.303 sd / sqrt(3)
        ([0.6, 1.0, 1.4], "worse"),
        ([0.59, 1.0, 1.41], "within noise"),
        ([0.0, 0.0, 0.0], "no difference"),
    ],
)
def test_the_verdict_is_a_paired_t_test(found, said):
    assert history.verdict(found) == said


def test_the_page_says_what_the_runs_say(tmp_path):
    figures = {}
    for number, job in enumerate(history.jobs_of(tmp_path, 100, SEEDS)):
        job.path.mkdir()
        results = {}
        for result in ("non_overlapping", "sliding", "adapted", "ngrams", "published"):
            figures[job.path.name, result] = 2 + number / 1000 + len(result) / 100
            results[result] = summaries.score(bpb=figures[job.path.name, result], tokens=8192)
        corpus, train = Corpus("builtin", "0123456789abcdef"), summaries.train(tokens=102_400)
        write_summary(job.path / "summary.json", Summary(parameters=1234, corpus=corpus, train=train, score=results))
    text = history.page(tmp_path, 100, SEEDS)
    for row in (*TRAINED, *PACKED, *SCORED):
        pairs = [(figures[f"{row.run}-{seed}", row.result], figures[f"{row.against}-{seed}", row.other]) for seed in SEEDS]
        mean = sum(a - b for a, b in pairs) / 3
        line = next(line for line in text.splitlines() if line.startswith(f"| {row.title} |"))
        assert f"| {mean:+.4f} |".replace("-", "−") in line
        assert (row.claim or "nothing") in line
    assert "100 steps of" in text and "1,024 tokens, seeds 3, 4, 5" in text
    assert all(f"`{name}`" in text for name in history.systems())
    assert max(map(len, text.splitlines())) <= 160
