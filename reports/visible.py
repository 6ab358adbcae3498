"""Text of models made safe to look at: what no eye sees, or what would act on the page, is written out."""

from __future__ import annotations

import html
import unicodedata

# Line ends and tabs are layout; the two joiners are part of words in Indic scripts, Persian and emoji.
_KEPT = "\n\t\u200c\u200d"
_HIDDEN = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}


def visible(text: str) -> str:
    """Replace control and formatting characters by signs for them.

    C0 controls and DEL become Unicode's pictures of them (ESC -> U+241B), so that escape sequences of terminals are
    read and not obeyed; bidirectional overrides, zero-width and other unseen or unassigned characters, and lone
    surrogates, which no file can hold, become their code point in brackets.

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
        return chr(0x2400 + code)
    if code == 0x7F:
        return "\u2421"
    return f"⟨U+{code:04X}⟩" if unicodedata.category(sign) in _HIDDEN and sign not in _KEPT else sign
