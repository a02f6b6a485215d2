"""Reads nvcc's PTX: entries, their parameters and shared arrays, instructions.

Source: NVIDIA, Parallel Thread Execution ISA 9.0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field


class PtxError(Exception):
    """The program does what it may not, or something that the interpreter does not know."""


@dataclass(frozen=True)
class Instruction:
    """``@!%p1 op.a.b x, y;`` is predicate "%p1", negated, op ("op", "a", "b"), operands ("x", "y")."""

    predicate: str | None
    negated: bool
    op: tuple[str, ...]
    operands: tuple[str, ...]
    text: str


@dataclass
class Variable:
    """An array of one memory space; the size of an external one is the launch's business."""

    name: str
    space: str
    alignment: int
    size: int
    external: bool = False


@dataclass
class Entry:
    """One kernel. Parameters have an offset in the parameter space; labels are indices of instructions."""

    name: str
    parameters: list[Variable] = field(default_factory=list)
    offsets: dict[str, int] = field(default_factory=dict)
    variables: list[Variable] = field(default_factory=list)
    registers: dict[str, str] = field(default_factory=dict)  # prefix, such as %rd: type, such as b64
    code: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)

    @property
    def parameter_bytes(self) -> int:
        last = self.parameters[-1] if self.parameters else None
        return self.offsets[last.name] + last.size if last else 0


SIZES = {"b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "pred": 1}
SIZES |= {"b32": 4, "u32": 4, "s32": 4, "f32": 4, "b64": 8, "u64": 8, "s64": 8, "f64": 8}

VARIABLE = re.compile(
    r"(?P<extern>\.extern\s+)?(?:\.visible\s+)?\.(?P<space>shared|local|const|global|param)\s+"
    r"(?:\.align\s+(?P<align>\d+)\s+)?\.(?P<type>\w+)\s+(?P<name>[\w$]+)(?:\[(?P<count>\d*)\])?"
)
ENTRY = re.compile(
    r"(?:\.visible\s+|\.weak\s+)?\.entry\s+(?P<name>[\w$]+)\s*\((?P<parameters>.*?)\)"
    r"(?P<hints>[^{;]*)\{(?P<body>.*?)\n\}",
    re.S,
)


def variable(text: str) -> Variable:
    """A declaration without initial values: those would be silently lost."""
    found = VARIABLE.match(text.strip())
    if not found or "=" in text:
        raise PtxError(f"unknown declaration: {text.strip()}")
    size = SIZES[found["type"]] * int(found["count"] or 1)
    alignment = int(found["align"] or SIZES[found["type"]])
    return Variable(found["name"], found["space"], alignment, size, bool(found["extern"]))


def entries(source: str) -> dict[str, Entry]:
    """All kernels of a PTX file, by mangled name."""
    source = re.sub(r"//[^\n]*", "", source)
    outside = ENTRY.sub("", source)
    if found := re.search(r"\.func\b.*", outside):
        raise PtxError(f"a function that was not inlined: {found[0]}")
    statements = (line.strip() for line in outside.split(";"))
    module = [variable(s[s.index(".extern") if ".extern" in s else 0 :]) for s in map(directiveless, statements) if s]
    found = (entry(match, module) for match in ENTRY.finditer(source))
    return {e.name: e for e in found}


def directiveless(text: str) -> str:
    return re.sub(r"\.(version|target|address_size)\s+[^\n]*", "", text).strip()


def entry(match: re.Match[str], module: list[Variable]) -> Entry:
    e = Entry(match["name"], variables=list(module))
    at = 0
    for text in filter(None, map(str.strip, match["parameters"].split(","))):
        p = variable(text)
        at = -(-at // p.alignment) * p.alignment
        e.parameters.append(p)
        e.offsets[p.name] = at
        at += p.size
    for statement in statements(match["body"]):
        if label := re.fullmatch(r"(\$?[\w$]+):", statement):
            e.labels[label[1]] = len(e.code)
        elif register := re.fullmatch(r"\.reg\s+\.(\w+)\s+(%\w+?)(?:<\d+>)?", statement):
            e.registers[register[2]] = register[1]
        elif VARIABLE.match(statement):
            e.variables.append(variable(statement))
        elif not re.match(r"\.(pragma|loc|file)\b", statement):
            e.code.append(instruction(statement))
    return e


def statements(body: str) -> list[str]:
    """Statements and labels in order. Braces that only open a scope are left out."""
    body = re.sub(r"(?m)^\s*[{}]\s*$", "", body)
    body = re.sub(r"(?m)^(\s*\$?[\w$]+:)", r"\1;", body)
    return [s for s in (" ".join(part.split()) for part in body.split(";")) if s]


def instruction(text: str) -> Instruction:
    found = re.fullmatch(r"(?:@(!?)(%p\d+) )?([a-z][\w.:]*)(?: (.*))?", text)
    if not found:
        raise PtxError(f"unknown statement: {text}")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", found[4] or "")
    return Instruction(found[2], found[1] == "!", tuple(found[3].split(".")), tuple(o.strip() for o in operands), text)
