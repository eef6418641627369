"""A merged module's text: what a `Merger` has kept, in an order in which it can be executed, under short names."""

import ast
import builtins
import copy
import itertools
import keyword
import string
from collections import Counter
from collections.abc import Iterator

from pgolf.artifact.merge import Binding, Merger, Source, import_target
from pgolf.artifact.syntax import children, cloned, walk

# parameters that torch hands over by name
BY_NAME = {"ctx", "inputs", "output", "self"}
LETTERS = string.ascii_letters + "_"


class Emitter:
    def __init__(self, merger: Merger):
        self.merger = merger
        self.order = list(execution_order(merger))
        self.statements = [(source, statement) for source in self.order for statement in kept_statements(merger, source)]
        self.keywords, self.strings = set(BY_NAME), set[str]()
        for _, statement in self.statements:
            for node in walk(statement):
                if isinstance(node, ast.keyword) and node.arg:
                    self.keywords.add(node.arg)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    self.strings.add(node.value)
        self.globals = self._global_names()

    def _global_names(self) -> dict[Binding, str]:
        """Every kept binding and every foreign import, the most used first, under the shortest names."""
        counts: Counter[Binding] = Counter()
        for source, statement in self.statements:
            for node in walk(statement):
                if isinstance(node, ast.Name):
                    used = self.binding_of(source, node.id)
                    if used:
                        counts[used] += 1
        for binding in self.merger.kept:
            if self.merger.defines(*binding):
                counts.setdefault(binding, 0)
        taken = set(dir(builtins)) | set(keyword.kwlist) | {"_", "self"}
        names = (name for name in short_names(2) if name not in taken)
        return {binding: next(names) for binding, _ in counts.most_common()}

    def binding_of(self, source: Source, name: str, local: dict[str, Binding] | None = None) -> Binding | None:
        """What a name at the top of a module stands for: a kept binding, or ("import module", "name") for a foreign one."""
        binding = self.merger.resolve(source, name, local)
        if binding:
            return binding if binding[1] else None
        for statement in source.bindings.get(name, ()):
            foreign = import_target(statement, name, source.package)
            if foreign:
                return "import " + foreign[0], foreign[1]
        return None

    def text(self) -> str:
        body: list[ast.stmt] = []
        for source, statement in self.statements:
            renamed = Rename(self, source).visit(cloned(statement))
            body += renamed if isinstance(renamed, list) else [renamed]
        imports = [
            import_statement(binding, name) for binding, name in self.globals.items() if binding[0].startswith("import ")
        ]
        used = {node.id for part in body for node in walk(part) if isinstance(node, ast.Name)}
        tree = ast.Module([part for part in imports if part.names[0].asname in used] + body, [])
        return ast.unparse(ast.fix_missing_locations(tree))


def import_statement(binding: Binding, name: str) -> ast.Import | ast.ImportFrom:
    module, attribute = binding[0].removeprefix("import "), binding[1]
    alias = ast.alias(attribute or module, name)
    return ast.ImportFrom(module, [alias], 0) if attribute else ast.Import([alias])


def execution_order(merger: Merger) -> Iterator[Source]:
    """Modules after those that their tops import."""
    done: set[str] = set()
    reached = {module for module, _ in merger.kept} | set(merger.live)

    def visit(name: str) -> Iterator[Source]:
        source = merger.source(name)
        if source is None or name in done:
            return
        done.add(name)
        for statement in source.tree.body:
            for node in walk(statement) if not isinstance(statement, (ast.FunctionDef, ast.ClassDef)) else ():
                if isinstance(node, (ast.Import, ast.ImportFrom)):
                    for alias in node.names:
                        target = import_target(node, alias.asname or alias.name.partition(".")[0], source.package)
                        if target and merger.source(target[0]):
                            yield from visit(target[0])
                            if merger.source(f"{target[0]}.{target[1]}"):
                                yield from visit(f"{target[0]}.{target[1]}")
        if name in reached:
            yield source

    for name in merger.live:
        yield from visit(name)


