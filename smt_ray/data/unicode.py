"""What the bytes of a text say of its encoding."""

import codecs

HEAD = 1 << 16  # bytes at the start of a file that are looked at
ZEROS = 0.001  # share of zero bytes above which they are no text
MARKS = {  # the longer ones first: that of UTF-16 begins that of UTF-32
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}
INNER = bytes(range(0x80, 0xC0))
"""Bytes of UTF-8 that continue a character."""


def unmarked(content: bytes, file: object) -> bytes:
    """Return the start of a text without the byte order mark of UTF-8.

    Args:
        content: the start of the file `file`, or all of it.
        file: its name, for the error.

    Raises:
        ValueError: if it is of another encoding, or binary.
    """
    for name, marks in MARKS.items():
        if content.startswith(marks):
            raise ValueError(f"{file}: is {name}; convert it with iconv -f {name} -t UTF-8")
    head = content[:HEAD]
    zeros = head.count(0)
    if zeros > ZEROS * len(head):
        raise ValueError(
            f"{file}: {zeros} of its first {len(head)} bytes are zero, so it is binary or UTF-16; "
            "give UTF-8 text, or the bytes as an .npy file"
        )
    return content.removeprefix(codecs.BOM_UTF8)


def last_character(block: bytes) -> int:
    """Return where the last character of UTF-8 begins; 0 if none does."""
    return max(0, len(block.rstrip(INNER)) - 1)
