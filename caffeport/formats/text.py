"""Text files: protobuf's text format read into messages, through their descriptors.

`parse_text` takes what real Caffe takes, and is as strict wherever the file would be a guess: a field
given twice, `2.0` for a whole number, a number that runs into the next field. It goes further only where
nothing is guessed: a byte-order mark is skipped, a field that the schema lacks is skipped with a warning,
and a V1 layer type that the schema lacks is kept by name (V1LayerParameter.type_name).

Source: protobuf's text format specification; what real Caffe 1.0 accepts and refuses.
"""

import codecs
import math
import re
from bisect import bisect_right
from collections.abc import Callable
from difflib import get_close_matches
from functools import cache
from typing import Any, NamedTuple, NoReturn

from google.protobuf.descriptor import FieldDescriptor

from ..errors import FormatError
from .schema import Message

MAX_DEPTH = 100  # of nested messages, as in protobuf's own parsers
MAX_WARNINGS = 1000  # in one file; what lies beyond is counted

_SPACE = r"(?:[ \t\r\n\v\f]++|\#[^\n]*+)*+"
_TOKEN = re.compile(
    _SPACE
    + r"""(?:
      (?P<name>   [A-Za-z_][A-Za-z0-9_]*+ )
    | (?P<number> (?: 0[xX][0-9a-fA-F]++
                    | (?: [0-9]++(?:\.[0-9]*+)?+ | \.[0-9]++ ) (?:[eE][+-]?[0-9]++)?+ [fF]?+ ) (?![A-Za-z0-9_.]) )
    | (?P<string> "[^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+" | '[^'\\\n]*+(?:\\[^\n][^'\\\n]*+)*+' )
    | (?P<symbol> [][{}<>:;,-] )
    | (?P<end>    \Z )
    )""",
    re.VERBOSE,
)
_SKIP = re.compile(_SPACE, re.VERBOSE)
_OCTAL = re.compile(r"0[0-7]+")
_DECIMAL = re.compile(r"0|[1-9][0-9]*")
_HEX = re.compile(r"0[xX][0-9a-fA-F]+")
_LEADING_ZERO = re.compile(r"0[0-9xX]")

# Long runs of plain floats, `data: 0.1 data: 0.2` and `[0.1, 0.2, `, are read at once, CHUNK at a time.
_CHUNK = 10_000
_PLAIN = r"-?+(?:(?:0|[1-9][0-9]*+)(?:\.[0-9]*+)?+|\.[0-9]++)(?:[eE][+-]?+[0-9]++)?+"
_PLAIN_NUMBER = re.compile(_PLAIN)
_LIST_RUN = re.compile(rf"(?:{_PLAIN}\s*+,\s*+){{2,{_CHUNK}}}+", re.ASCII)

_ESCAPE = re.compile(
    r"""\\(?: (?P<octal> [0-7]{1,3} )
    | [xX](?P<hex> [0-9a-fA-F]{1,2} )
    | (?P<pair> u[dD][89abAB][0-9a-fA-F]{2} \\u[dD][c-fC-F][0-9a-fA-F]{2} )  # one character in UTF-16
    | u(?P<short> [0-9a-fA-F]{4} )
    | U(?P<long> [0-9a-fA-F]{8} )
    | (?P<simple> [abfnrtv\\'"?] ) )""",
    re.VERBOSE,
)
_SIMPLE_ESCAPES = dict(zip("abfnrtv\\'\"?", b"\a\b\f\n\r\t\v\\'\"?", strict=True))

_CLOSERS = {"{": "}", "<": ">"}
_BOOLS = {"true": True, "True": True, "t": True, "false": False, "False": False, "f": False}


class _Field(NamedTuple):
    """What the parser needs to know of one field of the schema."""

    name: str
    kind: str  # "message", "string", "bytes", "enum", "bool", "float", "double", "int32", ...
    repeated: bool
    values: dict[str, int]  # of an enum
    owner: str  # the message's name
    run: re.Pattern[str] | None  # several plain floats in turn, each with the field's name


