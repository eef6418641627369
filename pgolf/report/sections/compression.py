"""The run's score beside general compressors on the same text."""

import math

from pgolf.compressors import standing
from pgolf.report.charts import Bar, BarRows, Chart, missing
from pgolf.report.files import Run
from pgolf.report.html import Html, join
from pgolf.report.scales import Axis
from pgolf.report.sections.section import Section, label
from pgolf.summary import Score


def charts(run: Run) -> dict[str, Chart]:
    main = run.summary.score.get(run.main)
    return {"compression": _sizes(run, main)} if main else {}


def body(run: Run) -> Html:
    drawn = charts(run)
    return join(drawn.values() or [missing("Against general compressors", "The run has not been scored.")])


def _sizes(run: Run, main: Score) -> Chart:
    rows = [("pgolf: " + label(run.main), main.bpb, main.nats / math.log(2) / 8, True)]
    peers = run.summary.compressors
    rows += [(name, peer.bpb, peer.bytes, False) for name, peer in peers.items()]
    for name, peer in peers.items():
        if peer.primed_bpb is not None and peer.primed_bytes is not None:
            rows.append((f"{name}, primed", peer.primed_bpb, peer.primed_bytes, False))
    rows.sort(key=lambda row: row[1])
    # a bar longer than the text itself would leave nothing to see of the others
    beyond = [row for row in rows if row[1] > 8]
    drawn = [
        Bar(name, [(name, bpb, 1 if ours else 0)], f"{bpb:.4f} · {size:,.0f} bytes", strong=ours)
        for name, bpb, size, ours in rows
        if bpb <= 8
    ]
    note = (
        "The same text, as one stream. A compressor starts from nothing, or, primed, has read the training text before, as "
        "the model has: what both texts take less what the training text takes."
    )
    if sentence := standing(main.bpb, peers):
        note = f"{main.bpb:.4f} bits per byte {sentence}. {note}"
    if len(rows) == 1:
        note = "No other compressor was run on this text."
    if beyond:
        told = "; ".join(f"{name}, {size:,.0f} bytes ({bpb:.2f} bits per byte)" for name, bpb, size, _ in beyond)
        note += f" More than the text itself takes: {told}."
    return BarRows("The same text by general compressors", Axis("size", "bits per byte"), drawn, head="compressor", note=note)


SECTION = Section("compression", "Compression", body, charts=charts)
