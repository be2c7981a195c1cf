"""Which fields of value classes the code of one module reads and sets, as mypy's types tell.

`unread_fields` asks this of every module and says what is never read or never set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from mypy import nodes, patterns, types

COPIES = frozenset({"dataclasses.replace", "copy.replace"})
REFLECTION = frozenset({"dataclasses.asdict", "dataclasses.astuple", "builtins.vars"})
HASHES = frozenset(
    {"builtins.dict", "builtins.set", "builtins.frozenset", "collections.Counter"}
    | {"typing.Mapping", "collections.defaultdict", "collections.OrderedDict"}
)
ATTRIBUTE = frozenset({"builtins.getattr", "operator.attrgetter"})


@dataclass(frozen=True, order=True)
class Field:
    """One field as its class declares it."""

    owner: str
    """Full name of the class."""
    name: str
    path: str
    line: int
    fixed: bool
    """Its default says that it is not used."""
    ordered: bool
    """Values of its class are sorted by their fields."""

    @property
    def full_name(self) -> str:
        return f"{self.owner}.{self.name}"


@dataclass
class Uses:
    """Full names of the fields that code reads and sets."""

    read: set[str] = field(default_factory=set)
    written: set[str] = field(default_factory=set)
    all_read: set[str] = field(default_factory=set)
    """Classes whose every field is read at once (unpacked, or written out by reflection)."""
    all_set: set[str] = field(default_factory=set)
    """Classes that are made from a mapping of fields."""
    through: set[tuple[str, frozenset[str]]] = field(default_factory=set)
    """Attributes read through protocols, with all members of the protocol."""
    members: dict[str, frozenset[str]] = field(default_factory=dict)
    """Attributes of each class."""

    def reads(self, one: Field) -> bool:
        """Whether anything reads the field."""
        if one.ordered or one.full_name in self.read or one.owner in self.all_read:
            return True
        mine = self.members.get(one.owner, frozenset())
        return any(one.name == name and needed <= mine for name, needed in self.through)


class UseFinder:
    """Collects the uses of one module. A node is looked at before what is below it."""

    def __init__(
        self,
        known: dict[nodes.Expression, types.Type],
        uses: Uses,
        order: Mapping[str, Sequence[str]],
    ) -> None:
        """`order`: fields by the class that declares them."""
        self.known, self.uses, self.order = known, uses, order
        self.words: set[str] = set()
        self.dynamic: list[types.Type] = []
        self.targets: set[nodes.Expression] = set()
        self.look: dict[type, Callable[..., None]] = {
            nodes.StrExpr: self._string,
            nodes.MemberExpr: self._member,
            nodes.AssignmentStmt: self._assignment,
            nodes.OperatorAssignmentStmt: self._operator_assignment,
            nodes.ForStmt: self._for,
            nodes.GeneratorExpr: self._generator,
            nodes.StarExpr: self._star,
            nodes.IndexExpr: self._index,
            patterns.ClassPattern: self._class_pattern,
            nodes.CallExpr: self._call,
            nodes.ClassDef: self._class,
        }

    def walk(self, top: nodes.Node) -> None:
        """mypy's own visitors cannot be inherited from where mypy is compiled."""
        left: list[nodes.Node] = [top]
        while left:
            node = left.pop()
            self.look.get(type(node), _nothing)(node)
            left += reversed(list(_below(node)))

    def finish(self) -> None:
        """Strings beside a `getattr` of a computed name may be that name."""
        for kind in self.dynamic:
            for word in self.words:
                self._mark(kind, word, self.uses.read)

    def _string(self, o: nodes.StrExpr) -> None:
        self.words.add(o.value)

    def _member(self, o: nodes.MemberExpr) -> None:
        kind = self.known.get(o.expr)
        if kind is None:
            return
        self._mark(kind, o.name, self.uses.written if o in self.targets else self.uses.read)
        for info in _infos(kind):
            if info.is_protocol and o not in self.targets:
                self.uses.through.add((o.name, frozenset(info.protocol_members)))

    def _class(self, o: nodes.ClassDef) -> None:
        names = frozenset(name for base in o.info.mro for name in base.names)
        self.uses.members[o.fullname] = names

    def _assignment(self, o: nodes.AssignmentStmt) -> None:
        for target in o.lvalues:
            self._target(target)
        if any(isinstance(x, nodes.TupleExpr) for x in o.lvalues):
            self._unpacked(self.known.get(o.rvalue))

    def _operator_assignment(self, o: nodes.OperatorAssignmentStmt) -> None:
        kind = self.known.get(o.lvalue.expr) if isinstance(o.lvalue, nodes.MemberExpr) else None
        if kind is not None and isinstance(o.lvalue, nodes.MemberExpr):
            self._mark(kind, o.lvalue.name, self.uses.written)
            self.targets.add(o.lvalue)

    def _for(self, o: nodes.ForStmt) -> None:
        if isinstance(o.index, nodes.TupleExpr):
            self._unpacked(o.inferred_item_type)

    def _generator(self, o: nodes.GeneratorExpr) -> None:
        for index, sequence in zip(o.indices, o.sequences, strict=True):
            kind = types.get_proper_type(self.known.get(sequence))
            if isinstance(index, nodes.TupleExpr) and isinstance(kind, types.Instance):
                for argument in kind.args:
                    self._unpacked(argument)

    def _star(self, o: nodes.StarExpr) -> None:
        self._unpacked(self.known.get(o.expr))

    def _index(self, o: nodes.IndexExpr) -> None:
        self._unpacked(self.known.get(o.base))

    def _class_pattern(self, o: patterns.ClassPattern) -> None:
        info = o.class_ref.node
        if isinstance(info, nodes.TypeInfo):
            names = [*o.keyword_keys, *self._positions(info)[: len(o.positionals)]]
            for name in names:
                self._mark_in(info, name, self.uses.read)

    def _call(self, o: nodes.CallExpr) -> None:
        callee = o.callee.fullname if isinstance(o.callee, nodes.RefExpr) else ""
        first = self.known.get(o.args[0]) if o.args else None
        if callee in COPIES and first is not None:
            self._keywords(first, o)
        elif callee in REFLECTION and first is not None:
            self._unpacked(first, always=True)
        elif callee in ATTRIBUTE and first is not None:
            self._getattr(o, first)
        self._construction(o)
        for actual, kind in zip(o.args, o.arg_kinds, strict=True):
            if kind == nodes.ARG_STAR:
                self._unpacked(self.known.get(actual))

    def _construction(self, o: nodes.CallExpr) -> None:
        made = _made(self.known.get(o.callee), self.known.get(o))
        if made is None:
            if isinstance(o.callee, nodes.MemberExpr) and o.callee.name in ("_replace", "_asdict"):
                kind = self.known.get(o.callee.expr)
                if kind is not None and o.callee.name == "_replace":
                    self._keywords(kind, o)
                elif kind is not None:
                    self._unpacked(kind, always=True)
            return
        positions = self._positions(made)
        for k, (kind, name) in enumerate(zip(o.arg_kinds, o.arg_names, strict=True)):
            if kind in (nodes.ARG_STAR, nodes.ARG_STAR2):
                self.uses.all_set.update(base.fullname for base in made.mro)
            elif name is not None:
                self._mark_in(made, name, self.uses.written)
            elif k < len(positions):
                self._mark_in(made, positions[k], self.uses.written)

    def _keywords(self, kind: types.Type, call: nodes.CallExpr) -> None:
        for info in _infos(kind):
            if nodes.ARG_STAR2 in call.arg_kinds:
                self.uses.all_set.update(base.fullname for base in info.mro)
            for name in call.arg_names:
                if name is not None:
                    self._mark_in(info, name, self.uses.written)

    def _getattr(self, call: nodes.CallExpr, first: types.Type) -> None:
        if len(call.args) > 1 and isinstance(call.args[1], nodes.StrExpr):
            self._mark(first, call.args[1].value, self.uses.read)
        else:
            self.dynamic.append(first)

    def _target(self, target: nodes.Expression) -> None:
        if isinstance(target, nodes.MemberExpr):
            self.targets.add(target)
        elif isinstance(target, nodes.TupleExpr | nodes.ListExpr):
            for item in target.items:
                self._target(item)

    def _unpacked(self, kind: types.Type | None, always: bool = False) -> None:
        for info in _infos(kind):
            if always or info.is_named_tuple or any(b.is_named_tuple for b in info.mro):
                self.uses.all_read.update(base.fullname for base in info.mro)

    def _mark(self, kind: types.Type, name: str, into: set[str]) -> None:
        for info in _infos(kind):
            self._mark_in(info, name, into)

    def _positions(self, info: nodes.TypeInfo) -> list[str]:
        """Fields as a constructor takes them."""
        bases = (base.fullname for base in reversed(info.mro))
        return list(dict.fromkeys(name for base in bases for name in self.order.get(base, ())))

    @staticmethod
    def _mark_in(info: nodes.TypeInfo, name: str, into: set[str]) -> None:
        """The class that declares the name; its bases too: a protocol may stand for it."""
        into.update(f"{base.fullname}.{name}" for base in info.mro if name in base.names)