_KINDS = {
    number: name.removeprefix("TYPE_").lower() for name, number in vars(FieldDescriptor).items() if name[:5] == "TYPE_"
}
_INTEGER_RANGES = {
    "int32": (-(2**31), 2**31 - 1),
    "int64": (-(2**63), 2**63 - 1),
    "uint32": (0, 2**32 - 1),
    "uint64": (0, 2**64 - 1),
}


def parse_text(text: str | bytes, message: Message, path: str) -> list[str]:
    """Fill `message`, of any class of the schema, from `text`; `path` names the file in messages.

    Returns warnings, each with its `path:line:column: `. Line and column count from 1, columns in characters.
    Raises FormatError, with the place and what was expected. Time and memory are linear in the length of `text`.
    """
    parser = _Parser(_decode(text, path), path)
    parser.read_message(message)
    return parser.all_warnings()


def _decode(text: str | bytes, path: str) -> str:
    """Characters of the file. Bytes that are not UTF-8 become surrogates: comments may hold them, strings may not."""
    if isinstance(text, bytes):
        if text.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise FormatError(f"{path}:1:1: a byte-order mark of UTF-16, expected UTF-8; save the file as UTF-8")
        text = text.decode("utf-8", errors="surrogateescape")
    return text.removeprefix("\ufeff")


@cache
def _fields(descriptor: Any) -> dict[str, _Field]:
    fields = {}
    for field in descriptor.fields:
        kind = _KINDS[field.type]
        run = None
        if field.is_repeated and kind in ("float", "double"):
            run = re.compile(rf"(?:{field.name}\s*+:\s*+{_PLAIN}(?![A-Za-z0-9_.])\s*+){{2,{_CHUNK}}}+", re.ASCII)
        values = {value.name: value.number for value in field.enum_type.values} if kind == "enum" else {}
        fields[field.name] = _Field(field.name, kind, field.is_repeated, values, descriptor.name, run)
    return fields


