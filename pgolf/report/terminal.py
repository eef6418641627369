"""The report's figures as tables for the terminal, beyond what the summary alone tells."""

from pgolf.report.files import ODD, Run
from pgolf.report.sections import SECTIONS


def further_tables(run: Run) -> str:
    """Section by section; the verdict comes last, where a reader of a terminal looks first."""
    first, *others = SECTIONS
    parts = ["\n".join(run.damaged)]
    for one in (*others, first):
        try:
            parts.append(one.text(run))
        except ODD as error:
            parts.append(f"a part is left out: a file has another form than expected ({type(error).__name__}: {error})")
    return "\n\n".join(part for part in parts if part)
