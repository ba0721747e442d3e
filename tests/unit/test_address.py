"""Which Ray cluster a run joins: a small server answers as one, or nobody does."""

import json
import platform
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import pytest
import ray
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

from smt_ray.cluster.address import HERE, cluster_address

messages: Any = gcs_service_pb2
VERSIONS = {"ray_version": ray.__version__, "python_version": platform.python_version()}


class Nodes(gcs_service_pb2_grpc.NodeInfoGcsServiceServicer):
    """Answers who the cluster is, to a driver that has no token or needs none."""

    def __init__(self, refuses: bool) -> None:
        self.refuses = refuses

    def GetClusterId(self, request, context):
        if self.refuses:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return messages.GetClusterIdReply(cluster_id=b"id")


class Values(gcs_service_pb2_grpc.InternalKVGcsServiceServicer):
    """Answers what the cluster was started with."""

    def __init__(self, versions: dict[str, str]) -> None:
        self.versions = versions

    def InternalKVGet(self, request, context):
        assert (request.namespace, request.key) == (b"usage_stats", b"cluster_metadata")
        return messages.InternalKVGetReply(value=json.dumps(self.versions).encode())


@contextmanager
def cluster(versions: dict[str, str] = VERSIONS, refuses: bool = False) -> Iterator[str]:
    """Serve what a driver asks a cluster at first; give the address."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        gcs_service_pb2_grpc.add_NodeInfoGcsServiceServicer_to_server(Nodes(refuses), server)
        gcs_service_pb2_grpc.add_InternalKVGcsServiceServicer_to_server(Values(versions), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def closed() -> str:
    """Return an address at which nothing listens."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture(autouse=True)
def file(tmp_path, monkeypatch):
    """The file that `ray start` writes, in a place of its own; nothing else names a cluster."""
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))  # of Ray's token
    (tmp_path / "ray").mkdir()
    return tmp_path / "ray" / "ray_current_cluster"


def refused(monkeypatch, address: str) -> str:
    """Return how RAY_ADDRESS is answered."""
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(ValueError, match=r"^RAY_ADDRESS=[^\n]+$") as caught:
        cluster_address()
    said = str(caught.value)
    assert said.startswith(f"RAY_ADDRESS={address}: ")
    assert said.endswith(f"; {HERE}")
    return said.removeprefix(f"RAY_ADDRESS={address}: ").removesuffix(f"; {HERE}")


def test_without_a_cluster_a_ray_is_started_here(monkeypatch):
    assert cluster_address() is None
    monkeypatch.setenv("RAY_ADDRESS", "local")
    assert cluster_address() is None


def test_what_a_dead_cluster_left_is_passed_over_and_named(file, monkeypatch, caplog):
    monkeypatch.setattr("smt_ray.cluster.address.logger.propagate", True)
    address = closed()
    file.write_text(address)
    with caplog.at_level("WARNING", logger="smt_ray"):
        assert cluster_address() is None
    (said,) = [row.getMessage() for row in caplog.records if row.name.startswith("smt_ray")]
    assert said == (
        f"{file}: names {address}, which does not answer as a Ray cluster (Connection refused); "
        "a Ray is started here (`ray stop` removes the file)"
    )


def test_an_empty_file_names_no_cluster(file):
    file.write_text("")
    assert cluster_address() is None


def test_a_cluster_without_a_node_here_is_not_joined(file, monkeypatch):
    rule = "has no node on this machine; use `ray job submit`, or `ray start --address` here"
    with cluster() as address:
        assert refused(monkeypatch, address) == rule
        monkeypatch.delenv("RAY_ADDRESS")
        file.write_text(address)
        with pytest.raises(ValueError, match=f"^{file}: names {address}, which has no node"):
            cluster_address()


def test_a_cluster_of_other_versions_is_not_joined(monkeypatch):
    with cluster(VERSIONS | {"ray_version": "2.9.0"}) as address:
        said = refused(monkeypatch, address)
    assert said.startswith("cannot be joined from here (Version mismatch: ")
    assert "Ray: 2.9.0" in said
    assert f"Ray: {ray.__version__}" in said


def test_a_cluster_that_asks_for_its_token_is_not_joined(monkeypatch):
    with cluster(refuses=True) as address:
        assert refused(monkeypatch, address) == (
            "asks for its token; give RAY_AUTH_MODE=token and its ~/.ray/auth_token here"
        )


def test_nobody_at_the_address(monkeypatch):
    said = refused(monkeypatch, closed())
    assert said == "does not answer as a Ray cluster (Connection refused)"


@pytest.mark.parametrize("silent", [True, False])
def test_something_else_at_the_address(silent, monkeypatch):
    monkeypatch.setattr("smt_ray.cluster.address.ANSWER_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            taken, _ = server.accept()
            with taken:
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        if not silent:
            threading.Thread(target=answer, daemon=True).start()
        said = refused(monkeypatch, f"127.0.0.1:{server.getsockname()[1]}")
    assert said.startswith("does not answer as a Ray cluster (")


@pytest.mark.parametrize("address", ["127.0.0.1", "localhost:", "a:b", "a:80", "a:65536", ":6379"])
def test_what_is_no_address(address, monkeypatch):
    assert refused(monkeypatch, address) == "is not HOST:PORT with a port of 1024 to 65535"


@pytest.mark.parametrize("address", ["http://127.0.0.1:8265", "ray://127.0.0.1:10001"])
def test_an_address_for_another_purpose(address, monkeypatch):
    assert refused(monkeypatch, address) == (
        "a run joins HOST:PORT of a cluster that this machine is in; `ray job submit` takes "
        "http:// as RAY_API_SERVER_ADDRESS"
    )
