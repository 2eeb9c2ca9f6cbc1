"""Reads source text, writes nothing: what a module offers to others, as far as its text says.

Nothing is imported or run. A name that is bound under a condition, or more than once, is there
but no more is said of it: `Definition.certain` is false. Branches that Python 3 never takes
(`if sys.version_info < (3,):`) do not count, so that dropping them takes nothing away.
"""

import ast
import builtins
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TypeGuard


class Kind(StrEnum):
    """What a name stands for."""

    FUNCTION = "function"
    CLASSMETHOD = "classmethod"
    STATICMETHOD = "staticmethod"
    PROPERTY = "property"
    CLASS = "class"
    CONSTANT = "constant"
    """A name bound to a literal."""
    IMPORT = "import"
    """A name imported with `from ... import`."""
    OTHER = "other"
    """A decorated function, a name bound to a computed value, ..."""


COMPUTED = "?"
"""Stands for a default value that is not a literal."""
NOT_LITERAL = object()


@dataclass(frozen=True, slots=True)
class Definition:
    """What the text says of one name."""

    kind: Kind
    line: int
    certain: bool = True
    """It is bound once, whatever happens when the module is imported."""
    signature: str | None = None
    """Parameters with literal defaults by `repr` and others as `?`; None where it can't be known."""
    value: object = None
    """Of a constant; of an import, the module that it comes from."""
    bases: tuple[str, ...] | None = None
    """Of a class: `__name__` of each, without `object`; None where it can't be known."""
    members: Mapping[str, "Definition"] = field(default_factory=dict)
    """Of a class: its methods and attributes."""


@dataclass(frozen=True, slots=True)
class Surface:
    """What the text of a module says of its names."""

    names: Mapping[str, Definition]
    exported: tuple[str, ...] | None
    """`__all__`, where it is one literal; else None."""

    def public(self, path: str) -> Mapping[str, Definition]:
        """The names that others may use.

        Imported names are the module's own affair, unless `__all__` says otherwise or the module
        is a package's `__init__`, whose imports from the package are how it offers what is in it.
        """
        exported = set(self.exported or ())
        return {
            name: definition
            for name, definition in self.names.items()
            if name in exported
            or (
                not name.startswith("_") and (definition.kind is not Kind.IMPORT or _offers(path, definition))
            )
        }


def _offers(path: str, definition: Definition) -> bool:
    """True for all but imports; for those, where a package's `__init__` imports from the package."""
    if definition.kind is not Kind.IMPORT:
        return True
    *folders, file = path.split("/")
    source = str(definition.value)
    return file == "__init__.py" and (source.startswith(".") or source.split(".")[0] in folders)


def surface(tree: ast.Module) -> Surface:
    """What the module offers."""
    names = _definitions(tree.body, _Scope(tree))
    exported = names.get("__all__")
    listed: tuple[str, ...] | None = None
    if exported and exported.certain and isinstance(exported.value, list | tuple):
        listed = tuple(name for name in exported.value if isinstance(name, str))
    return Surface(names, listed)


class _Scope:
    """What has to be known of the whole module to say what one name is."""

    def __init__(self, tree: ast.Module) -> None:
        self.shared: set[str] = set()
        """Names that functions rebind, and attributes that are set from outside."""
        self.touched: set[str] = set()
        """Names whose value something may change in place."""
        self.aliases: dict[str, str] = {}
        """What an imported name is called where it comes from."""
        assigned = {node.id for node in ast.walk(tree) if _is_stored(node)}
        self.classes = {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)} - assigned
        for node in ast.walk(tree):
            match node:
                case ast.Global(names=names):
                    self.shared.update(names)
                case ast.Attribute(attr=attr, ctx=ast.Store() | ast.Del()):
                    self.shared.add(attr)
                case (
                    ast.Attribute(value=ast.Name(id=name))
                    | ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del())
                ):
                    self.touched.add(name)
                case ast.Call(args=args, keywords=keywords):
                    values = [*args, *(keyword.value for keyword in keywords)]
                    self.touched.update(value.id for value in values if isinstance(value, ast.Name))
                case ast.ImportFrom(names=imported):
                    self.aliases.update((one.asname or one.name, one.name) for one in imported)


