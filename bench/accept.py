"""Make a folder's results the committed ones: `python -m bench.accept FOLDER`. Lines of other benches stay as they are."""

import argparse
import sys
from pathlib import Path

from bench.picture import draw
from bench.results import FOLDER, Results, file_of


def accept(path: Path, into: Path = FOLDER) -> Path:
    """The file written."""
    results = Results.read(path)
    merged = results.laid_over(Results.committed(results.device, into))
    target = file_of(results.device, into)
    merged.write(target)
    draw(merged, target.with_suffix(".svg"))
    return target


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.accept", description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    written = 0
    for path in sorted(folder.glob("*.json")):
        try:
            print(accept(path))
            written += 1
        except ValueError:  # other JSON lies there too
            continue
    if not written:
        print(f"error: {folder} holds no results of the bench", file=sys.stderr)
    return 0 if written else 1


if __name__ == "__main__":
    sys.exit(main())
