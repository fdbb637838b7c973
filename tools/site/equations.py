"""Lines of Python that compute something as the equations that they are.

What a line holds beyond mathematics (types, devices, shapes) is left out, as a paper would; a line with anything that
is not known here has no equation.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping

from .markup import Html, MathError, math

LEAST = 2
"""Operations that make a line an equation that is worth to be read."""
MOST = 80
"""Signs of an equation, at most."""
GREEK = frozenset(
    "alpha beta gamma delta epsilon zeta eta theta kappa lambda mu nu xi rho sigma tau phi chi psi omega".split()  # noqa: SIM905
)
SAME = frozenset(
    "float double half bfloat16 long int bool to type_as detach clone contiguous unsqueeze squeeze view reshape expand "  # noqa: SIM905
    "expand_as flatten unflatten item cpu tolist requires_grad_ as_tensor tensor broadcast_to view_as".split()
)
"""What changes how a value is stored or laid out, and not the value."""
REDUCING = frozenset(
    "softmax log_softmax mean median std var max min amax amin argmax argmin prod cumsum cumprod logsumexp".split()  # noqa: SIM905
)
"""Functions that go over a dimension, which is left out."""
NAMED = REDUCING | frozenset(
    "exp log sin cos tanh sigmoid relu gelu maximum minimum sign round floor ceil cosine_similarity cross_entropy "  # noqa: SIM905
    "linear erf softplus lgamma log1p log2".split()
)
WRITTEN = frozenset({"exp", "log", "sin", "cos", "tanh", "max", "min"})
"""Functions that LaTeX has a command for."""
FREE = frozenset({"dim", "keepdim", "dtype", "device", "correction", "initial"})
"""Arguments by name that change no value, or only over what it is taken."""
BUILDING = frozenset(
    "arange full zeros ones zeros_like ones_like repeat array map list range tuple dict set where".split()  # noqa: SIM905
)
"""Functions that build data and compute nothing."""
SHAPED = frozenset("sqrt abs len norm normalize square pow sum t transpose".split())  # noqa: SIM905
"""Functions with a sign of their own."""
COMPARED = {ast.Lt: "<", ast.LtE: r"\le", ast.Gt: ">", ast.GtE: r"\ge", ast.Eq: "=", ast.NotEq: r"\ne"}
ADDED, TIMES, POWER, WHOLE = 1, 2, 3, 4
"""How closely an expression binds."""


class _Unknown(Exception):
    """Something that is no mathematics."""


def equations(text: str) -> dict[int, Html]:
    """First line of a statement -> its equation as MathML, of a module."""
    found = {}
    for function in ast.walk(ast.parse(text)):
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("__"):
            for statement in _statements(function):
                if latex := _equation(statement, function.name):
                    found[statement.lineno] = latex
    return found


def _statements(function: ast.FunctionDef) -> Iterator[ast.stmt]:
    """Those of a function, without those of functions inside of it."""
    todo: list[ast.stmt] = list(function.body)
    while todo:
        one = todo.pop(0)
        if isinstance(one, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            continue
        yield one
        for part in ("body", "orelse"):
            todo += getattr(one, part, [])


def _equation(statement: ast.stmt, function: str) -> Html | None:
    writer = _Writer()
    try:
        match statement:
            case ast.Assign(targets=[target], value=value):
                again = any(ast.dump(one) == ast.dump(target).replace("Store()", "Load()") for one in ast.walk(value))
                becomes = r"\leftarrow" if again else "="
                latex = f"{writer.write(target)} {becomes} {writer.write(value)}"
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                latex = f"{writer.write(target)} = {writer.write(value)}"
            case ast.AugAssign(target=target, op=op, value=value):
                writer.operations += 1
                sign = {ast.Add: "+", ast.Sub: "-", ast.Mult: r"\cdot"}.get(type(op))
                if sign is None:
                    return None
                name = writer.write(target)
                latex = rf"{name} \leftarrow {name} {sign} {writer.write(value, ADDED if sign == '+' else TIMES)}"
            case ast.Return(value=ast.expr() as value):
                latex = f"{_name(function)} = {writer.write(value)}"
            case _:
                return None
        shown = len(re.sub(r"\\(?:text|frac|sqrt)\b|[\\{}\s]", "", latex))
        return math(latex, display=True) if writer.operations >= LEAST and shown <= MOST else None
    except (_Unknown, MathError, RecursionError):
        return None


def _name(name: str) -> str:
    """A name of the code as a symbol: a letter with its index, or a word."""
    name = name.strip("_")
    head, _, rest = name.partition("_")
    if head in GREEK or len(head) == 1:
        symbol = rf"\{head}" if head in GREEK else head
        return rf"{symbol}_{{\text{{{rest.replace('_', ' ')}}}}}" if rest else symbol
    if match := re.fullmatch(r"([A-Za-z])(\d+)", name):
        return f"{match[1]}_{{{match[2]}}}"
    if not name:
        raise _Unknown
    return rf"\text{{{name.replace('_', ' ')}}}"


class _Writer:
    """Writes an expression, and counts its operations."""

    def __init__(self) -> None:
        self.operations = 0
        self.fractions = 0

    def write(self, node: ast.expr, least: int = 0) -> str:
        """The LaTeX of an expression, in brackets where it binds less closely than `least`."""
        latex, binds = self._written(node)
        return latex if binds >= least else rf"({latex})"

    def _written(self, node: ast.expr) -> tuple[str, int]:
        match node:
            case ast.Constant(value=bool() | str() | None):
                raise _Unknown
            case ast.Constant(value=int() | float() as value):
                return _number(value), WHOLE
            case ast.Name(id=name):
                return _name(name), WHOLE
            case ast.Attribute(value=value, attr="T" | "mT" | "H"):
                return rf"{self.write(value, WHOLE)}^{{\top}}", POWER
            case ast.Attribute(value=ast.Name(id="self"), attr=name):
                return _name(name), WHOLE
            case ast.Attribute(value=ast.Name(id="math"), attr="pi"):
                return r"\pi", WHOLE
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return f"-{self.write(operand, TIMES)}", ADDED
            case ast.UnaryOp(op=ast.Invert(), operand=operand):
                return rf"\lnot {self.write(operand, WHOLE)}", POWER
            case ast.BinOp():
                return self._operation(node)
            case ast.Compare(left=left, ops=[op], comparators=[right]) if type(op) in COMPARED:
                self.operations += 1  # 1 where it holds, else 0
                return rf"[{self.write(left, ADDED)} {COMPARED[type(op)]} {self.write(right, ADDED)}]", WHOLE
            case ast.Subscript(value=value, slice=index):
                return self._indexed(value, index)
            case ast.Call():
                return self._call(node)
        raise _Unknown

    def _operation(self, node: ast.BinOp) -> tuple[str, int]:
        self.operations += 1
        left, right = node.left, node.right
        match node.op:
            case ast.Add():
                return f"{self.write(left, ADDED)} + {self.write(right, ADDED)}", ADDED
            case ast.Sub():
                return f"{self.write(left, ADDED)} - {self.write(right, TIMES)}", ADDED
            case ast.Mult():
                return rf"{self.write(left, TIMES)} \cdot {self.write(right, TIMES)}", TIMES
            case ast.MatMult():
                return rf"{self.write(left, TIMES)} \, {self.write(right, TIMES)}", TIMES
            case ast.Div() if self.fractions == 0:
                self.fractions += 1
                latex = rf"\frac{{{self.write(left)}}}{{{self.write(right)}}}"
                self.fractions -= 1
                return latex, WHOLE
            case ast.Div():
                return f"{self.write(left, TIMES)} / {self.write(right, POWER)}", TIMES
            case ast.Pow():
                return f"{self.write(left, WHOLE)}^{{{self.write(right)}}}", POWER
        raise _Unknown

    def _indexed(self, value: ast.expr, index: ast.expr) -> tuple[str, int]:
        parts = index.elts if isinstance(index, ast.Tuple) else [index]
        kept = [one for one in parts if not _is_everything(one)]
        if any(isinstance(one, ast.Slice) for one in kept) or len(kept) > 2:
            raise _Unknown
        base = self.write(value, WHOLE)
        if not kept:
            return base, WHOLE
        if "_{" in base:
            raise _Unknown  # an index of an index
        operations = self.operations
        index_ = ", ".join(self.write(one) for one in kept)
        self.operations = operations
        return f"{base}_{{{index_}}}", WHOLE

    def _call(self, node: ast.Call) -> tuple[str, int]:
        """A function of mathematics, or one of the module by its name."""
        arguments, builtin = list(node.args), False
        match node.func:
            case ast.Name(id="float" | "int" | "bool") if len(arguments) == 1:
                return self._written(arguments[0])
            case ast.Name(id=name):
                builtin = True
            case ast.Attribute(value=ast.Name(id="torch" | "math" | "F" | "np"), attr=name):
                pass
            case ast.Attribute(value=ast.Name(id="self")):
                raise _Unknown
            case ast.Attribute(value=value, attr=name) if name in SAME:
                return self._written(value)
            case ast.Attribute(value=value, attr=name) if name in NAMED | SHAPED | {"clamp"}:
                arguments = [value, *arguments]
            case _:
                raise _Unknown
        if not arguments or name in BUILDING or name[0].isupper() or any(isinstance(a, ast.Starred) for a in arguments):
            raise _Unknown
        if name == "clamp":
            return self._clamped(arguments, {one.arg: one.value for one in node.keywords})
        if any(one.arg not in FREE for one in node.keywords):
            raise _Unknown
        if builtin and name in ("sum", "max", "min") and isinstance(arguments[0], ast.GeneratorExp):
            return self._over(name, arguments[0])
        if name in SAME:
            return self._written(arguments[0])
        if name in SHAPED:
            return self._shaped(name, arguments)
        self.operations += name in NAMED
        if name in REDUCING and not builtin:
            arguments = [arguments[0], *(one for one in arguments[1:] if not _is_dimension(one))]
        word = rf"\{name}" if name in WRITTEN else _name(name)
        return rf"{word}({', '.join(self.write(one) for one in arguments)})", WHOLE

    def _shaped(self, name: str, arguments: list[ast.expr]) -> tuple[str, int]:
        """A function that has a sign of its own."""
        inside = self.write(arguments[0], WHOLE if name in ("square", "pow", "t", "transpose") else 0)
        self.operations += name not in ("len", "t", "transpose")
        match name:
            case "sqrt":
                return rf"\sqrt{{{inside}}}", WHOLE
            case "abs" | "len":
                return rf"|{inside}|", WHOLE
            case "norm":
                return rf"\lVert {inside} \rVert", WHOLE
            case "normalize":
                return rf"\frac{{{inside}}}{{\lVert {inside} \rVert}}", WHOLE
            case "square":
                return f"{inside}^{{2}}", POWER
            case "pow" if len(arguments) == 2:
                return f"{inside}^{{{self.write(arguments[1])}}}", POWER
            case "sum":
                return rf"\sum {self.write(arguments[0], TIMES)}", TIMES
            case "t" | "transpose":
                return rf"{inside}^{{\top}}", POWER
        raise _Unknown

    def _clamped(self, arguments: list[ast.expr], named: Mapping[str | None, ast.expr]) -> tuple[str, int]:
        """A value between two bounds, or beside one of them."""
        self.operations += 1
        value, *bounds = (self.write(one) for one in arguments)
        low, high = (self.write(named[side]) if side in named else None for side in ("min", "max"))
        match bounds:
            case [least]:
                low = least
            case [least, most]:
                low, high = least, most
        if low is not None and high is not None:
            return rf"\min(\max({value}, {low}), {high})", WHOLE
        if low is None and high is None:
            raise _Unknown
        return rf"\{'min' if low is None else 'max'}({value}, {low if high is None else high})", WHOLE

    def _over(self, name: str, generator: ast.GeneratorExp) -> tuple[str, int]:
        """A sum, or the largest or smallest, over what a loop goes through."""
        match generator.generators:
            case [ast.comprehension(target=ast.Name() as target, iter=iterated, ifs=[])]:
                self.operations += 1
                sign = r"\sum" if name == "sum" else rf"\{name}"
                under = rf"{sign}_{{{self.write(target)} \in {self.write(iterated)}}}"
                return f"{under} {self.write(generator.elt, TIMES)}", TIMES
        raise _Unknown


def _is_everything(index: ast.expr) -> bool:
    """Whether an index leaves a dimension as it is: `:`, `...` or `None`."""
    if isinstance(index, ast.Slice):
        return index.lower is None and index.upper is None and index.step is None
    return isinstance(index, ast.Constant) and index.value in (None, ...)


def _is_dimension(node: ast.expr) -> bool:
    """Whether an argument is a plain whole number, as the dimension of a reduction is."""
    match node:
        case ast.Constant(value=int()) | ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int())):
            return True
    return False


def _number(value: int | float) -> str:
    text = f"{value:g}" if isinstance(value, float) else str(value)
    mantissa, e, exponent = text.partition("e")
    if not e:
        return text
    power = f"10^{{{int(exponent)}}}"
    return power if mantissa == "1" else rf"{mantissa} \cdot {power}"
