"""The sources that a run reaches, merged into one module: function by function, method by method.

Reached is what the entry's statements name, directly or through what they name. A method is reached once its class is and
any statement names an attribute like it. A module's registrations of operators are reached with the operators. What the
modules share a name for gets a name of its own.
"""

import ast
import re
import string
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pgolf
from pgolf.artifact.fold import Fold
from pgolf.artifact.syntax import cloned, walk

WORD = re.compile(r"\w+")
Binding = tuple[str, str]
"""A module, and a name at its top."""


@dataclass
class Source:
    """One module, folded."""

    name: str
    package: str
    tree: ast.Module
    replaced: dict[str, str]
    """Statements that stand for those that bind a name."""
    bindings: dict[str, list[ast.stmt]] = field(default_factory=dict)
    registrations: list[ast.stmt] = field(default_factory=list)
    """Statements that bind nothing."""
    order: list[ast.stmt] = field(default_factory=list)
    mentions: dict[int, "Mentions"] = field(default_factory=dict)

    def mentions_of(self, statement: ast.AST) -> "Mentions":
        """What a statement of this module names; looked for once."""
        if id(statement) not in self.mentions:
            self.mentions[id(statement)] = Mentions(statement, self.package)
        return self.mentions[id(statement)]


FOLDED: dict[str, list[tuple[dict, Source]]] = {}
"""Modules as some settings have folded them, and the facts that this took: most fold alike for all settings."""


