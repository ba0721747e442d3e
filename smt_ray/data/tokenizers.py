"""Tokenizers: text or bytes to token ids and back, and the source bytes that each token covers.

Three kinds: the 256 byte values, any Hugging Face `tokenizers` JSON file, and plain numbers for
sources that are no text. Each is saved into a directory as `tokenizer.json`, from which
`load_tokenizer` reads it again.
"""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from smt_ray.config import masked

if TYPE_CHECKING:  # it needs pyarrow, which to load an exported RNN does not
    from smt_ray.data.storage import Location

Integers = NDArray[np.integer[Any]]

FILE = "tokenizer.json"
SEPARATORS = ("<|endoftext|>", "<|end_of_text|>", "</s>", "<eos>", "[EOS]", "[SEP]")
CHUNK = 1 << 18  # characters that a JSON tokenizer encodes at once, for its memory
MEND = "give `bytes` or the path of a tokenizers JSON file (`tokenizer.json`)"


class Tokenizer(ABC):
    """Token ids of a text; `separator` stands between two documents and covers no source byte.

    `digest` is the same for tokenizers that give the same ids, wherever they were read from.
    """

    name: str
    digest: str
    vocabulary: int
    separator: int

    @abstractmethod
    def encode(self, text: str | bytes) -> Integers:
        """Return the token ids of `text`; what is no UTF-8 (half a surrogate pair) is replaced."""

    @abstractmethod
    def decode(self, ids: ArrayLike) -> str:
        """Return the text of `ids`."""

    @abstractmethod
    def covered(self, rows: Integers) -> Integers:
        """Return the number of source bytes that the ids of each row (N, L) cover."""

    @abstractmethod
    def save(self, directory: "Location") -> None:
        """Write `tokenizer.json` into `directory`."""


class ByteTokenizer(Tokenizer):
    """The 256 byte values; the separator is the byte 0, which text does not contain."""

    name = "bytes"
    digest = "bytes"
    vocabulary = 256
    separator = 0

    def encode(self, text: str | bytes) -> NDArray[np.uint8]:
        """Return the UTF-8 bytes."""
        return np.frombuffer(_utf8(text) if isinstance(text, str) else text, np.uint8)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of the bytes; incomplete characters become U+FFFD."""
        return np.asarray(ids, np.uint8).tobytes().decode(errors="replace")

    def covered(self, rows: Integers) -> Integers:
        """Return 1 for every id but the separator, which is 0."""
        return np.count_nonzero(rows, axis=1)

    def save(self, directory: "Location") -> None:
        """Write a JSON file that says `bytes`."""
        (directory / FILE).write_json({"smt_ray": self.name})


class NumberTokenizer(Tokenizer):
    """The ids of a source that is no text: its text is the numbers, with spaces between them."""

    name = "numbers"
    separator = 0

    def __init__(self, vocabulary: int) -> None:
        """Know the numbers 0..vocabulary-1."""
        self.vocabulary = vocabulary
        self.digest = f"{self.name}-{vocabulary}"

    def encode(self, text: str | bytes) -> NDArray[np.int32]:
        """Return the numbers.

        Raises:
            ValueError: naming the first word that is none of them.
        """
        words = (text.decode(errors="replace") if isinstance(text, bytes) else text).split()
        known = {str(number): number for number in range(self.vocabulary)}
        strange = next((word for word in words if word not in known), None)
        if strange is not None:
            rule = f"is none of the numbers 0..{self.vocabulary - 1} that this model knows"
            raise ValueError(f"{strange!r}: {rule}; give such numbers with spaces between them")
        return np.array([known[word] for word in words], np.int32)

    def decode(self, ids: ArrayLike) -> str:
        """Return the numbers with spaces between them."""
        return " ".join(map(str, np.asarray(ids).tolist()))

    def covered(self, rows: Integers) -> Integers:
        """Return 1 for every id: it stands for one number of its source."""
        return np.full(len(rows), rows.shape[1])

    def save(self, directory: "Location") -> None:
        """Write a JSON file with the vocabulary."""
        (directory / FILE).write_json({"smt_ray": self.name, "vocabulary": self.vocabulary})


class JsonTokenizer(Tokenizer):
    """A Hugging Face `tokenizers` file.

    The separator is its end-of-text token (one of `SEPARATORS`), or id 0 if it has none. Byte
    lengths are exact for byte-level and byte-fallback vocabularies; a tokenizer that drops
    characters (spaces around words, say) covers fewer bytes than its source has, so bits per byte
    come out too high.
    """

    def __init__(self, content: str, name: str) -> None:
        """Build from the JSON text.

        Raises:
            ValueError: if `content` is not a tokenizer.
        """
        from tokenizers import Tokenizer as Backend

        spec = json.loads(content)
        if not isinstance(spec, dict) or not isinstance(spec.get("model"), dict):
            raise ValueError(f"not a Hugging Face tokenizers JSON ({_json_kind(spec)})")
        self.name = name
        with _explained():
            self._backend = Backend.from_str(content)
        self._backend.no_truncation()  # a document is never cut or filled up
        self._backend.no_padding()
        names: dict[str, int] = self._backend.get_vocab(with_added_tokens=True)
        self.vocabulary = max(names.values(), default=-1) + 1
        if self.vocabulary < 2:
            raise ValueError(f"it has {self.vocabulary} tokens, fewer than 2")
        self.separator = next((names[text] for text in SEPARATORS if text in names), 0)
        self._lengths = _byte_lengths(spec, names, self.vocabulary)
        for index, added in self._backend.get_added_tokens_decoder().items():
            self._lengths[index] = 0 if added.special else len(added.content.encode())
        self._lengths[self.separator] = 0
        ids = {key: value for key, value in spec.items() if key not in {"truncation", "padding"}}
        self.digest = hashlib.sha256(json.dumps(ids, sort_keys=True).encode()).hexdigest()[:16]

    def encode(self, text: str | bytes) -> NDArray[np.int32]:
        """Return the ids without special tokens around them; a long text is cut at line ends.

        Raises:
            ValueError: if the tokenizer knows neither a part of the text nor an unknown token.
        """
        raw = text if isinstance(text, bytes) else _utf8(text)
        content = raw.decode(errors="replace")
        parts = [np.zeros(0, np.int32)]
        start = 0
        while start < len(content):
            stop = start + CHUNK
            if stop < len(content):
                stop = content.rfind("\n", start, stop) + 1 or stop
            with _explained(f"data.tokenizer={self.name!r}: cannot encode the text: "):
                ids = self._backend.encode(content[start:stop], add_special_tokens=False).ids
            parts.append(np.asarray(ids, np.int32))
            start = stop
        return np.concatenate(parts)

    def decode(self, ids: ArrayLike) -> str:
        """Return the text of `ids`, special tokens included."""
        return str(self._backend.decode(np.asarray(ids).tolist(), skip_special_tokens=False))

    def covered(self, rows: Integers) -> Integers:
        """Look the lengths up in a table made once."""
        return self._lengths[rows].sum(1)

    def save(self, directory: "Location") -> None:
        """Write the tokenizers JSON."""
        (directory / FILE).write_text(self._backend.to_str())


def load_tokenizer(location: "str | Path | Location") -> Tokenizer:
    """Return the tokenizer `bytes`, or the one in a JSON file or a directory that `save` wrote.

    Raises:
        ValueError: naming `data.tokenizer`, if nothing is there or it is no tokenizer.
    """
    if location == "bytes":
        return ByteTokenizer()
    try:
        content = _read(_place(location) if isinstance(location, str) else location)
        match _parsed(content):
            case {"smt_ray": "bytes"}:
                return ByteTokenizer()
            case {"smt_ray": "numbers", "vocabulary": int(vocabulary)}:
                return NumberTokenizer(vocabulary)
        return JsonTokenizer(content.decode(), masked(location))
    except (OSError, ValueError) as error:
        reason = masked(" ".join(str(error).split()))
        raise ValueError(f"data.tokenizer={masked(location)!r}: {reason}; {MEND}") from error


def _place(name: str) -> "Location":
    from smt_ray.data.storage import Location

    return Location.of(name)


def _read(file: "Path | Location") -> bytes:
    """Return the bytes of a tokenizer's file, or of the one in a directory."""
    if not file.is_dir():
        return file.read_bytes()
    names = [found.name for found in (file.iterdir() if isinstance(file, Path) else file.files())]
    if FILE not in names:
        parts = [name for name in names if name.startswith(("vocab", "merges", "tokenizer"))]
        has = f", only {', '.join(parts)}" if parts else ""
        raise ValueError(f"a directory without {FILE}{has}")
    return (file / FILE).read_bytes()


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({_text_kind(content)})") from error