def _is_stored(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)


def _definitions(body: Sequence[ast.stmt], scope: _Scope) -> dict[str, Definition]:
    """What the statements of a module or class bind, in order of first binding."""
    found: dict[str, Definition] = {}
    for statement, certain in _reached(body, True):
        for name, definition in _bound(statement, scope):
            known = found.get(name)
            once = certain and known is None and name not in scope.shared
            found[name] = replace(definition, certain=once)
        for name in _unbound(statement):
            found.pop(name, None)
    return found


def _reached(body: Sequence[ast.stmt], certain: bool) -> Iterator[tuple[ast.stmt, bool]]:
    """The statements that may run when the body does, and whether they do in any case."""
    for statement in body:
        match statement:
            case ast.If(test=test, body=then, orelse=otherwise):
                taken = _known(test)
                if taken is not False:
                    yield from _reached(then, certain and taken is True)
                if taken is not True:
                    yield from _reached(otherwise, certain and taken is False)
            case ast.Try() | ast.TryStar():
                handlers = [one for handler in statement.handlers for one in handler.body]
                yield from _reached([*statement.body, *handlers, *statement.orelse], False)
                yield from _reached(statement.finalbody, certain)
            case ast.With() | ast.AsyncWith():
                yield from _reached(statement.body, certain)
            case ast.For() | ast.While():
                yield from _reached([*statement.body, *statement.orelse], False)
            case ast.Match():
                yield from _reached([one for case in statement.cases for one in case.body], False)
            case _:
                yield statement, certain


def _known(test: ast.expr) -> bool | None:
    """Whether a condition on `sys.version_info` holds on every Python that is still in use (3.9 on)."""
    match test:
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            known = _known(operand)
            return None if known is None else not known
        case ast.Compare(left=left, ops=[operator], comparators=[right]):
            version = ast.unparse(left).removeprefix("sys.")
            try:
                than = ast.literal_eval(right)
            except ValueError:
                return None
            if version in ("version_info[0]", "version_info.major") and isinstance(than, int):
                return _compare((3, 9), operator, (than,), exact=True)
            if version == "version_info" and isinstance(than, tuple) and than[:1] != (3,):
                return _compare((3, 9), operator, than, exact=False)
            if version == "version_info" and isinstance(than, tuple) and than <= (3, 9):
                return _compare((3, 9, 0), operator, than, exact=False)
    return None


def _compare(
    ours: tuple[int, ...], operator: ast.cmpop, than: tuple[object, ...], *, exact: bool
) -> bool | None:
    """Our version against another, by major number alone where `exact`."""
    if not all(isinstance(part, int) for part in than):
        return None
    mine = ours[:1] if exact else ours
    match operator:
        case ast.Lt() | ast.LtE():
            return mine < than or (isinstance(operator, ast.LtE) and mine == than)
        case ast.Gt() | ast.GtE():
            return mine > than or (isinstance(operator, ast.GtE) and mine == than)
        case ast.Eq() if exact:
            return mine == than
        case ast.NotEq() if exact:
            return mine != than
    return None


def _unbound(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.Delete):
        return [target.id for target in statement.targets if isinstance(target, ast.Name)]
    return []