def kept_statements(merger: Merger, source: Source) -> Iterator[ast.stmt]:
    """In the module's order, without imports, and classes with the methods that are reached."""
    names = {name for module, name in merger.kept if module == source.name}
    wanted = {id(part) for name in names for part in source.bindings[name]}
    everything = [part for parts in source.bindings.values() for part in parts] + source.registrations
    unique = list({id(part): part for part in everything}.values())
    places = {id(part): place for place, part in enumerate(source.order)}
    for statement in sorted(unique, key=lambda part: places[id(part)]):
        if isinstance(statement, (ast.Import, ast.ImportFrom)):
            continue
        if id(statement) not in wanted and id(statement) not in merger.done:
            continue
        if isinstance(statement, ast.ClassDef):
            statement = copy.copy(statement)
            # of settings, those that have their default's value and that nothing asks for are left out
            used = merger.attributes | merger.words if source.name.startswith("pgolf.config") else None
            statement.body = [
                part
                for part in statement.body
                if (not isinstance(part, ast.FunctionDef) or id(part) in merger.done)
                and (used is None or not isinstance(part, ast.AnnAssign) or ast.unparse(part.target) in used)
            ] or [ast.Pass()]
        yield statement


def short_names(least: int) -> Iterator[str]:
    for length in itertools.count(least):
        for letters in itertools.product(LETTERS, repeat=length):
            yield "".join(letters)


class Scope:
    """A function's local names, and what they are called."""

    def __init__(self, names: dict[str, str]):
        self.names = names
        self.imports: dict[str, Binding] = {}


