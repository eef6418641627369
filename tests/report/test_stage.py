"""The stages report, report --watch and show, on a folder that needs no run."""

import http.client
import json
import threading

import pytest

from pgolf.report.watch import WatchError, server_of
from pgolf.run import main
from tests.report.folders import audited, trained
from tests.report.html_tree import parse


def test_report_writes_the_page_and_the_pictures(tmp_path, capsys):
    path = audited(tmp_path / "run")
    assert main(["report", str(path)]) == 0
    said = capsys.readouterr().out
    assert f"report {path / 'report.html'}" in said and said.count("picture ") == 22
    assert parse((path / "report.html").read_text()).one("span", "score").text
    assert not [one.name for one in path.iterdir() if one.name.startswith(".")]


def test_show_prints_what_the_page_shows(tmp_path, capsys):
    path = audited(tmp_path / "run")
    assert main(["show", str(path)]) == 0
    said = capsys.readouterr().out
    summary = json.loads((path / "summary.json").read_text())
    for words in (
        f"{summary['score']['ngram_backoff']['bpb']:.4f}", "30.0 of 120 s", "knows no future", "step 120",
        "gain in bits per byte",
        "bits per byte, tokens from", "documents of tokens from", "word start", "n-gram back-off: order 2", "brotli -11",
        "25.0% of the stream scored at a coarser stride", "attn.c_q.weight",
    ):  # fmt: skip
        assert words in said, words
    assert all(line == line.rstrip() for line in said.splitlines())


def test_show_of_a_run_cut_off(tmp_path, capsys):
    assert main(["show", str(trained(tmp_path / "run", ended=False))]) == 0
    said = capsys.readouterr().out
    assert "step 120" in said and "not run" in said and "gain" not in said


@pytest.fixture
def served(tmp_path):
    path = trained(tmp_path / "run", steps=10, ended=False)
    with server_of(path, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield path, server.server_address[1]
        server.shutdown()
        thread.join()


def get(port, path="/", host=None):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("GET", path, headers={"Host": host or f"127.0.0.1:{port}"})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, text


def test_a_running_job_is_served_and_refreshes(served):
    path, port = served
    status, text = get(port)
    root = parse(text)
    assert status == 200 and "10 steps" in root.text
    assert root.one("html").attributes["data-refresh"] == "/state"
    policy = next(meta for meta in root.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "connect-src 'self'" in policy.attributes["content"] and get(port)[1] == text
    before = get(port, "/state")[1]
    assert get(port, "/state")[1] == before
    trained(path, steps=12, ended=False)
    assert get(port, "/state")[1] != before and "12 steps" in get(port)[1]


def test_nothing_but_the_page_is_served(served):
    path, port = served
    for wrong in ("/config.toml", "/../config.toml", "/?x"):
        assert get(port, wrong)[0] == 404
    assert get(port, host=f"evil.example:{port}")[0] == 403 and get(port, "/state", host="evil.example")[0] == 403
    assert get(port, host=f"localhost:{port}")[0] == 200
    with pytest.raises(WatchError, match="give another --port"):
        server_of(path, port)


def test_a_port_that_is_none(tmp_path, capsys):
    path = trained(tmp_path / "run", ended=False)
    assert main(["report", str(path), "--watch", "--port", "70000"]) == 1
    assert "port 70000 cannot be served" in capsys.readouterr().err


def test_validation_is_the_loss_of_the_first_sequences(tmp_path):
    """Of whole sequences only, whatever the stream's length, and only where it is asked for."""
    import dataclasses
    from types import SimpleNamespace

    import numpy as np
    import torch

    from pgolf.cli.train import validation_of
    from pgolf.config import Settings

    tokens = np.random.default_rng(0).integers(0, 11, 75).astype(np.uint16)
    dataset = SimpleNamespace(val_tokens=lambda: tokens)
    table = torch.randn(11, 11, generator=torch.Generator().manual_seed(0))
    model = SimpleNamespace(logits=lambda inputs: table[inputs])
    training = dataclasses.replace(Settings().training, sequence_length=20, validate_every=5)
    settings = dataclasses.replace(Settings(), training=training)
    said = validation_of(settings, dataset, torch.device("cpu"))(model)
    ids = torch.from_numpy(tokens.astype(np.int64))
    expected = torch.nn.functional.cross_entropy(table[ids[:60]], ids[1:61])
    assert said["loss"] == pytest.approx(float(expected), rel=1e-6)
    never = dataclasses.replace(settings, training=dataclasses.replace(training, validate_every=0))
    assert validation_of(never, dataset, torch.device("cpu")) is None
