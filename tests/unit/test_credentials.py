"""Credentials in URIs: they work, and stand in nothing that is written, logged or sent."""

import json
import logging

import pytest
import yaml

from jobs import pretrain_lm
from smt_ray.config import RunConfig, anonymous, masked
from smt_ray.data.source_plan import plan_source
from smt_ray.data.storage import Location
from smt_ray.data.tokenizers import load_tokenizer
from smt_ray.pipeline import job
from smt_ray.pipeline.artifacts import location_of, make
from smt_ray.pipeline.command_line import reported
from smt_ray.pipeline.locks import locked
from smt_ray.pipeline.planning import plan
from smt_ray.pipeline.run import run
from smt_ray.pipeline.run_directory import check_same_run
from smt_ray.pipeline.stages import settings
from smt_ray.report.study_page import Study, write_study
from smt_ray.studies.options import Sweeper
from smt_ray.studies.points import settings_of
from smt_ray.studies.space import parse_space
from smt_ray.studies.tuning import Sweep
from smt_ray.terminal import configure_logging

SECRET = "hU%2Fsh+42"
S3 = f"s3://AKIAKEY:{SECRET}@bucket/runs?region=us-east-1"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (S3, "s3://***@bucket/runs?region=us-east-1"),
        ("s3://KEY:SEC/RET@bucket/x", "s3://***@bucket/x"),
        ("hdfs://user:word@host:8020/x", "hdfs://***@host:8020/x"),
        ("https://user:word@host/a.txt and s3://k:s@b/x", "https://***@host/a.txt and s3://***@b/x"),
        ("data.source='s3://k:s@b/*.txt': no", "data.source='s3://***@b/*.txt': no"),
        ("s3://b/x?secret_key=abc&region=r", "s3://b/x?secret_key=***&region=r"),
        ("s3://b/x?access_key=abc", "s3://b/x?access_key=***"),
        ("https://h/a.txt?X-Amz-Credential=a%2Fb&X-Amz-Signature=0f",
         "https://h/a.txt?X-Amz-Credential=***&X-Amz-Signature=***"),
        ("https://h/a?sig=abc&sv=2020", "https://h/a?sig=***&sv=2020"),
        ("s3://b/x?endpoint_override=http%3A%2F%2Fu:p@h",
         "s3://b/x?endpoint_override=http%3A%2F%2F***@h"),
        # These hold nothing secret.
        ("s3://bucket/a:b@2/c", "s3://bucket/a:b@2/c"),
        ("http://127.0.0.1:8265/a@b", "http://127.0.0.1:8265/a@b"),
        ("abfs://container@account.dfs.core.windows.net/x",) * 2,
        ("/home/a:b@c/runs?key=1", "/home/a:b@c/runs?key=1"),
        ("https://h/a?region=us&partition=tokens", "https://h/a?region=us&partition=tokens"),
    ],
)  # fmt: skip
def test_credentials_of_uris_are_masked_and_nothing_else(text, expected):
    assert masked(text) == expected
    assert masked(expected) == expected


@pytest.fixture
def config(tmp_path):
    """A run whose every URI has a secret, and works: pyarrow passes over a local file's query."""
    (tmp_path / "text.txt").write_text("To be, or not to be. " * 200)
    (tmp_path / "tokenizer.json").write_text(json.dumps({"smt_ray": "bytes"}))
    places = {"source": "text.txt", "tokenizer": "tokenizer.json"}
    uris = {name: f"file://{tmp_path}/{file}?secret_key=hush" for name, file in places.items()}
    data = uris | {"sequence_length": 16}
    return RunConfig().update(
        {
            "storage": f"file://{tmp_path}/storage?secret_key=hush",
            "data": data,
            "loss": {"timesteps": 2, "horizon": 2},
        }
    )


def test_nothing_that_is_made_of_a_config_has_them(config, tmp_path):
    page = Study(title="a", config=config.to_dict())
    write_study(Location.of(tmp_path), page)
    location = location_of(Location.of(config.storage), "tokens", "0123")
    manifest = make(
        location, settings(config, plan_source(config.data).fingerprint)["tokens"], [],
        lambda place: {}, lambda place: locked(place, "one"),
    ).manifest  # fmt: skip
    texts = [
        repr(config), repr(config.data), str(config.to_dict()), plan(config), str(manifest),
        str(settings_of(config)), load_tokenizer(config.data.tokenizer).name,
        *(path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()),
    ]  # fmt: skip
    assert [text for text in texts if "hush" in text] == []
    assert sum("secret_key=***" in text for text in texts) >= 6
    assert config.update({"name": "other"}).storage == config.storage
    assert "hush" in config.data.source  # the live one works


