"""Every path of the project: a directory or URI on any file system that pyarrow knows.

A `Location` joins with `/` like a `pathlib.Path` and is picklable (so it travels to Ray workers).
What it asks of a storage that is gone for a while is tried again (`patience.py`).
"""

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import pyarrow as pa
from pyarrow import fs

from smt_ray.config import masked, require_unmasked
from smt_ray.data.patience import PatientLocal, patient, patiently

PART = ".part"
"""How the names of files end that are not whole yet."""


@dataclass(frozen=True, slots=True)
class Location:
    """A place on a file system: `filesystem` (pyarrow) and `path` inside it."""

    filesystem: fs.FileSystem
    path: str

    @classmethod
    def of(cls, place: "str | os.PathLike[str] | Location", field: str = "") -> "Location":
        """Resolve a local path (relative ones against the working directory) or a URI.

        Args:
            place: what is resolved.
            field: the setting that it is the value of, for the error.

        Raises:
            ValueError: in one line, if the URI's scheme is unknown, it cannot be parsed, or its
                file system has no library here or does not answer.
        """
        if isinstance(place, Location):
            return place
        text = os.fspath(place)
        require_unmasked(field, text)
        if "://" not in text:
            path = str(Path(text).expanduser().absolute())
            return cls(patient(fs.LocalFileSystem(), path), path)
        try:
            filesystem, path = fs.FileSystem.from_uri(text)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
            name = f"{field}={text}" if field else text
            reason = " ".join(str(error).split())
            raise ValueError(
                masked(f"{name}: not a usable path or URI ({reason})")
                + "; give a directory or file, or a URI as s3://BUCKET/PATH"
            ) from None  # the cause repeats the URI
        return cls(patient(filesystem, path), path)

    def __truediv__(self, name: str) -> "Location":
        """Return the place `name` below this one."""
        return Location(self.filesystem, f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        """Return the path, with the kind of file system unless it is local."""
        return self.path if self.is_local else f"{self.filesystem.type_name}://{self.path}"

    @property
    def is_local(self) -> bool:
        """Whether this is a path of the machine's own file system."""
        return isinstance(self.filesystem, fs.LocalFileSystem)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> "Location":
        """The directory that this is in."""
        return Location(self.filesystem, self.path.rstrip("/").rpartition("/")[0] or "/")

    def exists(self) -> bool:
        """Return whether a file or directory is here."""
        return self.filesystem.get_file_info(self.path).type != fs.FileType.NotFound

    def is_dir(self) -> bool:
        """Return whether a directory is here."""
        return self.filesystem.get_file_info(self.path).type == fs.FileType.Directory

    def size(self) -> int:
        """Return the file's size in bytes.

        Raises:
            FileNotFoundError: if no file is here.
        """
        info = self.filesystem.get_file_info(self.path)
        if info.type != fs.FileType.File:
            raise FileNotFoundError(f"{self}: no such file")
        return cast(int, info.size)

    def files(self, suffix: str = "", recursive: bool = False) -> list["Location"]:
        """Return the files below this directory whose names end in `suffix`, sorted by path."""
        selector = fs.FileSelector(self.path, allow_not_found=True, recursive=recursive)
        try:
            found = self.filesystem.get_file_info(selector)
        except FileNotFoundError:  # the directory went while it was being listed
            return []
        paths = (f.path for f in found if f.type == fs.FileType.File and f.path.endswith(suffix))
        return [Location(self.filesystem, path) for path in sorted(paths)]

    def sizes(self, suffix: str = "") -> dict[str, int]:
        """Return the sizes in bytes, by name, of the files right below whose names end so."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        files = (f for f in found if f.type == fs.FileType.File and f.path.endswith(suffix))
        return {f.base_name: f.size for f in files}

    @contextlib.contextmanager
    def published(self) -> Iterator["Location"]:
        """Give a place to write to, whose file appears here at once when all of it is there."""
        part = Location(self.filesystem, f"{self.path}.{uuid.uuid4().hex[:8]}{PART}")
        try:
            yield part
            part.filesystem.move(part.path, self.path)
        except BaseException:
            part._discard()
            raise

    def directories(self) -> list["Location"]:
        """Return the directories right below this one, sorted by path."""
        selector = fs.FileSelector(self.path, allow_not_found=True)
        found = self.filesystem.get_file_info(selector)
        paths = (f.path for f in found if f.type == fs.FileType.Directory)
        return [Location(self.filesystem, path) for path in sorted(paths)]

    def make_dir(self) -> "Location":
        """Create this directory and its parents; return it."""
        self.filesystem.create_dir(self.path, recursive=True)
        return self

    def delete_dir(self) -> None:
        """Delete this directory and all below it, if it is there."""
        if self.is_dir():
            self.filesystem.delete_dir(self.path)

    def open(self) -> BinaryIO:
        """Open the file for random reads of bytes."""
        return cast(BinaryIO, self.filesystem.open_input_file(self.path))

    def output(self) -> Any:
        """Open the file for writing, over what is there."""
        return self.filesystem.open_output_stream(self.path)

    def read_bytes(self) -> bytes:
        """Return the file's bytes."""
        return patiently(self._read)

    def _read(self) -> bytes:
        with self.filesystem.open_input_stream(self.path) as stream:
            return cast(bytes, stream.read())

    def write_bytes(self, content: bytes) -> None:
        """Write the file whole: a reader sees the old content or the new, never a part."""
        patiently(self._write, content)

    def _write(self, content: bytes) -> None:
        if not self.is_local:  # an object appears when all of it is there
            with self.filesystem.open_output_stream(self.path) as stream:
                stream.write(content)
            return
        with self.published() as part, part.output() as stream:
            stream.write(content)

    def create(self, content: bytes) -> bool:
        """Write the file if there is none; return whether there was none.

        On a local file system, and a shared one that is mounted, one of many who try has success.
        Object stores know no such thing: there the last of those who try at once overwrites.
        """
        if not self.is_local:
            if self.exists():
                return False
            self.write_bytes(content)
            return True
        root = self.filesystem.root if isinstance(self.filesystem, PatientLocal) else ""
        try:
            file = patiently(lambda: Path(self.path).open("xb"), root=root)  # noqa: SIM115  closed below
        except FileExistsError:
            return False
        try:
            with file:
                file.write(content)
        except OSError:
            self._discard()
            raise
        return True

    def rewrite(self, content: bytes) -> None:
        """Write over the file; content of the old length needs no room on a full local disk."""
        if self.is_local:
            with Path(self.path).open("r+b") as file:
                file.write(content)
        else:
            self.write_bytes(content)

    def delete(self) -> None:
        """Delete the file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path)

    def _discard(self) -> None:
        """Delete what came to nothing, if the storage lets it; that it came to nothing is told."""
        impatient = fs.LocalFileSystem() if self.is_local else self.filesystem
        with contextlib.suppress(OSError):
            impatient.delete_file(self.path)

    def read_text(self) -> str:
        """Return the file's text (UTF-8)."""
        return self.read_bytes().decode()

    def write_text(self, text: str) -> None:
        """Write the file's text (UTF-8) whole."""
        self.write_bytes(text.encode())

    def read_json(self) -> Any:
        """Return the file's JSON value.

        Raises:
            ValueError: in one line that names the file, if it is damaged.
        """
        try:
            return json.loads(self.read_bytes())
        except ValueError as error:
            raise self.damaged(error) from error

    def damaged(
        self, reason: object, mend: str = "delete it and give the same command again"
    ) -> ValueError:
        """Return the error, in one line, for a file whose content is not what was written."""
        return ValueError(f"{self}: damaged ({' '.join(str(reason).split())}); {mend}")

    def write_json(self, value: Any) -> None:
        """Write a JSON value whole, indented, keys in their given order."""
        self.write_text(json.dumps(value, indent=2) + "\n")

    def copy_to(self, target: "Location") -> None:
        """Copy this file or directory to `target`, over what is there."""
        if self.is_dir():
            fs.copy_files(
                self.path,
                target.path,
                source_filesystem=self.filesystem,
                destination_filesystem=target.filesystem,
            )
        else:
            target.write_bytes(self.read_bytes())

    def free_bytes(self) -> float:
        """Return the free space in bytes; infinite where the store has no such limit."""
        if not self.is_local:
            return float("inf")
        place = Path(self.path)
        while not place.exists():
            place = place.parent
        return shutil.disk_usage(place).free
