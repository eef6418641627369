"""The API reference, a static site from the docstrings: `pip install -e '.[docs]'`, then

python docs/api.py [--out site] [MODULE ...]
"""

import argparse
import sys
from pathlib import Path

import pdoc

sys.path.insert(0, str(Path(__file__).parents[1]))


def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", nargs="*", default=["pgolf"], metavar="MODULE")
    parser.add_argument("--out", type=Path, default=Path("site"))
    options = parser.parse_args(words)
    if "pgolf" in options.modules:
        # in a checkout the package looks for its operators beside itself, where a walk would find it a second time
        import pgolf.kernels

        pgolf.__path__ = [str(Path(pgolf.__file__).parent)]
    pdoc.pdoc(*options.modules, output_directory=options.out)
    print(f"open {options.out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
