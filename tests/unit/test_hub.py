"""Hugging Face data sets: their subsets, and one line for whatever is wrong with them."""

import pytest
from datasets import Dataset

from smt_ray.config import DataConfig
from smt_ray.config.run_config import RunConfig
from smt_ray.data import sources
from smt_ray.data.source_plan import plan_source
from smt_ray.data.tokenizers import ByteTokenizer
from smt_ray.pipeline.planning import plan

TWO = """---
configs:
- config_name: en
  data_files: en.txt
- config_name: de
  data_files: [{split: train, path: de.txt}]
---
"""
TEXT = "a line of text\n" * 100


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)


def data_set(place, **files):
    place.mkdir()
    for name, content in files.items():
        (place / name.replace("__", ".")).write_text(content)
    return f"hf:{place}"


@pytest.fixture
def two(tmp_path):
    return data_set(tmp_path / "two", README__md=TWO, en__txt=TEXT, de__txt=TEXT.upper())


def refused(source, **fields):
    """Return the one line with which a source is refused, by a run and by --plan alike."""
    data = DataConfig(source=source, sequence_length=16, **fields)
    said = []
    for call in (lambda: plan_source(data), lambda: plan(RunConfig(data=data))):
        with pytest.raises(ValueError, match=r"^data\.") as caught:
            call()
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "\n" not in said[0]
    return said[0].replace(f"data.source={source!r}: ", "")


def test_a_subset_is_named_by_a_field(two):
    for subset, first in (("en", "a"), ("de", "A")):
        config = DataConfig(source=two, subset=subset, sequence_length=16)
        unit = plan_source(config).split("train")[0]
        texts = list(sources.read(unit, config, ByteTokenizer()))
        assert {text[0] for text in texts} == {first}
    others = [DataConfig(source=two, subset=subset, sequence_length=16) for subset in ("en", "de")]
    assert len({plan_source(config).fingerprint for config in others}) == 2


def test_subsets_that_are_missing_or_not_there_are_listed(two, tmp_path):
    assert refused(two) == "it has several subsets ('en', 'de'); give one as data.subset"
    said = refused(two, subset="fr")
    assert said == f"data.subset='fr': {two} has only 'en', 'de'; give one of them"
    Dataset.from_dict({"text": [TEXT] * 9}).save_to_disk(tmp_path / "saved")
    said = refused(f"hf:{tmp_path / 'saved'}", subset="en")
    assert said == f"data.subset='en': {tmp_path / 'saved'} is saved, so it has one subset"
    plain = data_set(tmp_path / "plain", train__txt=TEXT)
    assert refused(plain, subset="en").startswith("data.subset='en': ")


def test_subset_and_revision_are_for_data_sets(two, tmp_path):
    for field in ("subset", "revision"):
        rule = rf"^data.{field}='x': is for hf: sources, not 'stdlib'; leave it out$"
        with pytest.raises(ValueError, match=rule):
            RunConfig().override(f"data.{field}", "x")
    assert refused(two, subset="en", revision="v1") == (
        f"data.revision='v1': {tmp_path / 'two'} is a directory; leave it out"
    )


BAD = {
    "script": (
        {"script__py": "x"},
        "scripts are no longer supported, but found script.py; give its",
    ),
    "test": ({"test__txt": TEXT}, "it has no split `train`, only test; give its files by path"),
    "empty": ({"README__md": "x"}, "doesn't contain any data files; give the hub name or"),
    "yaml": ({"README__md": "---\na: [\n---\n", "a__txt": TEXT}, "expected the node content"),
    "list": ({"README__md": "---\nconfigs: 5\n---\n", "a__txt": TEXT}, "configs to be a list, but"),
    "info": (
        {"README__md": "---\ndataset_info: {features: [x]}\n---\n", "a__txt": TEXT},
        "has no attribute 'pop'",
    ),
    "parquet": ({"a__parquet": "PAR1xxxx"}, "magic bytes not found"),
    "csv": ({"a__csv": 'text\n"a\nb,c,d\n'}, "EOF inside string starting at row 1; mend the file"),
    "jsonl": ({"a__jsonl": '{"text": \n'}, "JSON parse error"),
    "number": ({"a__jsonl": '{"text": 5}\n'}, "row 0: no text in data.text-field='text' (it holds"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_wrong_with_a_data_set_is_one_line(tmp_path, name):
    files, message = BAD[name]
    assert message in refused(data_set(tmp_path / name, **files))


@pytest.mark.parametrize("source", ["hf:nobody/nothing", "hf:x/y/z", "hf:a b"])
def test_a_data_set_that_is_not_there_is_one_line(source):
    refused(source)
