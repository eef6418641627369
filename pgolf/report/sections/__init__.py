"""The sections of one run's report, in order. Each owns its figures; where a file is missing it says so."""

from pgolf.report.sections import (
    audit,
    budgets,
    compression,
    glossary,
    quantisation,
    result,
    scoring,
    settings,
    text,
    training,
    weights,
    where,
)
from pgolf.report.sections.section import Section

SECTIONS: tuple[Section, ...] = tuple(
    module.SECTION
    for module in (
        result,
        budgets,
        audit,
        training,
        scoring,
        where,
        weights,
        text,
        compression,
        quantisation,
        settings,
        glossary,
    )
)
