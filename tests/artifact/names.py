"""Names that a module uses and nobody binds, by Python's own symbol tables."""

import ast
import builtins
import symtable


def undefined_names(tree: ast.Module) -> set[str]:
    text = ast.unparse(tree)
    top = symtable.symtable(text, "module", "exec")
    bound = {symbol.get_name() for symbol in top.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    bound |= {child.get_name() for child in top.get_children()} | set(dir(builtins)) | {"__file__", "__name__"}
    missing: set[str] = set()
    waiting = [top]
    while waiting:
        table = waiting.pop()
        waiting += table.get_children()
        missing |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()} - bound
    return missing
