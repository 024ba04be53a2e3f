"""Docstrings read as prose: numpydoc and Google style in, clean English sentences and *See Also* names out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

# Stands where a formula or a cross-reference without a title was; a sentence that still holds it is dropped.
_HOLE = "\x01"
_DOT = "\x02"  # the full stop of an abbreviation, while sentences are split

_KINDS = {
    **dict.fromkeys(("note", "notes", "warning", "warnings"), "notes"),
    **dict.fromkeys(("return", "returns", "yields"), "returns"),
    **dict.fromkeys(("example", "examples"), "examples"),
    **dict.fromkeys(("see also",), "see also"),
    **dict.fromkeys(("parameters", "other parameters", "args", "arguments", "keyword args", "keyword arguments"), "parameters"),
}
_GOOGLE = re.compile(
    r"(\s*)(Notes?|Warnings?|Returns?|Yields|Examples?|See also|Parameters|Arg(?:ument)?s|Keyword Arg(?:ument)?s"
    r"|Shape|Raises|References|Attributes|Inputs|Outputs|Variables)\s*::?\s*",
    re.IGNORECASE,
)
_RULE = re.compile(r"\s*([-=~^])\1{2,}\s*")
_SIGNATURE = re.compile(r"[\w.]+\(.*")
_DIRECTIVE = re.compile(r"(\s*)\.\.\s+(?:([\w-]+)::|\[|_|\|)\s*(.*)")
_PROSE_DIRECTIVES = {"note", "warning", "important", "tip", "hint", "caution", "attention"}
_TABLE = re.compile(r"\s*[=+|-][\s=+|-]{3,}")
_BULLET = re.compile(r"\s*(?:[-*+•]|\d+[.)]|\(\w\))\s+")
_GOOGLE_ENTRY = re.compile(r"[*`\w][\w*`, .]*(?:\([^()]*(?:\([^()]*\)[^()]*)*\))?\s*:\s+(?=\S)")

_MATH = re.compile(r":math:`([^`]*)`|\$([^$]+)\$")
_ROLE = re.compile(r":(?:[\w+-]+:)*([\w+-]+):`([^`]*)`")
_ABBREVIATION = re.compile(r"\b(?:[ei]\.[eg]\.|(?:etc|vs|cf|al|Fig|Eq|eq|resp|approx|No|Ref|Sec|[Cc]h|pp?|Vol)\.)")
# The next sentence begins with a capital, a number, or an identifier that is called or dotted, such as torch.zeros.
_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?(?:[A-Z0-9`]|[a-z_]\w*[.(]\w))")
_NAMES = re.compile(r"[~!]?([A-Za-z_][\w.]*)")


@dataclass(frozen=True)
class Docstring:
    """The one-line `summary`, further `sentences` as (kind, sentence) in reading order, and the `see_also` names.

    Kinds: extended, notes, returns, examples, parameters. Sentences that hold formulas are left out.
    """

    summary: str
    sentences: tuple[tuple[str, str], ...]
    see_also: tuple[str, ...]


def parse(text: str) -> Docstring:
    """Return what a docstring says, in sentences without markup; the summary is "" where it says nothing."""
    summary = ""
    sentences: list[tuple[str, str]] = []
    see_also: list[str] = []
    for kind, numpy_style, lines in _sections(_without_signature(text.expandtabs().splitlines())):
        if kind == "see also":
            see_also.extend(_see_also(lines))
            continue
        see_also.extend(_inline_see_also(lines))
        blocks = _entries(lines, numpy_style) if kind in ("parameters", "returns") else [lines]
        for paragraph in (paragraph for block in blocks for paragraph in _paragraphs(block)):
            parts = _split(_clean(paragraph))
            if not summary and kind == "extended" and parts:
                summary = " ".join(parts.pop(0).replace(_HOLE, " ").split())
            sentences.extend((kind, part) for part in parts if _HOLE not in part)
    return Docstring(summary, tuple(sentences), tuple(dict.fromkeys(see_also)))


def _without_signature(lines: list[str]) -> list[str]:
    """Drop leading paragraphs that are call signatures, as ufuncs and torch's builtins have them."""
    start = 0
    while start < len(lines):
        end = next((place for place in range(start, len(lines)) if not lines[place].strip()), len(lines))
        paragraph = " ".join(line.strip() for line in lines[start:end])
        if paragraph and not (_SIGNATURE.match(paragraph) and re.search(r"\)\s*(?:->.*)?$", lines[start])):
            # A signature right above the prose, without a blank line between them.
            return lines[start:]
        signatures = start
        while signatures < end and _SIGNATURE.match(lines[signatures].strip()):
            signatures += 1
        start = signatures if signatures < end else end + 1
    return []


def _sections(lines: list[str]) -> Iterator[tuple[str, bool, list[str]]]:
    """Yield (kind, numpydoc?, lines); what is under a heading nobody needs, such as References, is left out."""
    kind, numpy_style, body, indent = "extended", False, list[str](), -1
    place = 0
    while place < len(lines):
        line = lines[place]
        google = _GOOGLE.fullmatch(line)
        if line.strip() and place + 1 < len(lines) and _RULE.fullmatch(lines[place + 1]):
            yield kind, numpy_style, body
            kind, numpy_style, body, indent = _KINDS.get(line.strip().lower(), ""), True, [], -1
            if not kind and numpy_style and line.strip().lower() not in _SILENT:
                kind = "notes"  # a heading of the author's own
            place += 2
            continue
        if google and not numpy_style:
            yield kind, numpy_style, body
            kind, body, indent = _KINDS.get(" ".join(google[2].lower().split()), ""), [], len(google[1])
        elif indent >= 0 and line.strip() and _indent(line) <= indent:
            yield kind, numpy_style, body
            kind, body, indent = "extended", [line], -1
        elif kind:
            body.append(line)
        place += 1
    yield kind, numpy_style, body


