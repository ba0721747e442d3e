"""What tells two versions of a file apart: its size, samples of it, its time if it is big."""

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from smt_ray.data.storage import Location

WHOLE = 1 << 20  # bytes up to which a file is read whole
SAMPLE = 1 << 17  # bytes read at each place of a bigger one; the last ones hold a Parquet footer
SAMPLES = 4


def digests(files: Iterable[Location]) -> list[str]:
    """Return a digest of each file, after `SAMPLES` requests a file at most.

    A file of up to 1 MiB is its bytes: a copy of it, or a new time, is the same. Of a bigger one
    the time counts, because samples miss a change between them.

    Raises:
        FileNotFoundError: if a file is not there.
    """
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(_digest, files))


def _digest(file: Location) -> str:
    size = file.size()
    with file.open() as handle:
        if size <= WHOLE:
            return _hash(size, handle.read())
        modified = file.filesystem.get_file_info(file.path).mtime_ns  # None: the store has none
        parts = []
        for n in range(SAMPLES):
            handle.seek(n * (size - SAMPLE) // (SAMPLES - 1))
            parts.append(handle.read(SAMPLE))
    return _hash(size, *parts, repr(modified).encode())


def _hash(size: int, *parts: bytes) -> str:
    found = hashlib.blake2b(str(size).encode(), digest_size=16)
    for part in parts:
        found.update(part)
    return found.hexdigest()