class Merger:
    """
    replaced  statements to use instead of those that bind a name of a module
    """

    def __init__(self, fold: Fold, device: str, replaced: dict[Binding, str] | None = None):
        self.fold, self.device = fold, device
        self.replaced = replaced or {}
        self.sources: dict[str, Source | None] = {}
        self.live: dict[str, None] = {}
        """Modules in the order in which they have to be executed."""
        self.kept: dict[Binding, None] = {}
        self.attributes: set[str] = set()
        self.operators: set[str] = set()
        self.strings: set[str] = set()
        self.words: set[str] = set()
        self.classes: list[tuple[Source, ast.ClassDef]] = []
        self.waiting: list[tuple[Source, ast.AST]] = []
        self.done: set[int] = set()
        self.whole_modules: dict[str, None] = {}

    # ---- modules

    def source(self, name: str) -> Source | None:
        """A module of the package; None for others."""
        if name not in self.sources:
            replaced = {binding[1]: text for binding, text in self.replaced.items() if binding[0] == name}
            for facts, source in FOLDED.get(name, ()):
                if source.replaced == replaced and self.fold.same(facts):
                    self.sources[name] = source
                    break
            else:
                self.sources[name] = self._folded(name, replaced)
        return self.sources[name]

    def _folded(self, name: str, replaced: dict[str, str]) -> Source | None:
        path = file_of(name)
        if path is None:
            return None
        self.fold.asked, self.fold.operators = {}, name.startswith("pgolf.kernels")
        tree = self.fold.visit(ast.parse(path.read_text(encoding="utf-8")))
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        source = Source(name, package, strip(tree), replaced)
        Unchecked(name).visit(source.tree)
        self._bind(source)
        FOLDED.setdefault(name, []).append((self.fold.asked, source))
        return source

    @staticmethod
    def _bind(source: Source) -> None:
        for statement in source.tree.body:
            for part in unrolled(statement):
                names = list(bound_by(part))
                for name in names:
                    if name in source.replaced:
                        part = ast.parse(source.replaced[name]).body[0]
                source.order.append(part)
                for name in names:
                    source.bindings.setdefault(name, []).append(part)
                if not names:
                    source.registrations.append(part)

    # ---- what is reached

    def reach(self, module: str, names: Iterable[str]) -> None:
        for name in names:
            self._need(module, name)
        while True:
            while self.waiting:
                self._visit(*self.waiting.pop())
            if not self._further():
                return

    def _need(self, module: str, name: str) -> None:
        source = self.source(module)
        if source is None:
            return
        self._enter(source)
        if name not in source.bindings:
            if inner := self.source(f"{module}.{name}"):
                self._enter(inner)
            return
        if (module, name) in self.kept:
            return
        self.kept[module, name] = None
        for statement in source.bindings[name]:
            if isinstance(statement, (ast.Import, ast.ImportFrom)):
                target = self.target(source, name)
                if target:
                    self._need(*target)
            elif isinstance(statement, ast.ClassDef):
                self.classes.append((source, statement))
                self._wait(source, statement)
            else:
                self._wait(source, statement)

    def _wait(self, source: Source, statement: ast.AST) -> None:
        if id(statement) not in self.done:
            self.done.add(id(statement))
            self.waiting.append((source, statement))

    def _enter(self, source: Source) -> None:
        """Execute a module, and with it those that its top imports: they may register operators."""
        if source.name in self.live:
            return
        self.live[source.name] = None
        for statement in source.tree.body:
            for name in bound_by(statement) if isinstance(statement, (ast.Import, ast.ImportFrom)) else ():
                target = import_target(statement, name, source.package)
                for module in (target[0], f"{target[0]}.{target[1]}") if target else ():
                    imported = self.source(module)
                    if imported:
                        self._enter(imported)

    def target(self, source: Source, name: str) -> Binding | None:
        """What an imported name stands for: a binding of another module, or (module, "") for a module of the package."""
        for statement in source.bindings.get(name, ()):
            target = import_target(statement, name, source.package)
            if target:
                return self._followed(*target)
        return None

    def _followed(self, module: str, name: str) -> Binding | None:
        source = self.source(module)
        if source is None:
            return None
        if not name:
            return module, ""
        if name in source.bindings:
            further = self.target(source, name)
            return further or (module, name)
        return (f"{module}.{name}", "") if self.source(f"{module}.{name}") else None

    def resolve(self, source: Source, name: str, local: dict[str, Binding] | None = None) -> Binding | None:
        """The binding that a name at the top of a module, or one that a function has imported, stands for."""
        if local and name in local:
            return self._followed(*local[name])
        if name not in source.bindings:
            return None
        if all(isinstance(statement, (ast.Import, ast.ImportFrom)) for statement in source.bindings[name]):
            return self.target(source, name)
        return source.name, name

    def _visit(self, source: Source, statement: ast.AST) -> None:
        mentions = source.mentions_of(statement)
        self.attributes |= mentions.attributes
        self.operators |= mentions.operators
        self.strings |= mentions.strings
        self.words |= mentions.words
        for name, attribute in mentions.names:
            self._use(source, name, attribute, mentions.local)

    def _use(self, source: Source, name: str, attribute: str | None, local: dict[str, Binding]) -> None:
        if name in source.bindings and name not in local:
            self._need(source.name, name)
        resolved = self.resolve(source, name, local)
        if resolved is None:
            return
        module, binding = resolved
        if binding:
            self._need(module, binding)
        elif attribute is not None:
            self._need(module, attribute)
        else:
            self.whole_modules[module] = None

    def _further(self) -> bool:
        """Methods and registrations that have become reached."""
        for source, node in self.classes:
            for method in node.body:
                if isinstance(method, ast.FunctionDef) and id(method) not in self.done and self.wants(source, method):
                    self._wait(source, method)
        for module in list(self.whole_modules):
            # a module as a value: those of its names count that some text of the program is equal to
            whole = self.source(module)
            assert whole
            for name in sorted(whole.bindings.keys() & self.strings):
                if self.defines(module, name):
                    self._need(module, name)
        for name in list(self.live):
            entered = self.sources[name]
            assert entered
            for statement in entered.registrations:
                if id(statement) not in self.done and self.registers(statement):
                    self._wait(entered, statement)
        return bool(self.waiting)

    def defines(self, module: str, name: str) -> bool:
        """Whether a binding is the module's own, not an import."""
        source = self.source(module)
        if source is None:
            return False
        return not any(isinstance(part, (ast.Import, ast.ImportFrom)) for part in source.bindings[name])

    def wants(self, source: Source, method: ast.FunctionDef) -> bool:
        name = method.name
        if name == "validate" and source.name.startswith("pgolf.config"):
            return False
        return name.startswith("__") and name.endswith("__") or name in self.attributes or name in CALLED_BY_TORCH

    def registers(self, statement: ast.stmt) -> bool:
        """Whether a statement that binds nothing is executed: registrations of operators in use, for this device."""
        if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Call):
            return False
        called = ast.unparse(statement.value.func)
        words = [a.value for a in statement.value.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        if called not in (
            "implement",
            "torch.library.define",
            "torch.library.register_fake",
            "torch.library.register_autograd",
        ):
            return False
        if not words or words[0].partition("::")[2] not in self.operators:
            return False
        if called == "implement" and words[1] != self.device.upper():
            return False
        return called != "torch.library.register_fake" or self.device == "cuda"


CALLED_BY_TORCH = {"forward", "backward"}


class Mentions(ast.NodeVisitor):
    """What one statement of a module names."""

    def __init__(self, statement: ast.AST, package: str):
        self.package = package
        self.local: dict[str, Binding] = {}
        """Names that its functions import."""
        self.names: dict[tuple[str, str | None], None] = {}
        """Names, and the attribute of each that is asked for, if it is one."""
        self.attributes: set[str] = set()
        self.operators: set[str] = set()
        self.strings: set[str] = set()
        self.words: set[str] = set()
        """Keywords, and what texts hold."""
        if isinstance(statement, ast.ClassDef):
            for part in [*statement.bases, *statement.keywords, *statement.decorator_list]:
                self.visit(part)
            for part in statement.body:
                # what a class binds is no name of the module's
                if isinstance(part, (ast.Assign, ast.AnnAssign)):
                    if part.value:
                        self.visit(part.value)
                elif not isinstance(part, ast.FunctionDef):
                    self.visit(part)
        else:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            target = import_target(node, alias.asname or alias.name.partition(".")[0], self.package)
            if target:
                self.local[alias.asname or alias.name] = target

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        for alias in node.names:
            target = import_target(node, alias.asname or alias.name, self.package)
            if target:
                self.local[alias.asname or alias.name] = target

    def visit_Name(self, node: ast.Name) -> None:
        self.names[node.id, None] = None

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.attributes.add(node.attr)
        if isinstance(node.value, ast.Name):
            self.names[node.value.id, node.attr] = None
            return
        if isinstance(node.value, ast.Attribute) and ast.unparse(node.value) == "torch.ops.pgolf":
            self.operators.add(node.attr)
        self.visit(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if isinstance(node.func, ast.Name) and node.func.id in ("getattr", "hasattr") and len(node.args) > 1:
            name = node.args[1]
            if isinstance(name, ast.Constant):
                self.attributes.add(str(name.value))
        self.generic_visit(node)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str):
            self.words.update(WORD.findall(node.value))
            if node.value.isidentifier():
                self.strings.add(node.value)

    def visit_keyword(self, node: ast.keyword) -> None:
        self.words.update([node.arg] if node.arg else ())
        self.visit(node.value)


# ---- syntax


def file_of(name: str) -> Path | None:
    """A module's file. The operators may lie beside the package instead of in it."""
    top, *rest = name.split(".")
    if top != "pgolf":
        return None
    for root in pgolf.__path__:
        path = Path(root).joinpath(*rest)
        if (path / "__init__.py").is_file():
            return path / "__init__.py"
        if rest and path.with_suffix(".py").is_file():
            return path.with_suffix(".py")
    return None


def import_target(statement: ast.stmt, name: str, package: str) -> Binding | None:
    """(module, name in it) that an import binds to `name`; name "" for the module itself."""
    if isinstance(statement, ast.Import):
        for alias in statement.names:
            if (alias.asname or alias.name.partition(".")[0]) == name:
                return (alias.name if alias.asname else alias.name.partition(".")[0]), ""
    if isinstance(statement, ast.ImportFrom):
        above = package.split(".")[: len(package.split(".")) - statement.level + 1] if statement.level else []
        module = ".".join([*above, *([statement.module] if statement.module else [])])
        for alias in statement.names:
            if (alias.asname or alias.name) == name:
                return module, alias.name
    return None


def bound_by(statement: ast.stmt) -> Iterator[str]:
    """The names that a statement at a module's top binds."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        yield statement.name
    elif isinstance(statement, (ast.Import, ast.ImportFrom)):
        for alias in statement.names:
            yield alias.asname or alias.name.partition(".")[0]
    elif isinstance(statement, (ast.Assign, ast.AnnAssign, ast.AugAssign)):
        targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        for target in targets:
            yield from (part.id for part in walk(target) if isinstance(part, ast.Name))
    elif isinstance(statement, (ast.If, ast.Try, ast.With)):
        for part in walk(statement):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Store):
                yield part.id
            elif isinstance(part, (ast.FunctionDef, ast.ClassDef)):
                yield part.name
            elif isinstance(part, (ast.Import, ast.ImportFrom)):
                yield from (alias.asname or alias.name for alias in part.names)


def unrolled(statement: ast.stmt) -> list[ast.stmt]:
    """A loop over a literal table at a module's top, row by row."""
    if not isinstance(statement, ast.For) or not isinstance(statement.iter, (ast.Tuple, ast.List)):
        return [statement]
    statements: list[ast.stmt] = []
    for row in statement.iter.elts:
        pairs = [(statement.target, row)]
        if isinstance(statement.target, ast.Tuple) and isinstance(row, ast.Tuple):
            pairs = list(zip(statement.target.elts, row.elts, strict=True))
        table = {target.id: value for target, value in pairs if isinstance(target, ast.Name)}
        statements += [Substitute(table).visit(cloned(part)) for part in statement.body]
    return statements


class Substitute(ast.NodeTransformer):
    def __init__(self, table: dict[str, ast.expr]):
        self.table = table

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return cloned(self.table.get(node.id, node)) if isinstance(node.ctx, ast.Load) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        self.generic_visit(node)
        parts = [part.value if isinstance(part, ast.FormattedValue) else part for part in node.values]
        constants = [part.value for part in parts if isinstance(part, ast.Constant)]
        return ast.Constant("".join(map(str, constants))) if len(constants) == len(parts) else node


def strip(tree: ast.Module) -> ast.Module:
    return Strip().visit(tree)


class Strip(ast.NodeTransformer):
    """Without docstrings and annotations. Fields of a class keep a short one, and kernels theirs, which Triton reads."""

    def __init__(self) -> None:
        self.in_class = False

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        if not any("triton.jit" in ast.unparse(decorator) for decorator in node.decorator_list):
            node.returns = None
            arguments = node.args
            for argument in [
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                arguments.vararg,
                arguments.kwarg,
            ]:
                if argument:
                    argument.annotation = None
        outer, self.in_class = self.in_class, False
        self.generic_visit(node)
        self.in_class = outer
        node.body = _without_texts(node.body) or [ast.Pass()]
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outer, self.in_class = self.in_class, True
        self.generic_visit(node)
        self.in_class = outer
        fields = any("dataclass" in ast.unparse(d) for d in node.decorator_list) or any(
            ast.unparse(base) in ("NamedTuple",) for base in node.bases
        )
        if not fields:
            node.body = [part for part in node.body if not isinstance(part, ast.AnnAssign) or part.value]
            node.body = [_plain(part) if isinstance(part, ast.AnnAssign) else part for part in node.body]
        node.body = _without_texts(node.body) or [ast.Pass()]
        return node

    def visit_Module(self, node: ast.Module) -> ast.AST:
        self.generic_visit(node)
        node.body = _without_texts(node.body)
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST | None:
        if self.in_class:
            node.annotation = ast.Name("int", ast.Load())
            return node
        return _plain(node) if node.value else None

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "cast" and len(node.args) == 2:
            return node.args[1]
        return node


class Unchecked(ast.NodeTransformer):
    """Without the checks of settings, and of mistakes of the calling code: those of a script are a run's that has passed them;
    and without a display that says how far a stage is, but for training's steps."""

    def __init__(self, module: str):
        self.operators = module.startswith("pgolf.kernels")
        self.inner = module.startswith(INNER) and module != "pgolf.evaluation.stream"

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        called = node.value.func if isinstance(node.value, ast.Call) else None
        if isinstance(called, ast.Attribute) and called.attr == "validate" and not node.value.args:  # type: ignore[attr-defined]
            return None
        if isinstance(called, ast.Attribute) and called.attr in ("status", "settle"):
            return None
        self.generic_visit(node)
        name = called.id.lstrip("_") if isinstance(called, ast.Name) else ""
        return None if self.operators and name.startswith(("check", "require_", "refuse_")) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.AST:
        return node

    def visit_Constant(self, node: ast.Constant) -> ast.AST:
        if self.operators and isinstance(node.value, str):
            node.value = brief_schema(node.value)
        return node

    def visit_If(self, node: ast.If) -> ast.AST | None:
        self.generic_visit(node)
        if self.inner and node.orelse and all(map(refuses, node.orelse)):
            node.orelse = []
        if self.inner and all(map(refuses, node.body)):
            return node.orelse if node.orelse else None  # type: ignore[return-value]
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        """Messages without their advice, which the package gives."""
        self.generic_visit(node)
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        if node.args and (called.endswith("Error") or called == "say"):
            node.args[0] = briefly(node.args[0], ADVICE if called == "say" else REASON)
        return node


# modules that are handed what the script itself has made
INNER = ("pgolf.kernels", "pgolf.model", "pgolf.artifact", "pgolf.evaluation", "pgolf.training")


def refuses(node: ast.stmt) -> bool:
    """Whether a statement raises an error that only a mistake of the calling code can cause: one of Python's own."""
    return isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and ast.unparse(node.exc.func) in REFUSALS


REFUSALS = ("ValueError", "TypeError", "RuntimeError", "IndexError", "NotImplementedError")


# what of a message stands before its advice, and before what else it says of an error
ADVICE = re.compile(r"[^;]*(?=; )")
REASON = re.compile(r"[^;]*?\w[^;]*?(?=[:;] )|(?=; )")


def briefly(message: ast.expr, beginning: re.Pattern[str]) -> ast.expr:
    """A message up to the end of its beginning, if that ends before the message does."""
    parts = message.values if isinstance(message, ast.JoinedStr) else [message]
    kept: list[ast.expr] = []
    for part in parts:
        text = part.value if isinstance(part, ast.Constant) else None
        if isinstance(text, str) and (brief := beginning.match(text)):
            kept.append(ast.Constant(brief[0]))
            break
        kept.append(part)
    return ast.copy_location(ast.JoinedStr(kept), message) if isinstance(message, ast.JoinedStr) else kept[0]


SCHEMA_NAME = re.compile(r"\b((?:Tensor|SymInt|ScalarType|float|int|bool)(?:\[\])?\??) (\w+)\b")


def brief_schema(text: str) -> str:
    """An operator's schema with letters for its parameters, which are handed over by their places."""
    letters = iter(string.ascii_letters)
    return SCHEMA_NAME.sub(lambda match: f"{match[1]} {next(letters)}", text) if text.startswith("(Tensor ") else text


def _plain(node: ast.AnnAssign) -> ast.Assign:
    assert node.value
    return ast.copy_location(ast.Assign([node.target], node.value), node)


def _without_texts(body: list[ast.stmt]) -> list[ast.stmt]:
    return [part for part in body if not (isinstance(part, ast.Expr) and isinstance(part.value, ast.Constant))]