class Rename(ast.NodeTransformer):
    def __init__(self, emitter: Emitter, source: Source):
        self.emitter, self.source = emitter, source
        self.scopes: list[Scope] = []
        self.in_class: list[set[str]] = []

    # ---- names

    def _name(self, name: str) -> str | ast.expr | None:
        """What to write for a name; None for a module of the package."""
        for scope in reversed(self.scopes):
            if name in scope.names:
                return scope.names[name]
            if name in scope.imports:
                binding = self.emitter.merger._followed(*scope.imports[name])
                return self.emitter.globals[binding] if binding and binding[1] else None
        if self.in_class and not self.scopes and name in self.in_class[-1]:
            return name
        binding = self.emitter.binding_of(self.source, name)
        if binding is None:
            return name if name not in self.source.bindings else None
        return self.emitter.globals[binding]

    def visit_Name(self, node: ast.Name) -> ast.AST:
        renamed = self._name(node.id)
        if renamed is None:
            return self._module_table(node.id)
        node.id = str(renamed)
        return node

    def _module(self, name: str) -> str | None:
        """The module of the package that a name stands for."""
        local = {alias: target for scope in self.scopes for alias, target in scope.imports.items()}
        if any(name in scope.names for scope in self.scopes):
            return None
        binding = self.emitter.merger.resolve(self.source, name, local)
        return binding[0] if binding and not binding[1] else None

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        if isinstance(node.value, ast.Name):
            module = self._module(node.value.id)
            if module:
                binding = self.emitter.merger._followed(module, node.attr)
                if binding and binding[1]:
                    return ast.copy_location(ast.Name(self.emitter.globals[binding], node.ctx), node)
        self.generic_visit(node)
        return node

    def _module_table(self, name: str) -> ast.AST:
        """A module as a value: an object with those of its names that a text of the program is equal to."""
        module = self._module(name)
        kept = [
            (binding, short)
            for binding, short in self.emitter.globals.items()
            if binding[0] == module and binding[1] in self.emitter.strings
        ]
        pairs = ", ".join(f"{binding[1]}={short}" for binding, short in kept)
        return ast.parse(f"__import__('types').SimpleNamespace({pairs})", mode="eval").body

    # ---- scopes

    def _enter(self, node: ast.AST, arguments: ast.arguments | None, body: list[ast.AST]) -> Scope:
        parameters = [] if arguments is None else all_arguments(arguments)
        jit = isinstance(node, ast.FunctionDef) and any("triton" in ast.unparse(part) for part in node.decorator_list)
        bound, imports, declared = names_bound(body)
        scope = Scope({})
        free = {name for part in body for n in walk(part) if isinstance(n, ast.Name) for name in [n.id]}
        outer = {new for one in self.scopes for new in one.names.values()}
        taken = set(outer) | set(keyword.kwlist) | {"self", "_"} | (set(dir(builtins)) & free) | {p for p in parameters}
        taken |= set(self.emitter.globals.values())
        short = (name for name in short_names(1) if name not in taken and name not in scope.names.values())
        for name in [*parameters, *(name for name in in_order(body) if name in bound and name not in parameters)]:
            if name in declared:
                continue
            fixed = name in parameters and (name in self.emitter.keywords or name in self.emitter.strings or jit)
            fixed = fixed or name == "_" or name.startswith("__")
            scope.names[name] = name if fixed else next(short)
        for alias, target in imports.items():
            imported = import_target(target, alias, self.source.package)
            if imported and self.emitter.merger.source(imported[0]):
                scope.imports[alias] = imported
            else:
                scope.names.setdefault(alias, next(short))
        return scope

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.decorator_list = [self.visit(part) for part in node.decorator_list]
        defaults(self, node.args)
        if self.scopes or not self.in_class:
            renamed = self._name(node.name)
            node.name = renamed if isinstance(renamed, str) else node.name
        held, self.in_class = self.in_class, []
        scope = self._enter(node, node.args, list(node.body))
        self.scopes.append(scope)
        for argument in argument_nodes(node.args):
            argument.arg = scope.names.get(argument.arg, argument.arg)
            if argument.annotation:
                argument.annotation = self.visit(argument.annotation)
        node.body = self._block(node.body) or [ast.Pass()]
        self.scopes.pop()
        self.in_class = held
        return node

    def visit_Lambda(self, node: ast.Lambda) -> ast.AST:
        defaults(self, node.args)
        scope = self._enter(node, node.args, [node.body])
        self.scopes.append(scope)
        for argument in argument_nodes(node.args):
            argument.arg = scope.names.get(argument.arg, argument.arg)
        node.body = self.visit(node.body)
        self.scopes.pop()
        return node

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        node.bases = [self.visit(part) for part in node.bases]
        node.keywords = [self.visit(part) for part in node.keywords]
        node.decorator_list = [self.visit(part) for part in node.decorator_list]
        renamed = self._name(node.name)
        node.name = renamed if isinstance(renamed, str) else node.name
        members, _, _ = names_bound(node.body)
        self.in_class.append(members)
        held, self.scopes = self.scopes, [] if not self.scopes else self.scopes
        body = []
        for part in node.body:
            body.append(self._member(part))
        node.body = body
        self.scopes = held
        self.in_class.pop()
        return node

    def _member(self, part: ast.stmt) -> ast.stmt:
        """A statement of a class: what it binds keeps its name."""
        if isinstance(part, ast.FunctionDef):
            return self.visit(part)
        if isinstance(part, ast.Assign):
            part.value = self.visit(part.value)
            return part
        if isinstance(part, ast.AnnAssign):
            part.value = self.visit(part.value) if part.value else None
            return part
        return self.visit(part)

    def _comprehension(self, node: ast.expr, parts: list[str]) -> ast.AST:
        generators = node.generators  # type: ignore[attr-defined]
        generators[0].iter = self.visit(generators[0].iter)
        targets = {n.id for g in generators for n in walk(g.target) if isinstance(n, ast.Name)}
        used = {n.id for n in walk(node) if isinstance(n, ast.Name)}
        outer = {new for one in self.scopes for new in one.names.values()}
        taken = outer | set(keyword.kwlist) | (set(dir(builtins)) & used) | {"self", "_"} | set(self.emitter.globals.values())
        short = (name for name in short_names(1) if name not in taken)
        self.scopes.append(Scope({name: name if name == "_" else next(short) for name in sorted(targets)}))
        for place, generator in enumerate(generators):
            generator.target = self.visit(generator.target)
            if place:
                generator.iter = self.visit(generator.iter)
            generator.ifs = [self.visit(part) for part in generator.ifs]
        for name in parts:
            setattr(node, name, self.visit(getattr(node, name)))
        self.scopes.pop()
        return node

    def visit_ListComp(self, node: ast.ListComp) -> ast.AST:
        return self._comprehension(node, ["elt"])

    def visit_SetComp(self, node: ast.SetComp) -> ast.AST:
        return self._comprehension(node, ["elt"])

    def visit_GeneratorExp(self, node: ast.GeneratorExp) -> ast.AST:
        return self._comprehension(node, ["elt"])

    def visit_DictComp(self, node: ast.DictComp) -> ast.AST:
        return self._comprehension(node, ["key", "value"])

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        if node.name:
            node.name = str(self._name(node.name))
        self.generic_visit(node)
        return node

    def visit_Global(self, node: ast.Global | ast.Nonlocal) -> ast.AST:
        node.names = [str(self._name(name)) for name in node.names]
        return node

    visit_Nonlocal = visit_Global

    def _block(self, body: list[ast.stmt]) -> list[ast.stmt]:
        statements: list[ast.stmt] = []
        for part in body:
            done = self.visit(part)
            statements += done if isinstance(done, list) else [] if done is None else [done]
        return statements

    def visit_Import(self, node: ast.Import) -> ast.AST | None:
        for alias in node.names:
            name = alias.asname or alias.name.partition(".")[0]
            renamed = self._name(name)
            if alias.asname or "." not in alias.name:
                alias.asname = str(renamed)
        return node

    def visit_ImportFrom(self, node: ast.ImportFrom) -> ast.AST | None:
        target = import_target(node, node.names[0].asname or node.names[0].name, self.source.package)
        if target and self.emitter.merger.source(target[0]):
            return None
        for alias in node.names:
            alias.asname = str(self._name(alias.asname or alias.name))
        return node

    def visit_keyword(self, node: ast.keyword) -> ast.AST:
        node.value = self.visit(node.value)
        return node

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        for name in ("body", "orelse", "finalbody"):
            block = getattr(node, name, None)
            if isinstance(block, list) and not block and name == "body" and not isinstance(node, ast.Module):
                node.body = [ast.Pass()]  # type: ignore[attr-defined]
        if isinstance(node, ast.Try) and not node.handlers and not node.finalbody:
            node.finalbody = [ast.Pass()]
        return node


