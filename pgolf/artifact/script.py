"""One file, complete: trains a language model, packs it, and scores it from the packed file alone.

    python train_gpt_readable.py                         on one GPU, or on CPU cores
    torchrun --standalone --nproc_per_node=8 train_gpt_readable.py
    python train_gpt_readable.py compact > train_gpt.py  the counted script, byte for byte

Settings are this submission's. The challenge's environment names (SEED, DATA_PATH, MAX_WALLCLOCK_SECONDS, ...) and flags
(--help) change them, as far as these sources reach: FILES holds those that the settings need, as they are. They are unpacked
into a temporary folder for as long as this runs, because compilers of kernels want to read them from files.
"""

import atexit
import importlib
import os
import shutil
import sys
import tempfile
from pathlib import Path

DEVICE = "cpu"
FILES: dict[str, str] = {}


def unpack() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="pgolf-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    for name, text in FILES.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8", newline="\n")
    return folder


def main() -> int:
    sources = str(unpack())
    sys.path.insert(0, sources)
    # for the processes that this one starts: scoring never shares one with training
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [sources, os.environ.get("PYTHONPATH")]))
    os.environ["PGOLF_SCRIPT"] = str(Path(__file__).resolve())
    # by its name: this file is a template in the package, where nothing below the driver may import it
    run = importlib.import_module("pgolf.run").main
    words = sys.argv[1:]
    if words == ["compact"]:
        del os.environ["PGOLF_SCRIPT"]
        from pgolf.artifact.code import make_script
        from pgolf.config import load_preset

        sys.stdout.buffer.write(make_script(load_preset("submission"), DEVICE))
        return 0
    stage = words and not words[0].startswith("-")
    return run(words if stage else ["--preset", "submission", *words])


if __name__ == "__main__":
    sys.exit(main())
