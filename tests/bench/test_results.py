"""Gates, files, tables and pictures of the bench."""

import dataclasses
import json
from xml.etree import ElementTree

import pytest

from bench import picture, table
from bench.results import Gate, Line, Results, file_of, line_of, peer_gate, regression_gate
from bench.timing import Samples, Spread


def steady(value, noise=0.0):
    return Spread(value, value * (1 - noise), value * (1 + noise))


@pytest.mark.parametrize("lost, noise, holds", [(0.0, 0.0, True), (0.09, 0.0, True), (0.11, 0.0, False), (0.11, 0.02, True)])
def test_a_regression_is_more_than_a_tenth_beyond_the_noise(lost, noise, holds):
    assert regression_gate(steady(1 - lost, noise), steady(1.0)).holds == holds


def test_faster_is_no_regression():
    assert regression_gate(steady(3.0), steady(1.0)).holds


@pytest.mark.parametrize(
    "ratio, holds", [(Spread(2.0, 1.9, 2.1), True), (Spread(1.4, 1.3, 1.45), False), (Spread(1.4, 1.2, 1.6), True)]
)
def test_a_peer_must_be_beaten_within_the_noise(ratio, holds):
    assert peer_gate("peer", ratio, 1.5).holds == holds


def samples(ours, peer):
    return Samples({"ours": [ours] * 5, "peer": [peer] * 5})


def test_pace_is_a_ratio_on_a_cpu_and_absolute_on_a_gpu():
    """A CPU that is busy slows both; a GPU is compared with itself, whatever the peer has become."""
    calm, busy = (line_of("x", samples(*times), on_gpu=False) for times in ((1.0, 2.0), (3.0, 6.0)))
    assert calm.pace == busy.pace == Spread(2.0, 2.0, 2.0)
    assert line_of("x", samples(0.5, 2.0), on_gpu=True).pace.median == 2.0


@pytest.fixture
def results():
    found = Results("Some Device, 2 threads", {"python": "3.11"}, {"copy": 1e9})
    absent = {"Liger-Kernel": "not installed"}
    line = line_of("operator, forward", samples(1e-3, 2e-3), on_gpu=False, floor=5e-4, absent=absent)
    line.gates = [peer_gate("peer", line.peers["peer"].ratio, 1.0), Gate("last committed", False, "-20 % since then")]
    line.figures = {"tokens/s": 1234567.0, "where the time goes": "forward 30 %"}
    found.add(line)
    found.add(Line("coding", steady(1000.0), unit="B"))
    for rows in (1, 4):
        sweep = line_of(f"packed, {rows} rows", samples(1e-5 * rows, 2e-5), on_gpu=False, figures={"crossover rows": rows})
        found.add(sweep)
    return found


def test_results_survive_their_file(results, tmp_path):
    path = file_of(results.device, tmp_path)
    assert path.name == "some-device-2-threads.json"
    results.write(path)
    assert Results.read(path) == results
    assert Results.committed(results.device, tmp_path) == results
    assert Results.committed("another device", tmp_path) is None


@pytest.mark.parametrize("damage", [lambda t: t[: len(t) // 2], lambda t: "[]", lambda t: t.replace('"ours"', '"theirs"')])
def test_a_damaged_file_is_one_line(results, tmp_path, damage):
    path = tmp_path / "x.json"
    results.write(path)
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match="holds no results of the bench"):
        Results.read(path)


def test_parts_are_laid_over_an_older_run_of_the_same_versions(results):
    lines = {"coding": Line("coding", steady(900.0), unit="B")}
    newer = dataclasses.replace(results, lines=lines, dates={"coding": "2027-01-01"})
    merged = newer.laid_over(results)
    assert set(merged.lines) == set(results.lines) and merged.lines["coding"].ours.median == 900
    assert newer.laid_over(dataclasses.replace(results, versions={"python": "3.12"})) is newer
    assert newer.laid_over(None) is newer


def test_the_table_says_everything_once(results):
    text = table.text(results)
    for wanted in ("1 ms", "2 ms", "2.00", "50%", "Liger-Kernel", "not installed", "FAILS", "holds", "1,000 B"):
        assert wanted in text, wanted
    assert "1,234,567" in text and text.count("operator, forward") == 1
    short = table.markdown(results)
    assert "| operator, forward | 1 ms | peer | 2.00 (2.00 - 2.00) | 50% | fails last committed: -20 % since then |" in short


def test_the_commands_print_and_draw_from_the_file_alone(results, tmp_path, capsys, monkeypatch):
    path = tmp_path / "x.json"
    results.write(path)
    monkeypatch.setattr("sys.argv", ["table", str(path)])
    assert table.main() == 0 and "operator, forward" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["picture", str(path)])
    assert picture.main() == 0
    drawn = ElementTree.parse(tmp_path / "x.svg").getroot()
    assert len(drawn.findall(".//{*}circle")) == sum(len(line.peers) for line in results.lines.values()) + 2  # and two keys
    path.write_text(json.dumps({"lines": {}}))
    monkeypatch.setattr("sys.argv", ["table", str(path)])
    assert table.main() == 1 and "error:" in capsys.readouterr().err


def test_the_crossover_is_drawn_in_the_order_of_rows(results):
    assert [rows for rows, _, _ in picture.sweep(results)] == [1, 4]