class _Parser:
    """One pass over the text. `kind`, `token` and `start` are the token at hand, `end` is the position behind it."""

    def __init__(self, text: str, path: str) -> None:
        self.text = text
        self.path = path
        self.warnings: list[str] = []
        self.unlisted = 0
        self.depth = 0
        self.line_starts: list[int] = []
        self.end = 0
        self.advance()

    # Places and messages

    def place(self, position: int) -> str:
        if not self.line_starts:
            self.line_starts = [0, *(match.end() for match in re.finditer("\n", self.text))]
        line = bisect_right(self.line_starts, position)
        return f"{self.path}:{line}:{position - self.line_starts[line - 1] + 1}"

    def fail(self, message: str, position: int | None = None) -> NoReturn:
        raise FormatError(f"{self.place(self.start if position is None else position)}: {message}")

    def warn(self, position: int, message: str) -> None:
        if len(self.warnings) < MAX_WARNINGS:
            self.warnings.append(f"{self.place(position)}: {message}")
        else:
            self.unlisted += 1

    def all_warnings(self) -> list[str]:
        more = [f"{self.path}: {self.unlisted:,} more warnings are not listed"] if self.unlisted else []
        return self.warnings + more

    def shown(self) -> str:
        """The token at hand, for a message."""
        if self.kind == "end":
            return "the end of the file"
        token = self.token if len(self.token) <= 60 else f"{self.token[:57]}..."
        return _visible(token)

    # Tokens

    def advance(self) -> None:
        match = _TOKEN.match(self.text, self.end)
        if match is None:
            self.fail_at_no_token()
        self.kind = match.lastgroup
        self.token = match[match.lastgroup]  # type: ignore[index]  # one group always matches
        self.start = match.start(match.lastgroup)  # type: ignore[arg-type]
        self.end = match.end()

    def jump(self, position: int) -> None:
        self.end = position
        self.advance()

    def fail_at_no_token(self) -> NoReturn:
        match = _SKIP.match(self.text, self.end)
        assert match is not None  # it may be empty, but it always matches
        start = match.end()
        character = self.text[start]
        if character in "\"'":
            self.fail(f"a string must end on its line, expected {character}", start)
        if character in "0123456789.":
            word = re.compile(r"[\w.+-]{1,40}").match(self.text, start)
            self.fail(f"expected a number with a space or a separator after it, got {word and word[0]!r}", start)
        if character == "$":
            self.fail("this is a template: fill in its $ placeholders first", start)
        if "\ud800" <= character <= "\udfff":
            self.fail(f"byte 0x{ord(character) & 0xFF:02x} is not UTF-8", start)
        self.fail(f"expected a field name or a value, got character {character!r}", start)

    def take(self, symbol: str) -> bool:
        """Whether the token at hand is `symbol`; if so, go past it."""
        if self.token != symbol or self.kind != "symbol":
            return False
        self.advance()
        return True

    # Messages

    def read_message(self, message: Message, closer: str | None = None, opened: int = 0) -> None:
        """Fields up to `closer` (at hand afterwards), or up to the end of the file for the outermost message."""
        fields = _fields(message.DESCRIPTOR)
        while self.kind == "name":
            field = fields.get(self.token)
            if field is None:
                self.skip_unknown(message.DESCRIPTOR)
            elif field.run is None or not self.read_run(message, field):
                self.read_field(message, field)
            if self.token == ";" or self.token == ",":
                self.take(self.token)
        if closer is None:
            if self.kind != "end":
                self.fail(f"expected a field name, got {self.shown()}")
        elif self.token != closer or self.kind != "symbol":
            if self.kind == "end":
                self.fail(f"the file ends, expected '{closer}' for the '{self.text[opened]}' of {self.place(opened)}")
            self.fail(f"expected a field name or '{closer}', got {self.shown()}")

    def read_field(self, message: Message, field: _Field) -> None:
        start = self.start
        self.advance()
        if field.kind == "message":
            self.take(":")
            read: Callable[[Message, _Field], None] = self.read_submessage
        else:
            if not self.take(":"):
                self.fail(f"expected ':' after {field.name}, got {self.shown()}")
            read = self.read_value
        if field.repeated:
            if self.kind == "symbol" and self.token == "[":
                self.read_list(message, field, read)
                return
        elif message.HasField(field.name) or (field.kind == "enum" and _kept_type(message, field)):
            self.fail(f"{field.name} is given twice in {field.owner}, which has one", start)
        read(message, field)

    def read_submessage(self, message: Message, field: _Field) -> None:
        opened = self.start
        closer = self.open(field.name)
        inner = getattr(message, field.name).add() if field.repeated else getattr(message, field.name)
        if not field.repeated:
            inner.SetInParent()
        self.read_message(inner, closer, opened)
        self.close()

    def open(self, name: str) -> str:
        """Go past the '{' or '<' at hand; returns what closes it."""
        closer = _CLOSERS.get(self.token) if self.kind == "symbol" else None
        if closer is None:
            self.fail(f"expected '{{' after {name}, got {self.shown()}")
        self.depth += 1
        if self.depth > MAX_DEPTH:
            self.fail(f"messages are nested more than {MAX_DEPTH} deep")
        self.advance()
        return closer

    def close(self) -> None:
        self.depth -= 1
        self.advance()

    def read_list(self, message: Message, field: _Field, read: Callable[[Message, _Field], None]) -> None:
        opened = self.start
        self.advance()
        if self.take("]"):
            return
        while True:
            while field.run and self.kind in ("number", "symbol"):
                run = _LIST_RUN.match(self.text, self.start)
                if run is None:
                    break
                getattr(message, field.name).extend(map(float, _PLAIN_NUMBER.findall(run[0])))
                self.jump(run.end())
            read(message, field)
            if self.take("]"):
                return
            if not self.take(","):
                self.fail(f"expected ',' or ']' for the '[' of {self.place(opened)}, got {self.shown()}")

    def read_run(self, message: Message, field: _Field) -> bool:
        """Read `name: float` as often as it comes, if it comes twice or more."""
        assert field.run is not None
        run = field.run.match(self.text, self.start)
        if run is None:
            return False
        numbers = run[0].replace(field.name, " ")
        getattr(message, field.name).extend(map(float, _PLAIN_NUMBER.findall(numbers)))
        self.jump(run.end())
        return True

    # Values

    def read_value(self, message: Message, field: _Field) -> None:
        kind = field.kind
        if kind in ("string", "bytes"):
            value: Any = self.read_string(field)
        elif kind in ("float", "double"):
            value = self.read_float(field)
        elif kind == "bool":
            value = self.read_bool(field)
        elif kind == "enum":
            value = self.read_enum(message, field)
            if value is None:
                return
        else:
            value = self.read_integer(field)
        if field.repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)

    def read_string(self, field: _Field) -> str | bytes:
        """Adjacent strings, joined. Escapes give bytes, which together must be UTF-8 unless the field holds bytes."""
        if self.kind == "name" and field.name == "type":
            self.fail(f'expected a string, got {self.token}; in `layer` write type: "{self.token}", with quotes')
        if self.kind != "string":
            self.fail(f"expected a string for {field.name}, got {self.shown()}")
        start = self.start
        parts = []
        while self.kind == "string":
            parts.append(self.unescape(self.token[1:-1], self.start + 1))
            self.advance()
        value = b"".join(parts)
        if field.kind == "bytes":
            return value
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            byte = value[error.start]
            self.fail(f"byte 0x{byte:02x} in {field.name} is not UTF-8; save the file as UTF-8", start)

    def unescape(self, raw: str, start: int) -> bytes:
        """The bytes that the inside of a string at position `start` stands for."""
        pieces = []
        done = 0
        while (at := raw.find("\\", done)) >= 0:
            pieces.append(raw[done:at].encode("utf-8", "surrogateescape"))
            match = _ESCAPE.match(raw, at)
            value = _escape_value(match) if match else None
            if match is None or value is None:
                advice = "write a backslash as \\\\, or a path with /"
                self.fail(f"\\{_visible(raw[at + 1])} is not an escape of text format; {advice}", start + at)
            pieces.append(value)
            done = match.end()
        pieces.append(self.encode(raw[done:], start + done))
        return b"".join(pieces)

    def encode(self, raw: str, start: int) -> bytes:
        try:
            return raw.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:  # a str that never was a file can hold any surrogate
            self.fail(f"character U+{ord(raw[error.start]):04X} cannot be written as UTF-8", start + error.start)

    def read_sign(self) -> bool:
        return self.take("-")

    def read_float(self, field: _Field) -> float:
        start = self.start
        sign = -1.0 if self.read_sign() else 1.0
        word = self.token
        if self.kind == "name" and word.lower() in ("inf", "infinity", "nan"):
            value = math.nan if word.lower() == "nan" else math.inf
        elif self.kind != "number":
            self.fail(f"expected a number for {field.name}, got {self.shown()}", start)
        elif _LEADING_ZERO.match(word):
            self.fail(f"expected a decimal number for {field.name}, got {self.shown()}", start)
        else:
            value = float(word.rstrip("fF"))
        self.advance()
        return sign * value

    def read_integer(self, field: _Field) -> int:
        start = self.start
        sign = -1 if self.read_sign() else 1
        low, high = _INTEGER_RANGES[field.kind]
        value = _integer(self.token) if self.kind == "number" else None
        if value is None:
            self.fail(f"expected a whole number for {field.name}, got {self.shown()}", start)
        value *= sign
        if not low <= value <= high:
            self.fail(f"expected {low} to {high} for {field.name}, got {'-' if sign < 0 else ''}{self.shown()}", start)
        self.advance()
        return value

    def read_bool(self, field: _Field) -> bool:
        value: int | None = None
        if self.kind in ("name", "number"):
            value = _BOOLS.get(self.token) if self.kind == "name" else _integer(self.token)
        if value not in (0, 1):
            self.fail(f"expected true or false for {field.name}, got {self.shown()}")
        self.advance()
        return bool(value)

    def read_enum(self, message: Message, field: _Field) -> int | None:
        """The value's number; None for an unknown engine, and where a V1 layer's type was kept in type_name."""
        start = self.start
        sign = "-" if self.read_sign() else ""
        word = sign + self.shown()
        if self.kind == "string":
            advice = '; `layers` (V1) want type: CONVOLUTION, `layer` (V2) wants type: "Convolution"'
            advice = advice if _is_v1_type(field) else ""
            self.fail(f"expected a name without quotes for {field.name}, got {word}{advice}", start)
        if self.kind == "number":
            number = _integer(self.token)
            value = next((known for known in field.values.values() if known == number and not sign), None)
        elif self.kind == "name" and not sign:
            value = field.values.get(self.token)
        else:
            self.fail(f"expected one of {', '.join(field.values)} for {field.name}, got {word}", start)
        if value is None and field.name == "engine":  # which library computes; forks have more of them
            self.warn(start, f"unknown value {word} of engine in {field.owner}, ignored")
        elif value is None:
            if not _is_v1_type(field) or sign:
                near = get_close_matches(word.upper(), field.values, n=1)
                advice = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(field.values)}"
                self.fail(f"unknown value {word} of {field.name} in {field.owner}; {advice}", start)
            message.type_name = self.token
        self.advance()
        return value

    # What the schema lacks

    def skip_unknown(self, descriptor: Any) -> None:
        """Skip the field at hand, whatever it holds, with a warning."""
        start, name = self.start, self.token
        self.warn(start, f"unknown field {name!r} in {descriptor.name}, ignored{_hint(name, descriptor)}")
        self.skip_field()

    def skip_field(self) -> None:
        name = self.token
        self.advance()
        has_colon = self.take(":")
        self.skip_value(name, has_colon)
        if self.token == ";" or self.token == ",":
            self.take(self.token)

    def skip_value(self, name: str, scalar_allowed: bool = True) -> None:
        if self.kind == "symbol" and self.token in _CLOSERS:
            opened = self.start
            closer = self.open(name)
            while self.kind == "name":
                self.skip_field()
            if not (self.kind == "symbol" and self.token == closer):
                self.fail(f"expected a field or '{closer}' for what opens at {self.place(opened)}, got {self.shown()}")
            self.close()
        elif self.kind == "symbol" and self.token == "[":
            self.skip_list(name)
        elif not scalar_allowed:
            self.fail(f"expected ':' or '{{' after {name}, got {self.shown()}")
        elif self.kind == "string":
            while self.kind == "string":
                self.advance()
        else:
            self.read_sign()
            if self.kind not in ("name", "number"):
                self.fail(f"expected a value for {name}, got {self.shown()}")
            self.advance()

    def skip_list(self, name: str) -> None:
        self.advance()
        if self.take("]"):
            return
        while True:
            if self.kind == "symbol" and self.token == "[":
                self.fail(f"expected a value in the list {name}, got a list")
            self.skip_value(name)
            if self.take("]"):
                return
            if not self.take(","):
                self.fail(f"expected ',' or ']' in the list {name}, got {self.shown()}")


