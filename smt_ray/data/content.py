"""What tells two versions of a file apart: its size and the time of its last change."""

from smt_ray.data.storage import Location


def versions(files: list[Location]) -> list[str]:
    """Return size and time of each file, in one request to its file system.

    Raises:
        FileNotFoundError: if a file is not there.
    """
    if not files:
        return []
    found = files[0].filesystem.get_file_info([file.path for file in files])
    for file, info in zip(files, found, strict=True):
        if not info.is_file:
            raise FileNotFoundError(f"{file}: no such file")
    return [f"{info.size}:{info.mtime_ns}" for info in found]