def _bound(statement: ast.stmt, scope: _Scope) -> list[tuple[str, Definition]]:
    """The names that one statement binds, with what it says of them."""
    line = statement.lineno
    match statement:
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            return [(statement.name, _function(statement))]
        case ast.ClassDef():
            return [(statement.name, _class(statement, scope))]
        case ast.ImportFrom(module=module, names=names, level=level) if module != "__future__":
            source = "." * level + (module or "")
            bound = [one.asname or one.name for one in names if one.name != "*"]
            return [(name, Definition(Kind.IMPORT, line, value=source)) for name in bound]
        case ast.Assign(targets=targets, value=value):
            return [
                (name.id, _assigned(name.id, value, line, scope, whole=isinstance(target, ast.Name)))
                for target in targets
                for name in ast.walk(target)
                if _is_stored(name)
            ]
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr()):
            return [(name, Definition(Kind.OTHER, line))]
        case ast.AugAssign(target=ast.Name(id=name)):
            return [(name, Definition(Kind.OTHER, line))]
    return []


def _assigned(name: str, value: ast.expr, line: int, scope: _Scope, *, whole: bool) -> Definition:
    """A name that is bound to a value: a constant if that is a literal which nothing changes."""
    literal = _literal(value) if whole else NOT_LITERAL
    if literal is NOT_LITERAL or (isinstance(literal, list | dict) and name in scope.touched):
        return Definition(Kind.OTHER, line)
    return Definition(Kind.CONSTANT, line, value=literal)


def _literal(value: ast.expr) -> object:
    """The value of a literal that is written the same in every process, which a set is not."""
    if any(isinstance(node, ast.Set | ast.Call) for node in ast.walk(value)):
        return NOT_LITERAL
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError):
        return NOT_LITERAL


_WRAPPERS = {"classmethod": Kind.CLASSMETHOD, "staticmethod": Kind.STATICMETHOD, "property": Kind.PROPERTY}


def _function(node: ast.FunctionDef | ast.AsyncFunctionDef) -> Definition:
    match node.decorator_list:
        case []:
            return Definition(Kind.FUNCTION, node.lineno, signature=signature(node.args))
        case [ast.Name(id=name)] if name in _WRAPPERS:
            kind = _WRAPPERS[name]
            shown = None if kind is Kind.PROPERTY else signature(node.args)
            return Definition(kind, node.lineno, signature=shown)
    return Definition(Kind.OTHER, node.lineno)


def signature(arguments: ast.arguments) -> str | None:
    """The parameters in one form: annotations left out, defaults by value.

    None where a name is mangled (`__a` in a class), which its text alone does not show.
    """
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults))
    shown = [
        argument.arg + _default(default)
        for argument, default in zip(positional, [*defaults, *arguments.defaults], strict=True)
    ]
    if arguments.posonlyargs:
        shown.insert(len(arguments.posonlyargs), "/")
    if arguments.vararg:
        shown.append(f"*{arguments.vararg.arg}")
    elif arguments.kwonlyargs:
        shown.append("*")
    shown += [
        argument.arg + _default(default)
        for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    ]
    if arguments.kwarg:
        shown.append(f"**{arguments.kwarg.arg}")
    mangled = any(one.lstrip("*").startswith("__") for one in shown)
    return None if mangled else f"({', '.join(shown)})"


def _default(value: ast.expr | None) -> str:
    if value is None:
        return ""
    literal = _literal(value)
    return f"={COMPUTED}" if literal is NOT_LITERAL else f"={literal!r}"


def _class(node: ast.ClassDef, scope: _Scope) -> Definition:
    names = [_base(base, scope) for base in node.bases]
    known = not node.keywords and not node.decorator_list
    bases = tuple(name for name in names if name and name != "object")
    certain = known and None not in names
    members = _definitions(node.body, scope)
    return Definition(Kind.CLASS, node.lineno, bases=bases if certain else None, members=members)


def _base(base: ast.expr, scope: _Scope) -> str | None:
    """What the base class calls itself, or None: aliases and computed bases."""
    match base:
        case ast.Attribute(attr=attr):
            return attr
        case ast.Name(id=name) if name in scope.classes:
            return name
        case ast.Name(id=name) if name in scope.aliases:
            return scope.aliases[name]
        case ast.Name(id=name) if isinstance(builtin := getattr(builtins, name, None), type):
            return builtin.__name__  # IOError is OSError
    return None