def test_the_fingerprints_do_not_depend_on_them(config):
    other = config.override("data.source", config.data.source.replace("hush", "another"))
    other = other.override("data.tokenizer", config.data.tokenizer.replace("hush", "another"))
    assert other.data != config.data
    assert plan_source(other.data).fingerprint == plan_source(config.data).fingerprint
    assert anonymous(S3) == "s3://bucket/runs?region=us-east-1"  # as with those of the environment


def test_a_run_is_compared_with_its_masked_settings(config, tmp_path):
    place = Location.of(tmp_path)
    (place / "config.yaml").write_text(yaml.safe_dump(config.to_dict()))
    check_same_run(config, place, overwrite=False)
    other = config.override("data.source", config.data.source.replace("text", "other"))
    with pytest.raises(ValueError, match=r"^data\.source=file:.*; choose another --name") as caught:
        check_same_run(other, place, overwrite=False)
    assert "hush" not in str(caught.value)


def said(capsys, call, *arguments):
    """Return the error line of a job."""
    with pytest.raises(SystemExit), reported():
        call(*arguments)
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


@pytest.fixture
def _logging(monkeypatch):
    logger = logging.getLogger("smt_ray")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "propagate", True)
    monkeypatch.setattr(logger, "level", logger.level)


@pytest.mark.usefixtures("_logging")
def test_a_masked_config_file_asks_for_them_again(config, tmp_path, capsys):
    file = tmp_path / "config.yaml"
    for field in ("storage", "data.source", "data.tokenizer"):
        own = config.override("data.tokenizer", "bytes").override("data.source", "stdlib")
        own = own.override("storage", str(tmp_path / "s")).override(field, S3)
        file.write_text(yaml.safe_dump(own.to_dict(), sort_keys=False))
        assert said(capsys, job.run_job, pretrain_lm.parse, ["--config", str(file)]) == (
            f"error: {field}=s3://***@bucket/runs?region=us-east-1: its credentials were left out "
            f"where it was written; give --{field} again, or without them and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY\n"
        )


@pytest.mark.usefixtures("_logging")
@pytest.mark.parametrize(
    "words",
    [
        ("--storage", "s3://KEY:hu/sh@bucket/x"),
        ("--storage", "nowhere://KEY:hu-sh@bucket/x"),
        ("--storage", "s3://bucket/x?secret_key=hush"),
        ("--data.source", "s3://KEY:hu/sh@bucket/*.txt"),
        ("--data.source", "nowhere://KEY:hush@bucket/a.txt"),
        ("--data.source", "task:x?secret_key=hush"),
        ("--data.tokenizer", "nowhere://KEY:hush@bucket/a.json"),
        ("--model.width", "s3://KEY:hush@bucket"),
        ("--config", "nowhere://KEY:hush@bucket/config.yaml"),
    ],
)  # fmt: skip
def test_no_error_has_them(tmp_path, capsys, words):
    if "--storage" not in words:
        words = (*words, "--storage", str(tmp_path))
    line = said(capsys, job.run_job, pretrain_lm.parse, words)
    assert "***" in line
    assert not any(part in line for part in ("hush", "hu/sh", "hu-sh"))


def test_errors_of_python_callers_have_none_either(config):
    for changed in (
        config.override("storage", "s3://KEY:hu/sh@bucket/x"),
        config.override("data.source", "nowhere://KEY:hush@bucket/a.txt"),
        config.override("data.tokenizer", "nowhere://KEY:hush@bucket/a.txt"),
    ):
        with pytest.raises(ValueError, match=r"\*\*\*") as caught:
            run(changed)
        error: BaseException | None = caught.value
        while error:  # all that a traceback shows
            assert not any(part in str(error) for part in ("hush", "hu/sh"))
            error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


@pytest.mark.usefixtures("_logging")
def test_no_line_of_the_log_has_them(capsys):
    configure_logging()
    logging.getLogger("smt_ray.some").info("reading %s", S3)
    try:
        raise OSError(f"cannot reach {S3}")
    except OSError:
        logging.getLogger("smt_ray.some").exception("lost")
    line = capsys.readouterr().err
    assert line.count("s3://***@bucket") >= 2
    assert SECRET not in line


def test_a_sweep_records_none(config, tmp_path):
    words = ["--storage", config.storage, "--data.source", config.data.source, "--name", "one"]
    found = Sweep(Sweeper([*words, "--space", "model.memory-tokens=4,8"]))
    assert "hush" not in str(found._identity())
    with pytest.raises(
        ValueError, match=r"^space=data.source=s3://\*\*\*@b/x,stdlib: has credentials"
    ) as e:
        parse_space(["data.source=s3://KEY:hush@b/x,stdlib"])
    assert "hush" not in str(e.value)
