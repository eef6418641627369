"""The counted script: what a run reaches of the package, merged into one module, under short names, compressed.

    settings -> Fold (branches) -> Merger (functions) -> Emitter (names) -> squeezed -> lzma -> base 85 -> a stub

The stub unpacks the module into a private folder, because Triton reads kernels from files, and removes it when it ends.
"""

import base64
import io
import lzma
import re
import tokenize
from dataclasses import replace

from pgolf.artifact.emit import Emitter
from pgolf.artifact.fold import Fold
from pgolf.artifact.merge import Merger
from pgolf.artifact.script_parts import replacements
from pgolf.config import Settings

ENTRY = ("pgolf.cli.driver", "main")
STUB = """import atexit,base64,lzma,os,shutil,signal,sys,tempfile
d=tempfile.mkdtemp();atexit.register(shutil.rmtree,d,1);signal.signal(15,lambda*_:sys.exit(143))
os.environ.setdefault("GOMP_SPINCOUNT","2000");os.environ["PGOLF_SCRIPT"]=os.path.abspath(__file__)
open(d+"/train_gpt_module.py","wb").write(lzma.decompress(base64.b85decode("{payload}")))
sys.path.insert(0,d)
from train_gpt_module import {main} as m
sys.exit(m(sys.argv[1:]))
"""


def compact_script(settings: Settings, device: str) -> str:
    """One file that trains, packs and scores with these settings on that kind of device ("cuda" or "cpu")."""
    module, main = merged_module(settings, device)
    return STUB.replace("{main}", main).replace("{payload}", base64.b85encode(compressed(module.encode())).decode())


def merged_module(settings: Settings, device: str) -> tuple[str, str]:
    """The module that a script unpacks, and what its main function is called."""
    merger = Merger(Fold(quiet(settings), device), device, replacements(settings))
    merger.reach(ENTRY[0], [ENTRY[1]])
    emitter = Emitter(merger)
    return squeezed(emitter.text()), emitter.globals[ENTRY]


def quiet(settings: Settings) -> Settings:
    """Without what is for comparison or for a page."""
    evaluation = replace(settings.evaluation, published_tail=False, top_predictions=0)
    training = replace(settings.training, validate_every=0)
    return replace(settings, evaluation=evaluation, training=training)


def squeezed(text: str) -> str:
    """The same program with one space of indentation, and no other space than the words need."""
    lines: list[str] = []
    line, last = "", (1, 0)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type in (tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENDMARKER):
            continue
        if token.type == tokenize.NEWLINE:
            lines.append(line)
            line = ""
            continue
        if not line:
            line = " " * (token.start[1] // 4)
        elif re.match(r"\w", line[-1]) and re.match(r"[\w'\"]", token.string) and (token.start != last):
            line += " "
        line, last = line + token.string, token.end
    return "\n".join(lines) + "\n"


def compressed(data: bytes) -> bytes:
    """The smallest of lzma's forms for text."""
    forms = [
        {
            "id": lzma.FILTER_LZMA1,
            "preset": 9 | lzma.PRESET_EXTREME,
            "lc": lc,
            "lp": 0,
            "pb": pb,
            "nice_len": 273,
            "depth": 2000,
        }
        for lc in (1, 2, 3, 4)
        for pb in (0, 1)
    ]
    return min((lzma.compress(data, lzma.FORMAT_ALONE, filters=[form]) for form in forms), key=len)
