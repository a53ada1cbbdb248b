"""Datasets whose folders are archives give what the folders give."""

from __future__ import annotations

import io
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from igd import storage
from igd.config import preset_config
from igd.data import datasets, trees
from igd.data.datasets import categories, load_normals, load_tests, normal_images
from igd.data.members import Member
from igd.data.sources import SourceRecord, scan
from igd.data.trees import list_tree
from igd.errors import DataError

CONFIG = preset_config("fast", ["image.size=64"])


def pack(folder: Path, archive: Path, prefix: str = "") -> None:
    """All files below a folder, in an order that is not theirs."""
    paths = sorted((path for path in folder.rglob("*") if path.is_file()), reverse=True)
    names = [prefix + str(path.relative_to(folder)) for path in paths]
    if archive.suffix == ".parquet":
        images = [{"bytes": path.read_bytes(), "path": name}
                  for path, name in zip(paths, names, strict=True)]
        pq.write_table(pa.table({"image": images}), archive, row_group_size=7)
    elif archive.suffix in (".tar", ".tgz", ".gz"):
        with tarfile.open(archive, "w" if archive.suffix == ".tar" else "w:gz") as tar:
            for path, name in zip(paths, names, strict=True):
                tar.add(path, name)
    else:
        with zipfile.ZipFile(archive, "w") as out:
            for path, name in zip(paths, names, strict=True):
                out.write(path, name)


@pytest.fixture
def packed(tiny_data: Path, tmp_path: Path) -> Path:
    """`weave` as a tar, `washer` as a zip whose members are in a folder `washer`."""
    root = tmp_path / "packed"
    root.mkdir()
    pack(tiny_data / "weave", root / "weave.tar", "./")
    pack(tiny_data / "washer", root / "washer.zip", "washer/")
    return root


@pytest.fixture
def tabled(tiny_data: Path, tmp_path: Path) -> Path:
    """Both as Parquet files."""
    root = tmp_path / "tabled"
    root.mkdir()
    pack(tiny_data / "weave", root / "weave.parquet")
    pack(tiny_data / "washer", root / "washer.PARQUET", "washer/")
    return root


def same(one: str, other: str) -> None:
    assert categories(one) == categories(other) == ["washer", "weave"]
    for name in categories(one):
        first, second = (load_normals(normal_images(data, name), CONFIG) for data in (one, other))
        assert first.keys == second.keys and first.fingerprint == second.fingerprint
        assert (first.images_NHWC == second.images_NHWC).all()
        left, right = (load_tests(datasets.test_images(data, name), CONFIG.image)
                       for data in (one, other))
        assert left.keys == right.keys and (left.mask_NHW == right.mask_NHW).all()
        assert left.mask_NHW.any() and left.without_mask == ()


def test_a_category_may_be_a_tar_a_zip_or_a_parquet_file(tiny_data: Path, packed: Path,
                                                        tabled: Path) -> None:
    same(str(tiny_data), str(packed))
    same(str(tiny_data), str(tabled))
    (packed / "weave.tar").unlink()
    pack(tiny_data / "weave", packed / "weave.tar.gz", "weave/")
    same(str(tiny_data), str(packed))


@pytest.mark.parametrize("name", ["all.tar", "all.tar.gz", "all.zip", "all.parquet"])
@pytest.mark.parametrize("prefix", ["", "all/"])
def test_the_whole_dataset_may_be_an_archive(tiny_data: Path, tmp_path: Path, name: str,
                                             prefix: str) -> None:
    pack(tiny_data, tmp_path / name, prefix)
    same(str(tiny_data), str(tmp_path / name))


