"""The template of a network configuration, in the part of Go's text/template that containerd's documentation uses. Sans-IO.

Nodes that had containerd have such a file already (its `conf_template`), so it is read as it is:

    {{.PodCIDR}}  {{.PodCIDRRanges}} in {{range}}  {{.}}  {{$name}}  {{$.PodCIDR}}
    {{range .Routes}}  {{range $route := .Routes}}  {{range $i, $route := .Routes}}  {{else}}  {{end}}
    {{if $i}}  {{else}}  {{end}}  {{/* comment */}}  {{- and -}} take the white space beside them away

Whatever else Go knows (pipelines, functions, other templates) is refused with its line, not passed over: what it would have
made is the network of all pods.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

Scalar = str | int
Fields = Mapping[str, str | Sequence[str]]

_ACTION = re.compile(r"\{\{(-(?=\s))?(.*?)((?<=\s)-)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"\s*/\*.*\*/\s*", re.DOTALL)
_OPERAND = re.compile(r"\.|\.[A-Za-z]\w*|\$\.[A-Za-z]\w*|\$[A-Za-z]\w*")
_RANGE = re.compile(r"range\s+(?:(?:\$(?P<index>[A-Za-z]\w*)\s*,\s*)?\$(?P<value>[A-Za-z]\w*)\s*:=\s*)?(?P<operand>\S+)")
_IF = re.compile(r"if\s+(?P<operand>\S+)")
_DEEPEST = 8


def render(text: str, fields: Fields) -> str:
    """What the template makes of these fields.

    Raises:
        ValueError: an action that isn't known here, or that Go would refuse; with its line.
    """
    return "".join(_text(_parse(text, fields), _Scope(fields, fields)))


@dataclass(frozen=True)
class _Scope:
    """What names mean at one place: `.` is `dot`, `$` is `root`."""

    root: Fields
    dot: Fields | Scalar
    variables: Mapping[str, Scalar] = field(default_factory=dict)


@dataclass
class _Action:
    """One `{{...}}`: for `range` and `if`, with what stands up to their `else` and their `end`."""

    line: int
    words: str
    body: list[_Action | str] = field(default_factory=list)
    otherwise: list[_Action | str] = field(default_factory=list)

    def refused(self, why: str) -> ValueError:
        return ValueError(f"line {self.line}: {{{{{self.words}}}}}: {why}")


def _parse(text: str, fields: Fields) -> list[_Action | str]:
    top: list[_Action | str] = []
    into = top
    opened: list[tuple[_Action, list[_Action | str]]] = []  # with the list to go on with after its end
    position, trim = 0, False
    for match in _ACTION.finditer(text):
        before = text[position : match.start()]
        position = match.end()
        before = before.lstrip() if trim else before
        into.append(before.rstrip() if match[1] else before)
        trim = bool(match[3])
        action = _Action(text.count("\n", 0, match.start()) + 1, match[2].strip())
        if _COMMENT.fullmatch(match[2]):
            continue
        if action.words == "end" and opened:
            _, into = opened.pop()
        elif action.words == "else" and opened and into is opened[-1][0].body:
            into = opened[-1][0].otherwise
        elif _RANGE.fullmatch(action.words) or _IF.fullmatch(action.words):
            if len(opened) == _DEEPEST:
                raise action.refused(f"it is nested deeper than {_DEEPEST}")
            into.append(action)
            opened.append((action, into))
            into = action.body
        elif _OPERAND.fullmatch(action.words):
            into.append(action)
        else:
            known = ", ".join(f".{name}" for name in fields)
            raise action.refused(f"it is not understood here; there are {known}, range, if, else and end")
    if opened:
        raise opened[-1][0].refused("it has no end")
    rest = text[position:]
    if "{{" in rest:
        raise ValueError(f"line {text.count(chr(10), 0, text.rindex('{{')) + 1}: an action has no }}}}")
    top.append(rest.lstrip() if trim else rest)
    return top


def _text(parts: Sequence[_Action | str], scope: _Scope) -> list[str]:
    made: list[str] = []
    for part in parts:
        if isinstance(part, str):
            made.append(part)
        elif match := _RANGE.fullmatch(part.words):
            items = _value(part, match["operand"], scope)
            if not isinstance(items, list | tuple):
                raise part.refused("range needs a list")
            for index, item in enumerate(items):
                new = {name: value for name, value in ((match["index"], index), (match["value"], item)) if name}
                made += _text(part.body, _Scope(scope.root, item, {**scope.variables, **new}))
            if not items:
                made += _text(part.otherwise, scope)
        elif match := _IF.fullmatch(part.words):
            made += _text(part.body if _value(part, match["operand"], scope) else part.otherwise, scope)
        else:
            value = _value(part, part.words, scope)
            if not isinstance(value, Scalar):
                raise part.refused("a list can't be printed; use range")
            made.append(str(value))
    return made


def _value(action: _Action, operand: str, scope: _Scope) -> Scalar | Sequence[str]:
    if not _OPERAND.fullmatch(operand):
        raise action.refused(f"{operand} is not understood here")
    if operand.startswith("$") and not operand.startswith("$."):
        if operand[1:] not in scope.variables:
            raise action.refused(f"there is no variable {operand} here")
        return scope.variables[operand[1:]]
    of, name = (scope.root, operand[2:]) if operand.startswith("$.") else (scope.dot, operand[1:])
    if not name:
        if isinstance(of, Mapping):
            raise action.refused("'.' is something only inside of range")
        return of
    if not isinstance(of, Mapping):
        raise action.refused(f"inside of range '.' is an element, and has no {operand}; use ${operand}")
    if name not in of:
        raise action.refused(f"there is no .{name}; there are {', '.join(f'.{known}' for known in of)}")
    return of[name]
