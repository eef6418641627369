"""`python -m pgolf.audit.violations`: all cases are audited; exit code 0 only if every violation is caught
and no legal control is."""

import sys
import tempfile
from pathlib import Path

from pgolf.audit.violations.cases import CASES, LEAKS, examine, published_cases


def main() -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for number, case in enumerate((*CASES, *published_cases(), *LEAKS)):
            failed = [one.id for one in examine(case.illegal, Path(place) / f"{number}-illegal").failed]
            control = [one.id for one in examine(case.legal, Path(place) / f"{number}-legal").failed]
            right = set(case.caught_by) <= set(failed) and not control
            wrong += not right
            verdict = "caught by" if right else f"WRONG (wanted {' '.join(case.caught_by)})"
            also = f", and its control failed {' '.join(control)}" if control else ""
            print(f"{case.number:4} {case.name:40} {verdict} {' '.join(failed)}{also}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
