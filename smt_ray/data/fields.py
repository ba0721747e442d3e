"""YAML files of fields, as they are meant: 1e-3 is a number, and a key stands once."""

import re
from typing import Any

import yaml

from smt_ray.data.storage import Location


def read_fields(file: str, flag: str, example: str) -> dict[Any, Any]:
    """Read a YAML file of fields.

    Args:
        file: path or URI.
        flag: what gave the file, for the error.
        example: what such a file holds, for the error.

    Raises:
        ValueError: in one line that names the file, and the line in it where there is one.
    """
    try:
        values = yaml.load(Location.of(file).read_text(), _Loader)
    except (OSError, yaml.YAMLError, ValueError) as error:
        problem = " ".join(str(error).split())
        if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark:
            problem = f"line {error.problem_mark.line + 1}: {error.problem}"
        raise ValueError(f"{flag}={file}: cannot be read ({problem})") from error
    if not isinstance(values, dict):
        raise ValueError(f"{flag}={file}: must hold fields, as `{example}`")
    return values


class _Loader(yaml.SafeLoader):
    """PyYAML's, with the floats of YAML 1.2, and no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Refuse a key that stands twice in a mapping, with dashes or with underscores."""
        seen: set[str] = set()
        for key, _ in node.value:
            name = str(key.value).replace("-", "_")
            if name in seen:
                problem = f"{key.value!r} is given twice; give it once"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(name)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)