def test_an_archive_of_many_categories_is_walked_once_per_version(
        tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    walked: list[str] = []

    def counted(uri: str, done: Callable[[SourceRecord], None]) -> Iterator[tuple[str, Member]]:
        walked.append(uri)
        return scan(uri, done)

    monkeypatch.setattr(trees, "scan", counted)
    archive = tmp_path / "all.tar"
    pack(tiny_data, archive)
    for name in categories(str(archive)):
        normal_images(str(archive), name)
    assert len(walked) == 1
    pack(tiny_data / "weave", archive, "weave/")
    assert len(normal_images(str(archive), "weave")) == 24 and len(walked) == 2


def test_archives_on_s3_are_read_by_ranges(tiny_data: Path, packed: Path, tabled: Path,
                                           bucket: str) -> None:
    for folder in (packed, tabled):
        for path in folder.iterdir():
            storage.write_bytes(f"{bucket}/{folder.name}/{path.name}", path.read_bytes())
        same(str(tiny_data), f"{bucket}/{folder.name}")


def test_rows_need_no_extension_and_splits_of_test_images_are_not_trained_on(
        tiny_data: Path, tmp_path: Path) -> None:
    """As HuggingFace writes datasets: shards of splits, names that say little, or none."""
    folder = tmp_path / "weave"
    folder.mkdir()
    images = [path.read_bytes() for path in sorted((tiny_data / "weave").glob("train/*/*.png"))]
    for split, paths in (("train-00000-of-00002", [f"{i:02d}" for i in range(12)]),
                         ("train-00001-of-00002", [None] * 12),
                         ("test-00000-of-00001-0fc5a1", ["x.png"] * 12)):
        part = images[12:] if paths[0] is None else images[:12]
        pq.write_table(pa.table({"image": [{"bytes": image, "path": path} for image, path in
                                           zip(part, paths, strict=True)]}),
                       folder / f"{split}.parquet")
    assert categories(str(tmp_path)) == ["weave"]
    found = load_normals(normal_images(str(tmp_path), "weave"), CONFIG)
    whole = load_normals(normal_images(str(tiny_data), "weave"), CONFIG)
    assert found.sha256 == whole.sha256
    assert found.keys == tuple(f"train-0000{i // 12}-of-00002/{i % 12:02d}" for i in range(24))


def test_a_parquet_file_of_other_columns_is_an_error(tmp_path: Path) -> None:
    pq.write_table(pa.table({"front": [b"x"], "back": [b"y"]}), tmp_path / "part.parquet")
    with pytest.raises(DataError, match=r"part.parquet has 2 columns .*expected one column"):
        normal_images(str(tmp_path), "part")


def test_folder_and_archive_of_one_category_are_both_read(tiny_data: Path, packed: Path) -> None:
    folder = packed / "weave" / "train" / "good"
    folder.mkdir(parents=True)
    shutil.copy(tiny_data / "weave" / "train" / "good" / "000.png", folder / "new.png")
    assert len(normal_images(str(packed), "weave")) == 25


def test_what_is_in_an_archive_is_named_with_it(packed: Path) -> None:
    assert list_tree(str(packed / "weave"))[0].uri.endswith(
        "weave.tar (./ground_truth/colour/000_mask.png)")


def test_a_cut_archive_is_an_error_and_not_a_smaller_dataset(packed: Path) -> None:
    tar = packed / "weave.tar"
    for cut, word in ((len(tar.read_bytes()) // 2, "truncated"), (-20 * 512, "")):
        damaged = packed / "cut.tar"
        damaged.write_bytes(tar.read_bytes()[:cut])
        with pytest.raises(DataError, match=f"cut.tar is .*{word}.* copy it again"):
            normal_images(str(packed), "cut")
        damaged.unlink()


def test_a_damaged_member_is_skipped_by_name_and_the_rest_is_used(tmp_path: Path,
                                                                 tiny_data: Path) -> None:
    with tarfile.open(tmp_path / "part.tar", "w") as tar:
        for path in sorted((tiny_data / "weave" / "train" / "good").glob("*.png")):
            tar.add(path, path.name)
        info = tarfile.TarInfo("broken.png")
        info.size = 10
        tar.addfile(info, io.BytesIO(b"0123456789"))
    config = preset_config("fast", ["image.size=64", "calibration.max_unreadable=0.1"])
    loaded = load_normals(normal_images(str(tmp_path), "part"), config)
    assert len(loaded.keys) == 24 and loaded.skipped == (("broken.png", "not_image"),)