def _visible(text: str) -> str:
    return text if text.isprintable() else ascii(text)


def _is_v1_type(field: _Field) -> bool:
    return field.owner == "V1LayerParameter" and field.name == "type"


def _kept_type(message: Message, field: _Field) -> bool:
    return _is_v1_type(field) and message.HasField("type_name")


@cache
def _hint(name: str, descriptor: Any) -> str:
    # The ending that every parameter message shares would make any two of them alike.
    known = {field.removesuffix("_param"): field for field in _fields(descriptor)}
    near = get_close_matches(name.lower().removesuffix("_param"), known, n=1, cutoff=0.82)
    return f"; did you mean {known[near[0]]!r}?" if near else ""


def _integer(word: str) -> int | None:
    """Decimal, hexadecimal (0x) or octal (0...); None if `word` is none of these or absurdly long."""
    if len(word) > 40:
        return None
    if _DECIMAL.fullmatch(word):
        return int(word)
    if _HEX.fullmatch(word):
        return int(word, 16)
    return int(word, 8) if _OCTAL.fullmatch(word) else None


def _escape_value(match: re.Match[str]) -> bytes | None:
    """Bytes of one escape; None for a code point that does not exist."""
    kind, digits = match.lastgroup, match[match.lastgroup or 0]
    if kind == "simple":
        return bytes([_SIMPLE_ESCAPES[digits]])
    if kind == "octal":
        return bytes([int(digits, 8) & 0xFF])
    if kind == "hex":
        return bytes([int(digits, 16)])
    if kind == "pair":
        high, low = int(digits[1:5], 16), int(digits[7:11], 16)
        code = 0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00)
    else:
        code = int(digits, 16)
    if code > 0x10FFFF or 0xD800 <= code <= 0xDFFF:
        return None
    return chr(code).encode("utf-8")
