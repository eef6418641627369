from pgolf.progress import Display


def test_plain_lines_off_a_terminal(tmp_path, capsys):
    with Display(tmp_path / "log.txt", events=tmp_path / "train.jsonl", plain_seconds=3600) as display:
        display.say("begun")
        display.status("half", 0.5)
        display.status("a bit more", 0.6)
        display.status("done", 1.0)
        display.event({"kind": "step", "step": 1})
    shown = capsys.readouterr().out.splitlines()
    assert shown == ["begun", "half", "done"] == (tmp_path / "log.txt").read_text().splitlines()
    assert (tmp_path / "train.jsonl").read_text() == '{"kind": "step", "step": 1}\n'


def test_other_ranks_are_silent(tmp_path, capsys):
    with Display(tmp_path / "log.txt", active=False) as display:
        display.say("hello")
        display.status("half", 1.0)
        display.event({"kind": "step"})
    assert capsys.readouterr().out == "" and not (tmp_path / "log.txt").exists()