_SILENT = {"references", "methods", "attributes", "raises", "warns", "shape", "inputs", "outputs", "routine listings"}


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def _paragraphs(lines: list[str]) -> Iterator[str]:
    """Yield paragraphs of prose; code, tables, formulas, footnotes and directives are left out."""
    words: list[str] = []
    skip_deeper = -1  # inside a directive or a literal block: skip lines indented deeper than this
    indent = 0  # of the line before
    skip_block = False  # inside a table or an example: skip up to the next blank line
    for line in [*lines, ""]:
        if not line.strip():
            skip_block = False
            if words:
                yield " ".join(words).removesuffix("::")
                if words[-1].endswith("::"):
                    skip_deeper = max(skip_deeper, indent)
            words = []
            continue
        if skip_block or (skip_deeper >= 0 and _indent(line) > skip_deeper):
            continue
        skip_deeper, indent = -1, _indent(line)
        directive, bullet = _DIRECTIVE.match(line), _BULLET.match(line)
        if directive or bullet or line.lstrip().startswith(">>>") or _TABLE.match(line):
            if words:
                yield " ".join(words).removesuffix("::")
            words = []
        if directive:
            if directive[2] in _PROSE_DIRECTIVES:
                words = [directive[3]] if directive[3] else []
            else:
                skip_deeper = indent
        elif bullet:
            words = [line[bullet.end() :].strip()]
        elif line.lstrip().startswith(">>>") or _TABLE.match(line):
            skip_block = True
        else:
            words.append(line.strip())


def _entries(lines: list[str], numpy_style: bool) -> list[list[str]]:
    """Return the description of each parameter or return value, without its name and type."""
    filled = [line for line in lines if line.strip()]
    base = min(map(_indent, filled), default=0)
    if numpy_style and not any(_indent(line) > base for line in filled):
        return [lines]  # a Returns section in plain prose
    blocks: list[list[str]] = []
    for line in lines:
        if line.strip() and _indent(line) == base:
            match = None if numpy_style else _GOOGLE_ENTRY.match(line.strip())
            blocks.append([] if numpy_style else [line.strip()[match.end() if match else 0 :]])
        elif blocks:
            blocks[-1].append(line)
    return blocks


def _clean(paragraph: str) -> str:
    """Return a paragraph without reStructuredText markup; formulas and untitled references become holes."""
    text = paragraph.replace("\\ ", "")
    text = _MATH.sub(lambda match: _symbol(match[1] or match[2]), text)
    text = _ROLE.sub(lambda match: _reference(match[1], match[2]), text)
    text = re.sub(r"``(.*?)``", r"\1", text)
    text = re.sub(r"`([^`<]*?)\s*<[^`>]*>`_{0,2}", r"\1", text)  # `title <address>`_
    text = re.sub(r"`([^`]*)`_{0,2}", r"\1", text)
    text = re.sub(r"\s*\[[\w#*.-]+\]_", "", text)
    text = re.sub(r"(?<![\w*])\*{1,2}(?=\S)([^*]+?)(?<=\S)\*{1,2}(?![\w*])", r"\1", text)
    text = text.replace("\\", _HOLE)
    return " ".join(text.split())


def _symbol(formula: str) -> str:
    return formula if re.fullmatch(r"[A-Za-z]\w?", formula) else _HOLE


def _reference(role: str, content: str) -> str:
    titled = re.fullmatch(r"(.*?)\s*<[^>]*>", content, re.DOTALL)
    if titled:
        return titled[1]
    if role in ("ref", "doc", "cite", "footcite", "issue", "pr"):
        return _HOLE
    return content[1:].rpartition(".")[2] if content.startswith("~") else content.removeprefix("!")


def _split(text: str) -> list[str]:
    """Return the sentences of one paragraph."""
    guarded = _ABBREVIATION.sub(lambda match: match[0].replace(".", _DOT), text)
    return [part.replace(_DOT, ".").strip() for part in _SENTENCE_END.split(guarded) if part.strip()]


def _see_also(lines: list[str]) -> Iterator[str]:
    """Yield the names of a numpydoc See Also section: "a, b : description", the names perhaps in roles or backticks."""
    base = min((_indent(line) for line in lines if line.strip()), default=0)
    for line in lines:
        if line.strip() and _indent(line) == base:
            names = re.sub(r":(?:[\w+-]+:)*[\w+-]+:`", "`", line)
            names = re.split(r"\s:(?:\s|$)|:\s", names, maxsplit=1)[0]
            for name in names.split(","):
                if match := _NAMES.fullmatch(name.strip().strip("`").removesuffix("()").rstrip(".:")):
                    yield match[1]


def _inline_see_also(lines: list[str]) -> Iterator[str]:
    """Yield the names in `.. seealso::` blocks and after "See also" in a line of prose, torch's way to say it."""
    inside = -1  # the indent of the directive or the line that began it
    for line in lines:
        start = re.search(r"\.\. seealso::|\bSee also\b", line, re.IGNORECASE)
        if start:
            inside = _indent(line)
        elif line.strip() and _indent(line) <= inside:
            inside = -1
        if inside >= 0:
            for match in _ROLE.finditer(line, start.end() if start else 0):
                if match[1] in ("func", "class", "meth", "obj") and (name := _NAMES.fullmatch(match[2])):
                    yield name[1]
