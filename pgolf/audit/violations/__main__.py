"""`python -m pgolf.audit.violations`: everybody is audited; exit code 0 only if all animals are caught and no twin is."""

import sys
import tempfile
from pathlib import Path

from pgolf.audit.violations import ANIMALS, examine, published_animals


def main() -> int:
    wrong = 0
    with tempfile.TemporaryDirectory() as place:
        for number, animal in enumerate((*ANIMALS, *published_animals())):
            failed = [one.id for one in examine(animal.illegal, Path(place) / f"{number}-illegal").failed]
            twin = [one.id for one in examine(animal.legal, Path(place) / f"{number}-legal").failed]
            right = set(animal.caught_by) <= set(failed) and not twin
            wrong += not right
            verdict = "caught by" if right else f"WRONG (wanted {' '.join(animal.caught_by)})"
            also = f", and its twin failed {' '.join(twin)}" if twin else ""
            print(f"{animal.number:4} {animal.name:40} {verdict} {' '.join(failed)}{also}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