def in_order(body: list) -> list[str]:
    """Names in the order in which they come first."""
    placed = sorted(
        ((n.lineno, n.col_offset, getattr(n, "id", getattr(n, "name", ""))) for part in body for n in walk(part)
         if isinstance(n, (ast.Name, ast.FunctionDef, ast.ClassDef, ast.ExceptHandler)) and hasattr(n, "lineno")),
    )  # fmt: skip
    return list(dict.fromkeys(str(name) for _, _, name in placed if name))


def defaults(rename: Rename, arguments: ast.arguments) -> None:
    arguments.defaults = [rename.visit(part) for part in arguments.defaults]
    arguments.kw_defaults = [rename.visit(part) if part else None for part in arguments.kw_defaults]


def argument_nodes(arguments: ast.arguments) -> list[ast.arg]:
    nodes = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    return nodes + [one for one in (arguments.vararg, arguments.kwarg) if one]


def all_arguments(arguments: ast.arguments) -> list[str]:
    return [one.arg for one in argument_nodes(arguments)]


def names_bound(body: list) -> tuple[set[str], dict[str, ast.stmt], set[str]]:
    """What a block binds in its own scope, its imports by name, and names that it declares to be another scope's."""
    bound: set[str] = set()
    imports: dict[str, ast.stmt] = {}
    declared: set[str] = set()
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
            waiting += node.decorator_list
            continue
        if isinstance(node, ast.Lambda):
            continue
        if isinstance(node, (ast.ListComp, ast.SetComp, ast.GeneratorExp, ast.DictComp)):
            bound |= {part.target.id for part in walk(node) if isinstance(part, ast.NamedExpr)}
            continue
        if isinstance(node, (ast.Global, ast.Nonlocal)):
            declared |= set(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            bound.add(node.id)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            bound.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            for alias in node.names:
                imports[alias.asname or alias.name.partition(".")[0]] = node
        waiting += children(node)
    return bound - set(imports), imports, declared
