"""What a text and a label id may hold, in one place for data sets, bundles and the service."""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

ID_BYTES = 256  # of UTF-8

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")  # Unicode's category Cc, whole


class TextFault(NamedTuple):
    """Why a text or an id is none: a code of the service's table, and words that follow its name: "is empty"."""

    code: str
    words: str


def text_fault(text: str) -> TextFault | None:
    r"""Return why `text` can be neither encoded, stored nor read, or None.

    It is empty when it shows nothing: whitespace and format characters (category Cf, such as U+200B) alone. U+0000 and
    half a surrogate pair (JSON's "\ud800") are in no text.
    """
    if "\0" in text:
        return TextFault("invalid_text", "holds the character U+0000")
    if not text.isascii() and _SURROGATE.search(text):
        return TextFault("invalid_text", "holds half a surrogate pair")
    if all(character.isspace() or unicodedata.category(character) == "Cf" for character in text):
        return TextFault("empty", "is empty")
    return None


def id_fault(name: str) -> TextFault | None:
    """Return why `name` cannot be a label's id, or None: 1 to 256 bytes of UTF-8 without control characters are allowed."""
    if not name:
        return TextFault("empty", "is empty")
    if control := _CONTROL.search(name):
        return TextFault("invalid_text", f"holds the control character U+{ord(control[0]):04X}")
    if not name.isascii() and _SURROGATE.search(name):
        return TextFault("invalid_text", "holds half a surrogate pair")
    if (size := len(name.encode())) > ID_BYTES:
        return TextFault("text_too_long", f"has {size} bytes of UTF-8; {ID_BYTES} are allowed")
    return None
