"""The cache: its limit, other processes at the same limit, what dead ones left, and a disk that can't be written."""

import errno
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest

import hf_sft
from hf_sft.storage import cache
from tests import tiny

SINGLE = "single_label_classification"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hf_sft"


def put(name: str, size: int = 1000, used: float | None = None) -> Path:
    path = cache.cache_folder("encoded") / name
    with cache.atomic_folder(path) as aside:
        (aside / "file").write_bytes(b"x" * size)
    if used is not None:
        os.utime(path, (used, used))
    return path


@pytest.mark.parametrize(
    ("given", "limit"),
    [
        ("2500", 2500),
        ("20GB", 20 * 10**9),
        ("20 gb", 20 * 10**9),
        ("1.5GiB", 3 * 2**29),
        ("7kib", 7168),
        ("0", 0),
    ],
)
def test_a_limit_may_have_a_unit(given, limit, monkeypatch):
    monkeypatch.setenv("HF_SFT_CACHE_BYTES", given)
    assert cache.find_limit() == limit


@pytest.mark.parametrize("given", ["", "much", "-1", "20 G B", "1e9", "20XB", "nan"])
def test_a_limit_that_is_none_is_named_before_anything_is_made(given, monkeypatch, checkpoints, tmp_path):
    monkeypatch.setenv("HF_SFT_CACHE_BYTES", given)
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    with pytest.raises(hf_sft.RecipeError, match=r"HF_SFT_CACHE_BYTES is `.*`\.  Expected a number of bytes, such as .*20GB"):
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def _write(home: str, number: int, count: int, told: Any) -> None:
    from huggingface_hub import constants

    constants.HF_HOME = home
    cache.IN_USE = 0
    os.environ["HF_SFT_CACHE_BYTES"] = "5000"
    failed = []
    for i in range(count):
        try:
            # Some names are the same in both, as two runs on the same rows have them.
            made = cache.made_once(
                cache.cache_folder("encoded") / f"{i}-{number if i % 3 else 'both'}",
                lambda aside: [(aside / str(k)).write_bytes(b"x" * 300) for k in range(3)],
            )
            assert made.parent.is_dir()
        except BaseException as error:
            failed.append(repr(error))
    told.put(failed)


def test_two_processes_at_the_limit_do_not_make_each_other_fail(home):
    context = multiprocessing.get_context("fork")
    told = context.Queue()
    both = [context.Process(target=_write, args=(str(home.parent), number, 300, told)) for number in range(2)]
    for process in both:
        process.start()
    failed = [told.get(timeout=600) for _ in both]
    for process in both:
        process.join(600)
    assert failed == [[], []]
    assert cache._size(home / "encoded") < 5000 + 2 * 1100


def test_what_vanishes_while_it_is_looked_at_takes_no_room(home, monkeypatch):
    old = put("old", used=time.time() - 7200)
    new, stat = put("new"), Path.stat

    def vanished(self: Path, **how: Any) -> Any:
        if self.is_relative_to(old):
            raise FileNotFoundError(errno.ENOENT, "gone", str(self))
        return stat(self, **how)

    monkeypatch.setattr(Path, "stat", vanished)
    monkeypatch.setenv("HF_SFT_CACHE_BYTES", "100")
    cache.make_room(new)


def test_what_dead_writers_left_goes_after_a_day_and_what_is_written_now_stays(home):
    put("first")
    for name, age in ((".dead-abc", 2 * 86400), (".alive-abc", 60), (".slow-abc", 2 * 86400)):
        (home / "encoded" / name).mkdir()
        (home / "encoded" / name / "part").write_bytes(b"x")
        os.utime(home / "encoded" / name / "part", (time.time() - age,) * 2)
        os.utime(home / "encoded" / name, (time.time() - age,) * 2)
    (home / "encoded" / ".slow-abc" / "part").write_bytes(b"xx")  # its folder is old, but it is being written
    put("second")
    left = sorted(path.name for path in (home / "encoded").iterdir())
    assert left == [".alive-abc", ".slow-abc", "first", "second"]


def test_what_was_used_just_now_is_not_removed_under_its_readers_hands(home, monkeypatch):
    monkeypatch.setenv("HF_SFT_CACHE_BYTES", "1500")
    old = put("old", used=time.time() - 7200)
    assert cache.is_intact(old)  # somebody is about to read it
    put("new")
    assert cache.is_intact(old)
    os.utime(old, (time.time() - 7200,) * 2)
    put("newer")
    assert not old.exists()


@pytest.mark.parametrize("where", ["ours", "datasets"])
def test_a_cache_that_cannot_be_written_is_called_that(where, tmp_path, monkeypatch, checkpoints):
    (tmp_path / "file").write_text("no folder")
    if where == "ours":
        monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "file" / "home"))
    else:
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "file" / "datasets"))
    files = tiny.write_rows(tmp_path / "data", SINGLE)
    with pytest.raises(hf_sft.RecipeError, match=rf"the cache `{tmp_path}/file/\w+` can't be written: Not a directory"):
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))


def test_a_full_disk_is_no_mistake_of_the_format(tmp_path, monkeypatch, checkpoints):
    files = tiny.write_rows(tmp_path / "data", SINGLE)

    def full(*_: Any, **__: Any) -> Any:
        raise ValueError("generation failed") from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hf_sft.data.sources.load_dataset", full)
    with pytest.raises(hf_sft.RecipeError, match=r"the cache `.*` can't be written: No space left on device"):
        hf_sft.train(tiny.recipe(checkpoints["bert"], files, tmp_path / "run"))


def test_what_goes_wrong_elsewhere_while_the_cache_is_written_is_not_blamed_on_it(home):
    with pytest.raises(FileNotFoundError, match=r"picture\.png"), cache.atomic_folder(cache.cache_folder("encoded") / "x"):
        Path("picture.png").read_bytes()
