"""A Ray of a run's own on a machine like others': others' variables, a long TMPDIR."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import ray
import ray.train
import torch
from ray.train.torch import TorchTrainer
from safetensors.torch import save_file

from smt_ray.cluster.cpus import usable_cpus
from smt_ray.cluster.resources import cpus_needed
from smt_ray.cluster.session import connect
from smt_ray.config import RunConfig, RuntimeConfig
from smt_ray.data.storage import Location
from smt_ray.labels.gang import EncoderSpec, Gang
from smt_ray.model.encoder import build_encoder
from smt_ray.train.process_group import GroupConfig
from tests.samples import MODEL, VOCABULARY

ROOT = Path(__file__).parents[2]
CONFIG = RunConfig(runtime=RuntimeConfig(device="cpu", workers=2, gang_ranks=2))
LAUNCHER = {
    "RANK": "3",
    "WORLD_SIZE": "8",
    "MASTER_ADDR": "nowhere.invalid",
    "MASTER_PORT": "1",
    "LOCAL_RANK": "3",
    "SLURM_NTASKS": "8",
    "TORCHELASTIC_USE_AGENT_STORE": "True",
}


def listening(process: psutil.Process) -> list[tuple[str, str]]:
    """Return the addresses that a process listens on, each with what it is."""
    try:
        name, found = " ".join(process.cmdline()), process.net_connections("inet")
    except psutil.NoSuchProcess:  # it has ended meanwhile
        return []
    return [(at.laddr.ip, name) for at in found if at.status == psutil.CONN_LISTEN]


def trains(settings: dict[str, str]) -> None:
    """Take part in a collective; tell what this worker listens on."""
    total = torch.ones(1)
    torch.distributed.all_reduce(total)
    assert total == 2
    place = Path(settings["place"]) / f"{torch.distributed.get_rank()}.json"
    place.write_text(json.dumps(listening(psutil.Process())))
    torch.distributed.barrier()


def main(place: Path) -> None:
    """Start Ray as a run does; train and encode on it; tell what listens."""
    connect(CONFIG)
    TorchTrainer(
        trains,
        train_loop_config={"place": str(place)},
        torch_config=GroupConfig(),
        scaling_config=ray.train.ScalingConfig(num_workers=2, resources_per_worker={"CPU": 1}),
        run_config=ray.train.RunConfig(name="train", storage_path=str(place)),
    ).fit()
    workers = [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]

    encoder = build_encoder(MODEL, VOCABULARY)
    weights = {f"encoder.{name}": value for name, value in encoder.state_dict().items()}
    save_file(weights, place / "model.safetensors")
    spec = EncoderSpec(MODEL, VOCABULARY, Location.of(place), "float32", "float32")
    gang = Gang(spec, CONFIG.runtime, "gang")
    gang.start()
    own = psutil.Process()
    found = {
        "listening": [at for one in [own, *own.children(recursive=True)] for at in listening(one)],
        "workers": [at for worker in workers for at in worker],
        "cpus": ray.cluster_resources()["CPU"],
        "node": ray.util.get_node_ip_address(),
        "environment": ray.get(gang.ranks[0].__ray_call__.remote(lambda _: dict(os.environ))),
    }
    gang.close()
    print(json.dumps(found))  # noqa: T201


@pytest.mark.ray
def test_a_ray_of_ones_own_keeps_to_itself(tmp_path):
    long = tmp_path / ("long" * 20)
    long.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = kept | LAUNCHER | {"TMPDIR": str(long), "RAY_ADDRESS": "local"}
    command = [sys.executable, "-m", "tests.ray.test_local", str(tmp_path)]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=540
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    everything = [*found["listening"], *found["workers"]]
    servers = " ".join(name for _, name in everything)
    for name in ("gcs_server", "raylet", "ray::Rank", "ray::RayTrainWorker", "Agent"):
        assert name in servers
    assert {ip.removeprefix("::ffff:") for ip, _ in everything} == {"127.0.0.1"}
    assert found["node"] == "127.0.0.1"
    assert found["cpus"] == max(usable_cpus(), cpus_needed(CONFIG))
    ranks = {name: found["environment"].get(name) for name in LAUNCHER}
    assert (ranks["WORLD_SIZE"], ranks["MASTER_ADDR"]) == ("2", "127.0.0.1")
    assert ranks["LOCAL_RANK"] == "0"
    assert ranks["SLURM_NTASKS"] is ranks["TORCHELASTIC_USE_AGENT_STORE"] is None
    interface = found["environment"]["GLOO_SOCKET_IFNAME"]
    assert "127.0.0.1" in [address.address for address in psutil.net_if_addrs()[interface]]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