_ASIDE = frozenset({"node", "info", "type", "variable"})
"""Attributes of nodes that lead out of the tree."""


def _nothing(_node: nodes.Node) -> None:
    """Nothing to see in a node of another type."""


def _below(node: object) -> Iterator[nodes.Node]:
    names = _MORE.get(type(node), getattr(node, "__match_args__", ()))
    yield from _nodes(getattr(node, name) for name in names if name not in _ASIDE)


_MORE: dict[type, tuple[str, ...]] = {
    nodes.MypyFile: ("defs",),
    nodes.ClassDef: ("decorators", "defs"),
    nodes.FuncDef: ("arguments", "body"),
    nodes.LambdaExpr: ("arguments", "body"),
    nodes.OverloadedFuncDef: ("items", "impl"),
    nodes.AssignmentStmt: ("lvalues", "rvalue"),
    patterns.AsPattern: ("pattern",),
    patterns.OrPattern: ("patterns",),
    patterns.SequencePattern: ("patterns",),
    patterns.ValuePattern: ("expr",),
    patterns.MappingPattern: ("keys", "values"),
    patterns.ClassPattern: ("positionals", "keyword_values"),
}
"""Children of node types that do not list theirs."""


def _nodes(value: object) -> Iterator[nodes.Node]:
    if isinstance(value, nodes.Node):
        yield value
    elif isinstance(value, Iterable) and not isinstance(value, str | bytes):
        for item in value:
            yield from _nodes(item)