def _json_kind(value: Any) -> str:
    """Say what a JSON value that is no tokenizer looks like."""
    if not isinstance(value, dict):
        return f"it is a JSON {'list' if isinstance(value, list) else 'value'}"
    if value and all(isinstance(index, int) for index in value.values()):
        return f"it looks like a vocab.json of {len(value):,} token ids"
    if value.keys() & {"tokenizer_class", "added_tokens_decoder", "model_max_length"}:
        return "it looks like a tokenizer_config.json"
    if value.keys() & {"architectures", "model_type"}:
        return "it looks like the config.json of a model"
    if value and all(name.endswith(("_token", "_tokens")) for name in value):
        return "it looks like a special_tokens_map.json"
    return "its `model` is no object" if "model" in value else "it has no `model`"


def _text_kind(content: bytes) -> str:
    """Say what bytes that are no JSON look like."""
    head = content[:4096]
    if not head.strip():
        return "it is empty"
    if head.startswith(b"#version"):
        return "it looks like a merges.txt"
    if b"<unk>" in head and head.startswith(b"\n"):
        return "it looks like a SentencePiece .model"
    if b"\0" in head:
        return "it is binary"
    if head.lstrip().startswith((b"{", b"[")):
        return "it is truncated or damaged"
    return "it is plain text, as vocab.txt or merges.txt are"


def _utf8(text: str) -> bytes:
    """Return UTF-8; half a surrogate pair becomes `?`."""
    return text.encode(errors="replace")


@contextmanager
def _explained(prefix: str = "") -> Iterator[None]:
    """Turn what the `tokenizers` library raises into a `ValueError` of one line."""
    try:
        yield
    except Exception as error:  # it raises bare `Exception`s; only single calls of it stand here
        raise ValueError(prefix + " ".join(str(error).split())) from error


def _byte_lengths(
    spec: dict[str, Any], names: dict[str, int], vocabulary: int
) -> NDArray[np.int32]:
    """Return the source bytes of every token from the tokenizer's JSON and its vocabulary."""
    byte_level = "ByteLevel" in json.dumps([spec.get("decoder"), spec.get("pre_tokenizer")])
    lengths = np.zeros(vocabulary, np.int32)
    for name, index in names.items():
        if byte_level:  # one character of the name stands for one byte
            lengths[index] = len(name)
        elif len(name) == 6 and name.startswith("<0x"):  # byte fallback: <0xE2>
            lengths[index] = 1
        else:
            lengths[index] = len(name.replace("\u2581", " ").removeprefix("##").encode())
    return lengths
