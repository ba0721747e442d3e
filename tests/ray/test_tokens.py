"""The token stage on a local Ray: deterministic, complete, refuses what is too short."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from smt_ray.config import DataConfig, RunConfig
from smt_ray.data import pieces, sources
from smt_ray.data.shards import open_shards
from smt_ray.data.storage import Location
from smt_ray.distributed.tokens import write_tokens

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(autouse=True)
def _quiet():
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False


def test_two_runs_write_the_same_files(tmp_path, monkeypatch):
    texts = {}
    (tmp_path / "texts").mkdir()
    for n in range(12):
        texts[n] = "".join(f"{n}: line {m}\n" for m in range(40 + n))
        (tmp_path / "texts" / f"{n}.txt").write_text(texts[n])
    monkeypatch.setattr(pieces, "UNIT_BYTES", 2000)
    monkeypatch.chdir(tmp_path)
    config = RunConfig(
        data=DataConfig(source="texts/*.txt", sequence_length=16, validation_fraction=0.2)
    )
    targets = [Location.of(tmp_path / name) for name in ("first", "second")]
    (targets[1] / "train").make_dir()
    (targets[1] / "train" / "999999-0000.parquet").write_text("left by an unfinished try")
    for target in targets:
        write_tokens(config, target)
    every_id = []
    covered = documents = 0
    for split in sources.SPLITS:
        manifests = [
            open_shards(target / split, "tokens", sequence_length=16, vocabulary=256)
            for target in targets
        ]
        assert manifests[0] == manifests[1]
        files = [(target / split).files(".parquet") for target in targets]
        assert [file.name for file in files[0]] == list(manifests[0]["shards"])
        tables = []
        for one, other in zip(*files, strict=True):
            assert one.read_bytes() == other.read_bytes()
            tables.append(pq.read_table(one.path))
        rows = sum(map(len, tables))
        assert rows == manifests[0]["sequences"]
        every_id += [i for table in tables for i in table["sequence_id"].to_pylist()]
        covered += sum(np.sum(table["bytes"].to_numpy()) for table in tables)
        assert manifests[0]["bytes"] == sum(np.sum(table["bytes"].to_numpy()) for table in tables)
        documents += manifests[0]["documents"]
    assert len(set(every_id)) == len(every_id)
    assert len({i >> 32 for i in every_id}) >= 3
    assert documents == 12
    size = sum(map(len, texts.values()))
    assert 0.9 * size < covered < size


def test_errors_of_tasks_arrive_as_one_line(tmp_path):
    (tmp_path / "a.txt").write_text("x" * 60)
    config = RunConfig(data=DataConfig(source=str(tmp_path / "a.txt"), sequence_length=58))
    with pytest.raises(
        ValueError, match=r"^data.source=.*train split has 57 tokens.*needs 59; [^\n]*$"
    ):
        write_tokens(config, Location.of(tmp_path / "short"))
    np.save(tmp_path / "a.npy", np.full(1000, 256))
    config = RunConfig(data=DataConfig(source=str(tmp_path / "a.npy"), sequence_length=16))
    with pytest.raises(ValueError, match=r"^data.source=.*outside the vocabulary[^\n]*$"):
        write_tokens(config, Location.of(tmp_path / "foreign"))