def hashed(kind: types.Type) -> Iterator[str]:
    """Classes whose values are keys of a mapping or members of a set: every field counts."""
    proper = types.get_proper_type(kind)
    if isinstance(proper, types.Instance) and proper.type.fullname in HASHES:
        for info in _infos(proper.args[0]):
            yield from (base.fullname for base in info.mro)


def _made(callee: types.Type | None, result: types.Type | None) -> nodes.TypeInfo | None:
    """The class of which a call makes an instance, or None."""
    proper = types.get_proper_type(callee)
    is_class = isinstance(proper, types.TypeType) or (
        isinstance(proper, types.FunctionLike) and proper.is_type_obj()
    )
    return next(iter(_infos(result)), None) if is_class else None


def _infos(kind: types.Type | None) -> Iterable[nodes.TypeInfo]:
    """The classes a value of this type may be of."""
    proper = types.get_proper_type(kind)
    if isinstance(proper, types.Instance):
        yield proper.type
    elif isinstance(proper, types.TupleType):
        yield proper.partial_fallback.type
    elif isinstance(proper, types.UnionType):
        for item in proper.items:
            yield from _infos(item)
    elif isinstance(proper, types.TypeVarType):
        yield from _infos(proper.upper_bound)
        for value in proper.values:
            yield from _infos(value)
    elif isinstance(proper, types.TypeType):
        yield from _infos(proper.item)
