"""Text of models made safe to look at: what no eye sees, or what would act on the page, is written out."""

from __future__ import annotations

import html
import unicodedata

# Line ends and tabs are layout; the two joiners are part of words in Indic scripts, Persian and emoji.
_KEPT = "\n\t\u200c\u200d"
_CONTROLS = (
    "NUL SOH STX ETX EOT ENQ ACK BEL BS HT LF VT FF CR SO SI DLE DC1 DC2 DC3 DC4 NAK SYN ETB CAN EM SUB ESC FS GS RS US"
).split()
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """Replace control and formatting characters by signs for them.

    C0 controls and DEL become their names (⟨ESC⟩), so that escape sequences of terminals are read and not obeyed;
    bidirectional overrides, zero-width and other unseen or unassigned characters, and lone surrogates, which no file
    can hold, become their code point (⟨U+202E⟩).

    Args:
        text: any string.

    Returns:
        The text with nothing unseen in it but line ends, tabs and the zero-width joiners.
    """
    return "".join(_shown(sign) for sign in text)


def inert(text: str, longest: int) -> str:
    """Return a label for a figure: visible, short, and without markup that plotly would follow.

    Args:
        text: any string.
        longest: characters kept.

    Returns:
        The label, its `<`, `>` and `&` as entities.
    """
    seen = visible(text).replace("\n", " ")
    return html.escape(seen if len(seen) <= longest else f"{seen[: longest - 1]}…")


def _shown(sign: str) -> str:
    if sign.isascii() and (sign.isprintable() or sign in _KEPT):
        return sign
    code = ord(sign)
    if code < 0x20:
        return f"⟨{_CONTROLS[code]}⟩"
    if code == 0x7F:
        return "⟨DEL⟩"
    return f"⟨U+{code:04X}⟩" if unicodedata.category(sign) in _HIDDEN and sign not in _KEPT else sign
