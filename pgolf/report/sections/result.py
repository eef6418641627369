"""The head of a run's page: the score, what it means, whether it is legal, and what ran."""

import math

from pgolf.report.files import Run
from pgolf.report.html import Html, h
from pgolf.report.sections.audit import audit_tests
from pgolf.report.sections.section import Section, label
from pgolf.report.tables import given_up, left

SIGNS = {True: "✓", False: "✗", None: "?"}
WORDS = {True: "holds", False: "broken", None: "not known"}


def head(run: Run) -> Html:
    score = run.summary.score.get(run.main)
    lost = given_up(run.summary)
    return h(
        "section",
        h(
            "div",
            h("div", h("span", f"{score.bpb:.4f}" if score else "no score yet", class_="score"), class_="figure"),
            h("p", "bits per byte" if score else stage_reached(run), class_="unit"),
            h("p", f"Given up for the clock: {', '.join(lost)}.", class_="lost-work") if lost else None,
            h("p", sentence(run), class_="sentence"),
            verdict(run),
            class_="hero",
        ),
        facts(run),
        id="result",
        class_="result",
    )


def stage_reached(run: Run) -> str:
    summary = run.summary
    if summary.artifact:
        return "trained and packed, not scored"
    if summary.train:
        return "trained, not packed"
    steps = run.steps
    return f"in training, or cut off after step {steps[-1]['step']:,}" if steps else "not trained"


def sentence(run: Run) -> str:
    """What the score means."""
    score = run.summary.score.get(run.main)
    if not score:
        return "The score is known once the run is scored; what is there so far is below."
    share = score.bpb / 8
    whole = "a part of the validation text" if score.partial else "the whole validation text"
    model = run.summary.artifact.total_bytes if run.summary.artifact else None
    given = f"Given this artifact of {model:,} bytes" if model else "Given this artifact"
    return (
        f"{given}, {whole}, {score.bytes:,} bytes long, comes down to {score.nats / math.log(2) / 8:,.0f} bytes: "
        f"{100 * share:.1f} % of its length, with the predictor “{label(run.main)}”."
    )


def checks(run: Run) -> list[tuple[str, bool | None, str]]:
    """What makes a score legal: the rule, whether it holds (None: not known), and the figures."""
    summary = run.summary
    score = summary.score.get(run.main)
    rows: list[tuple[str, bool | None, str]] = []
    if score:
        rows.append(("a code length", bool(score.legal), "the predictor sums to one over the vocabulary"))
        part = bool(score.partial)
        rows.append(("the whole stream", not part, f"{score.tokens:,} tokens" + (", a part of it" if part else "")))
    else:
        rows.append(("a code length", None, "not scored"))
    artifact = summary.artifact
    if artifact:
        total, limit = artifact.total_bytes, artifact.limit
        rows.append(("fits", total <= limit, f"{total:,} of {limit:,} bytes"))
    else:
        rows.append(("fits", None, "not packed"))
    for name, clock in (("training clock", summary.train), ("scoring clock", summary.scoring)):
        if clock:
            rows.append((name, clock.seconds <= clock.limit, f"{clock.seconds:.1f} of {clock.limit:.0f} s"))
        else:
            rows.append((name, None, "not run"))
    passed = run.audit.get("passed")
    rows.append(("audit", passed if isinstance(passed, bool) else None, _audit_words(run)))
    return rows


def text(run: Run) -> str:
    return left([["rule", "", ""], *([name, WORDS[holds], says] for name, holds, says in checks(run))])


def _audit_words(run: Run) -> str:
    if not run.audit:
        return "not audited"
    tests = audit_tests(run)
    failed = dict.fromkeys(str(test.get("title", test.get("id", "?"))) for test in tests if test["passed"] is False)
    undecided = sum(test["passed"] is None for test in tests)
    said = f"{sum(test['passed'] is True for test in tests)} of {len(tests)} tests passed"
    if undecided:
        said += f", {undecided} not applicable"
    return f"{said}; failed: {', '.join(failed)}" if failed else said


def verdict(run: Run) -> Html:
    rows = checks(run)
    broken = [name for name, holds, _ in rows if holds is False]
    unknown = [name for name, holds, _ in rows if holds is None]
    if broken:
        kind, words = "bad", f"Not legal. What does not hold: {', '.join(broken)}."
    elif unknown:
        kind, words = "open", f"No rule is broken, but not all is known yet: {', '.join(unknown)}."
    else:
        kind, words = "good", "Legal: every rule holds, and the audit passed."
    chips = [
        h("li", h("b", SIGNS[holds], aria_hidden="true"), h("span", name), h("small", says, h("span", f" ({WORDS[holds]})",
          class_="unseen")), class_={True: "good", False: "bad", None: "open"}[holds])
        for name, holds, says in rows
    ]  # fmt: skip
    return h("div", h("p", words, class_=f"words {kind}"), h("ul", chips, class_="chips"), class_="verdict")


def facts(run: Run) -> Html:
    summary = run.summary
    corpus, train = summary.corpus, summary.train
    rows = [
        ("preset", summary.preset or run.config.get("preset")),
        ("seed", run.config.get("seed") if summary.seed is None else summary.seed),
        ("corpus", f"{corpus.name} ({corpus.digest[:12]})" if corpus else None),
        ("parameters", None if summary.parameters is None else f"{summary.parameters:,}"),
        ("trained on", f"{train.tokens:,} tokens in {train.steps:,} steps" if train else None),
        ("weights", train.weights if train else None),
        ("device", summary.device),
        ("versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items()) or None),
    ]
    return h(
        "dl",
        [[h("dt", name), h("dd", "unknown" if value in (None, "") else str(value))] for name, value in rows],
        class_="facts",
    )


def damage(run: Run) -> Html | None:
    if not run.damaged:
        return None
    lines = h("ul", [h("li", line) for line in run.damaged])
    return h("section", h("h2", "Files that could not be read"), lines, id="damaged")


class Head(Section):
    """The head has no title of its own."""

    def html(self, run: Run) -> Html:
        return self.body(run)


SECTION = Head("result", "Result", head, text)
