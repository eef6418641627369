"""report.html, read as a browser would: its charts, what is missing, and that no text can become markup."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

import pgolf.report
from pgolf.report.files import read_run
from pgolf.report.page import page
from pgolf.report.sections import SECTIONS
from tests.report.folders import audited, packed, scored, stream, trained, write_scores, write_words
from tests.report.html_tree import Element, parse

HERE = Path(pgolf.report.__file__).parent


def read(path) -> Element:
    text = page(read_run(path))
    assert len(text.encode()) < 3_000_000
    return parse(text)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return read(audited(tmp_path_factory.mktemp("runs") / "whole"))


def section(root: Element, anchor: str) -> Element:
    return next(one for one in root.all("section") if one.attributes.get("id") == anchor)


def charts(root: Element) -> dict[str, Element]:
    return {figure.one("h3").text: figure for figure in root.all("figure", "chart")}


# ---- what is on it


def test_learning_rates_are_those_of_the_event_log(tmp_path):
    path = trained(tmp_path / "run")
    text = (path / "train.jsonl").read_text().replace("token (adamw)", "token (another one)")
    (path / "train.jsonl").write_text(text)
    legend = charts(read(path))["Learning rates"].text
    assert all(name in legend for name in ("matrix (muon)", "token (another one)", "scalar (adamw), projection (adamw)"))


def test_the_sections_and_the_way_to_them(whole):
    anchors = {one.attributes["id"] for one in whole.all("section") if "id" in one.attributes}
    assert anchors >= {one.anchor for one in SECTIONS}
    links = [link.attributes["href"] for link in whole.one("nav").all("a")]
    assert {link.removeprefix("#") for link in links} <= anchors
    assert whole.one("title").text.startswith("whole")


def test_the_head_of_a_run(whole):
    head = section(whole, "result")
    _, size, nats = stream()
    bpb = nats["ngram_backoff"].sum() / math.log(2) / size.sum()
    assert head.one("span", "score").text == f"{bpb:.4f}"
    sentence = head.one("p", "sentence").text
    assert f"{int(size.sum()):,} bytes" in sentence and f"{100 * bpb / 8:.1f} %" in sentence
    assert "80,640 tokens came back whole: 1,000 bits claimed, 1,010 bits in the stream" in section(whole, "audit").text
    assert head.one("p", "words").text.startswith("Legal") and "2 of 3 tests passed" in head.text
    facts = head.one("dl").text
    assert "quick" in facts and "builtin" in facts and "a CPU" in facts


def test_every_chart_has_title_axes_and_units(whole):
    found = charts(whole)
    wanted = {
        "Training loss", "Learning rates", "Gradient norm", "Speed", "Along the stream", "By kind of token",
        "By position in the document", "By length of the document", "Rounding error",
        "Weights along the stream: n-gram back-off",
        "Entropy of the codes", "Clip", "Outliers",
        "The same text by general compressors", "Bytes of the artifact", "The clocks",
        "Score breakdown: every predictor over the one it builds on", "Stride, span by span",
        "Sum of all probabilities", "Cost of uniform noise",
    }  # fmt: skip
    assert wanted <= found.keys()
    for title, figure in found.items():
        if "excerpt" in figure.classes:
            continue
        below = figure.one("div", "xlabel").text
        assert re.fullmatch(r".+ \(.+\)", below), (title, below)
        assert len(figure.one("div", "xticks").all("span")) >= 2, title
        if "curves" in figure.classes:
            assert re.fullmatch(r".+ \(.+\)", figure.one("div", "ylabel").text), title
            assert len(figure.one("div", "yticks").all("span")) >= 2, title
            names = [item.one("span").text for item in figure.one("ul", "legend").all("li")]
            told = json.loads(figure.one("script").text)
            assert names == [series["n"] for series in told["s"]] and all(names)
            assert len([p for p in figure.one("div", "area").all("path") if "net" not in p.classes]) >= len(names)
        else:
            assert all(row.one("div", "name").text for row in figure.all("div", "row")[1:-1]), title


def test_the_audit_by_test_and_result(whole):
    found = section(whole, "audit")
    rows = [[cell.text for cell in row.all("th") + row.all("td")] for row in found.one("table").all("tr")]
    assert rows == [
        ["test", "n-gram back-off", "all", "published (does not count)"],
        ["sums to one", "✓ passed", "", "✗ failed"],
        ["knows no future", "✓ passed", "", ""],
        ["decodes", "", "– not applicable", ""],
    ]
    assert "What failed" not in found.text and len(found.one("details").all("tr")) == 5


def test_a_failed_audit_says_what_failed(tmp_path):
    found = section(read(audited(tmp_path / "run", passed=False)), "audit")
    assert "What failed" in found.text and "At least one test failed" in found.text
    assert [row.one("th").text for row in found.one("table").all("tr")] == ["test", "knows no future"]


def test_both_horizontal_axes_of_training(whole):
    training = section(whole, "training")
    panels = training.all("div", "panel")
    assert [len(panel.all("figure")) for panel in panels] == [4, 4]
    labels = [panel.one("div", "xlabel").text for panel in panels]
    assert labels == ["trained on (tokens)", "training clock (s)"]
    last = [json.loads(panel.one("script").text)["x"]["s"][1] for panel in panels]
    assert last[0] > 120 * 2048 > 1000 > last[1] > 60
    assert "quantisation-aware, from step 60" in panels[0].text
    loss = json.loads(panels[0].one("script").text)["s"]
    assert [series["n"] for series in loss] == ["each step", "smoothed", "validation"] and loss[2]["y"] == [3.3]


def test_the_score_breakdown_says_gains_and_spread(whole):
    breakdown = charts(whole)["Score breakdown: every predictor over the one it builds on"]
    rows = {row.one("div", "name").text: row for row in breakdown.all("div", "row")[1:-1]}
    assert list(rows) == [
        "non-overlapping windows",
        "sliding windows",
        "adapted",
        "n-gram back-off",
        "published (as published; no code length)",
    ]
    assert re.search(r"\d\.\d{4}, -0\.\d{4} ± 0\.0100 on adapted; better in \d+% of 6 documents", rows["n-gram back-off"].text)
    assert "strong" in rows["n-gram back-off"].classes and "quiet" in rows["published (as published; no code length)"].classes


def test_kinds_of_tokens(whole):
    rows = charts(whole)["By kind of token"].all("div", "row")[1:-1]
    tokens, size, nats = stream()
    digits = tokens % 7 == 3
    bits, share = (
        nats["ngram_backoff"][digits].sum() / math.log(2),
        nats["ngram_backoff"][digits].sum() / nats["ngram_backoff"].sum(),
    )
    (row,) = (row for row in rows if row.one("div", "name").text == "digit")
    says = f"{bits / digits.sum():.2f} bits, {bits / size[digits].sum():.2f} a byte · {share:.1%} of all bits"
    assert row.one("div", "says").text.startswith(says)


def test_the_text_itself(whole):
    figures = [figure for figure in whole.all("figure") if "excerpt" in figure.classes]
    assert len(figures) == 2
    tokens, _, nats = stream()
    told = json.loads(figures[0].one("script").text)
    marks = figures[0].one("div", "text").all("i")
    assert len(marks) == 20 == len(told["t"]) and told["t"] == tokens[800:820].tolist()
    ngram_backoff = nats["ngram_backoff"][800:820] / math.log(2)
    np.testing.assert_allclose(told["b"][told["m"]], ngram_backoff, atol=0.006)
    for mark, bits in zip(marks, ngram_backoff, strict=True):
        shade = re.search(r"--a:(\d+)", mark.attributes["style"])
        assert int(shade[1]) == min(round(100 * bits / 12), 100)
    assert set(told["g"]) == {"adapted", "n-gram back-off"} and told["p"]["9"] == " w9↵"
    assert "tokens 48 to 67 of 1,200" in figures[0].text


def test_compression_shows_whatever_was_run(whole):
    rows = charts(whole)["The same text by general compressors"].all("div", "row")[1:-1]
    assert [row.one("div", "name").text for row in rows] == [
        "pgolf: n-gram back-off", "bzip2 -9", "xz -9e", "brotli -11", "zstd --ultra -22",
    ]  # fmt: skip
    assert "More than the text itself takes: with the artifact, 99,000 bytes (52.60 bits per byte)." in whole.text


def test_quantisation_by_matrix(whole):
    found = section(whole, "quantisation")
    assert "3 matrices with 6,144 weights" in found.text
    assert len(found.one("table").all("tr")) == 4
    rows = charts(found)["Rounding error"].all("div", "row")[1:-1]
    assert [row.one("div", "name").text for row in rows] == ["attn.c_q", "tok_emb"] and len(rows[0].all("b", "dot")) == 2


# ---- keyboard, colours, network


def test_the_keyboard_reaches_every_control(whole):
    for element in whole.all():
        index = element.attributes.get("tabindex")
        assert index in (None, "0"), element
    for figure in whole.all("figure", "curves"):
        assert figure.attributes["tabindex"] == "0" and figure.attributes["aria-label"]
    for box in [*whole.all("div", "text"), *whole.all("div", "wide")]:
        assert box.attributes["tabindex"] == "0" and box.attributes["aria-label"]
    groups = {}
    for fieldset in whole.all("fieldset"):
        assert fieldset.one("legend").text
        inputs = fieldset.all("input")
        assert [one.attributes.get("type") for one in inputs] == ["radio"] * len(inputs) and len(inputs) > 1
        assert sum("checked" in one.attributes for one in inputs) == 1
        assert len(fieldset.all("label")) == len(inputs) and all(label.text for label in fieldset.all("label"))
        (name,) = {one.attributes["name"] for one in inputs}
        groups[name] = groups.get(name, 0) + 1
    assert set(groups.values()) == {1}
    inside = sum(len(fieldset.all("input")) for fieldset in whole.all("fieldset"))
    assert inside == len(whole.all("input")) and not whole.all("button")
    style = (HERE / "page.css").read_text()
    assert ":focus-visible" in style and "outline: none" not in style


def test_nothing_leaves_the_page(whole, tmp_path):
    for element in whole.all():
        for name, value in element.attributes.items():
            assert name not in ("src", "srcset", "action", "data", "poster"), element
            if name == "href":
                assert value.startswith(("#", "data:,"))
    style = whole.one("style").text
    assert "url(" not in style and "@import" not in style
    policy = next(meta for meta in whole.all("meta") if meta.attributes.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy.attributes["content"] and "connect-src" not in policy.attributes["content"]
    assert not re.search(r"https?://", page(read_run(audited(tmp_path / "run"))))


# Machado, Oliveira and Fernandes (2009), at full severity, on linear RGB
VISIONS = {
    "full": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear(code):
    values = np.array([int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(rgb):
    """Where equal distances look about equally far."""
    cones = [[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
             [0.0883024619, 0.2817188376, 0.6299787005]]  # fmt: skip
    axes = [[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
            [0.0259040371, 0.7827717662, -0.8086757660]]  # fmt: skip
    return np.array(axes) @ np.cbrt(np.array(cones) @ rgb)


def colours(theme):
    found = dict(re.findall(r"--(\w+): light-dark\((#\w{6}, #\w{6})\)", (HERE / "page.css").read_text()))
    return {name: pair.split(", ")[theme] for name, pair in found.items()}


@pytest.mark.parametrize("theme", [0, 1])
def test_the_colour_blind_tell_curves_apart(theme):
    known = colours(theme)
    curves = [linear(known[f"c{i}"]) for i in range(6)]
    for vision, matrix in VISIONS.items():
        seen = [oklab(np.clip(np.array(matrix) @ colour, 0, 1)) for colour in curves]
        apart = min(np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i])
        assert apart > 0.09, (vision, apart)
    weights = np.array([0.2126, 0.7152, 0.0722])
    ground = weights @ linear(known["card"])
    words = {"ink": 7, "quiet": 4.5, "good": 4.5, "bad": 4.5, "open": 4.5}
    for name, least in ({f"c{i}": 3 for i in range(6)} | words).items():
        bright = weights @ linear(known[name])
        contrast = (max(bright, ground) + 0.05) / (min(bright, ground) + 0.05)
        assert contrast >= least, (name, contrast)


def test_curves_differ_by_more_than_colour():
    style = (HERE / "page.css").read_text()
    dashes = re.findall(r"\.curve:not\(\.thin\)\.s(\d) \{ stroke-dasharray: ([\d ]+); \}", style)
    assert len({number for number, _ in dashes}) == 5 == len({dash for _, dash in dashes})


# ---- what is missing


def test_a_run_cut_off_in_training(tmp_path):
    path = trained(tmp_path / "run", steps=40, ended=False)
    with open(path / "train.jsonl", "a") as file:
        file.write('{"kind": "step", "step": 41, "lo')
    root = read(path)
    assert "no score yet" in section(root, "result").text and "cut off after step 40" in section(root, "result").text
    assert "40 steps, 81,920 tokens" in section(root, "training").text and "still running, or was cut off" in root.text
    for anchor in ("audit", "scoring", "where", "text", "compression", "quantisation", "budgets"):
        assert section(root, anchor).all("div", "missing"), anchor
    assert "Legal" not in root.text


def test_a_run_before_its_first_step(tmp_path):
    path = trained(tmp_path / "run", steps=0, ended=False)
    root = read(path)
    assert "not trained" in section(root, "result").text and section(root, "training").one("div", "missing").text
    (path / "train.jsonl").unlink()
    read(path)


def test_stages_that_have_not_run(tmp_path):
    first = read(trained(tmp_path / "trained"))
    assert "trained, not packed" in first.text and "pgolf pack RUN" in first.text
    second = read(packed(tmp_path / "packed"))
    assert "trained and packed, not scored" in second.text and "pgolf score RUN" in second.text
    assert charts(second)["Bytes of the artifact"].text.count("506,700")
    third = read(scored(tmp_path / "scored"))
    assert "There is no audit.json" in third.text and "not all is known yet: audit" in third.one("p", "words").text


def test_no_adaptation_no_mixer_no_words(tmp_path):
    path = scored(tmp_path / "run")
    config = (path / "config.toml").read_text().replace('"chunks"', '"none"').replace('["ngram_backoff"]', "[]")
    (path / "config.toml").write_text(config)
    for name in ("weights.jsonl", "top_predictions.json", "score.jsonl"):
        (path / name).unlink()
    root = read(path)
    told = section(root, "scoring").text
    assert "does not adapt while it scores" in told and "uses no mixer" in told
    assert "weights.jsonl is empty" in section(root, "weights").text
    assert "There is no score.jsonl" in section(root, "where").text
    assert "No excerpts were recorded" in section(root, "text").text


def test_damaged_files_are_named(tmp_path):
    path = audited(tmp_path / "run")
    for name in ("summary.json", "plan.json", "audit.json", "config.toml"):
        (path / name).write_text("{[")
    (path / "top_predictions.json").write_text("[1]")
    (path / "score.jsonl").write_text("")
    root = read(path)
    lines = section(root, "damaged").text
    for name in ("summary.json", "plan.json", "audit.json", "config.toml", "top_predictions.json", "score.jsonl"):
        assert f"{name} is damaged" in lines


def test_a_file_of_another_form_costs_one_section(tmp_path, whole):
    path = audited(tmp_path / "run")
    for name, content in (("top_predictions.json", {"excerpts": [{}]}), ("quantisation.json", {"matrices": [{"name": 3}]})):
        (path / name).write_text(json.dumps(content))
    root = read(path)
    assert [one.attributes["id"] for one in root.all("section") if "could not be drawn" in one.text] == [
        "budgets", "text", "quantisation",
    ]  # fmt: skip
    assert "could not be drawn" not in whole.text and root.one("span", "score").text == whole.one("span", "score").text


@pytest.mark.parametrize("broken", ["size", "training", "audit", "partial", "published"])
def test_what_makes_a_score_not_legal(tmp_path, broken):
    path = audited(tmp_path / "run", passed=broken != "audit", partial=broken == "partial")
    summary = json.loads((path / "summary.json").read_text())
    if broken == "size":
        summary["artifact"]["total_bytes"] = 16_000_001
    if broken == "training":
        summary["train"]["seconds"] = 60.5
    if broken == "published":
        summary["main"] = "published"
    (path / "summary.json").write_text(json.dumps(summary))
    words = read(path).one("p", "words")
    name = {"size": "fits", "training": "training clock", "partial": "the whole stream", "published": "a code length"}
    assert words.text == f"Not legal. What does not hold: {name.get(broken, broken)}." and "bad" in words.classes


# ---- hostile text

EVIL = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "</script><script>alert(2)</script>",
    "<!--<script>",
    "' onfocus='alert(3)' x='",
    "\u2028]]>&lt;b&gt;&amp;",
    "</style></title><iframe src=//evil>",
]


@pytest.mark.parametrize("evil", EVIL)
def test_no_text_becomes_markup(tmp_path, evil):
    plain = read(audited(tmp_path / "plain"))
    path = tmp_path / ("x" + evil.replace("/", "∕"))
    audited(path)
    tokens, size, nats = stream()
    nats[evil] = nats.pop("ngram_backoff")
    write_scores(path / "score.jsonl", tokens, size, nats)
    write_words(path, tokens, size, nats, text=evil)
    for name in ("summary.json", "audit.json", "quantisation.json"):
        text = (path / name).read_text()
        for word in ("builtin", "ngram_backoff", "a CPU", "xz -9e", "knows no future", "blocks.0.attn.c_q.weight", "rounding"):
            text = text.replace(f'"{word}": ', f"{json.dumps(evil)}: ") if name == "summary.json" else text
            text = text.replace(f': "{word}"', f": {json.dumps(evil)}")
        (path / name).write_text(text)
    event = {"kind": "phase", "step": 3, "name": evil}
    with open(path / "train.jsonl", "a") as file:
        file.write(json.dumps(event) + "\n")
    config = (path / "config.toml").read_text()
    (path / "config.toml").write_text(config.replace('"a test"', json.dumps(evil)))
    root = read(path)
    names = {element.name for element in plain.all()}
    assert {element.name for element in root.all()} <= names
    scripts = root.all("script")
    assert len([one for one in scripts if one.attributes.get("type") != "application/json"]) == 1
    known = {name for element in plain.all() for name in element.attributes}
    for element in root.all():
        assert element.attributes.keys() <= known, element
    for script in scripts:
        if script.attributes.get("type") == "application/json":
            told = json.loads(script.text)
            if "p" in told and told["p"]:
                assert told["p"]["2"] == f"{evil}2"
    assert evil in root.one("title").text.replace("∕", "/")
    for anchor in ("result", "audit", "training", "scoring", "text", "compression", "quantisation", "settings"):
        assert evil in section(root, anchor).text, anchor
