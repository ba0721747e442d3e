"""The Ray cluster that a run joins: found where Ray looks, and asked whether it answers."""

import json
import logging
import os
from typing import Any

import grpc
from ray._common.utils import get_ray_address_file
from ray._private import services
from ray._private.authentication.authentication_token_setup import (
    maybe_enable_token_auth_if_token_available,
)
from ray._private.gcs_utils import create_gcs_channel
from ray._private.utils import check_version_info
from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc
from ray.exceptions import AuthenticationError

logger = logging.getLogger(__name__)
ANSWER_S = 5.0
"""Longest wait for an answer; Ray's own wait lasts for minutes."""
HERE = "RAY_ADDRESS=local starts a Ray here"


def cluster_address() -> str | None:
    """Return the address of the cluster to join, None to start a Ray here.

    It is RAY_ADDRESS or, without it, what `ray start` wrote on this machine. A cluster of which
    only that file is left is passed over.

    Raises:
        ValueError: if the cluster does not answer, or takes no driver from here.
    """
    given = os.environ.get("RAY_ADDRESS", "")
    if "://" in given:
        raise ValueError(
            f"RAY_ADDRESS={given}: a run joins HOST:PORT of a cluster that this machine is in; "
            f"`ray job submit` takes http:// as RAY_API_SERVER_ADDRESS; {HERE}"
        )
    try:
        # `auto` takes any cluster on this machine, the file alone one of `ray start`.
        address = (
            services.get_ray_address_from_environment(given, None)
            if given
            else services.find_bootstrap_address(None)
        )
    except ConnectionError:
        raise ValueError(
            f"RAY_ADDRESS={given}: no cluster is on this machine; run `ray start`; {HERE}"
        ) from None
    if not address or address == "local":
        return None
    if given in {"", "auto"}:
        maybe_enable_token_auth_if_token_available(warn_if_disabled=False)  # as `ray.init` does
    problem = _problem(address)
    if not problem:
        return address
    if given:
        raise ValueError(f"RAY_ADDRESS={given}: {problem}; {HERE}")
    said = f"{get_ray_address_file(None)}: names {address}, which {problem}"
    if not problem.startswith(_SILENT):
        raise ValueError(f"{said}; {HERE}")
    if address in services._find_address_from_flag("--gcs-address="):
        raise ValueError(f"{said}; `ray stop` ends what is left of it; {HERE}")
    logger.warning("%s; a Ray is started here (`ray stop` removes the file)", said)
    return None


_SILENT = "does not answer"


def _problem(address: str) -> str:
    """Return why a driver on this machine cannot join a cluster, empty if it can."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 1024 <= int(port) <= 65535:
        return "is not HOST:PORT with a port of 1024 to 65535"
    messages: Any = gcs_service_pb2
    try:
        with create_gcs_channel(address) as channel:
            nodes = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
            cluster = nodes.GetClusterId(messages.GetClusterIdRequest(), timeout=ANSWER_S)
            values = gcs_service_pb2_grpc.InternalKVGcsServiceStub(channel)
            key = messages.InternalKVGetRequest(namespace=b"usage_stats", key=b"cluster_metadata")
            versions = values.InternalKVGet(key, timeout=ANSWER_S).value
    except AuthenticationError:
        return "needs a token, and RAY_AUTH_MODE=token finds none; copy its ~/.ray/auth_token here"
    except grpc.RpcError as error:
        if error.code() == grpc.StatusCode.UNAUTHENTICATED:
            return "asks for its token; give RAY_AUTH_MODE=token and its ~/.ray/auth_token here"
        return f"{_SILENT} as a Ray cluster ({error.details().rsplit(': ', 1)[-1]})"
    try:
        if versions:
            check_version_info(json.loads(versions), "this machine")
    except RuntimeError as error:
        return f"cannot be joined from here ({' '.join(str(error).split())})"
    # What Ray looks for, without end if it is not there: the cluster's process on this machine.
    if cluster.cluster_id.hex() not in services._find_address_from_flag("--cluster-id="):
        return "has no node on this machine; use `ray job submit`, or `ray start --address` here"
    return ""
