"""Tar archives of every dialect listed without unpacking, beyond 8 GiB too, and damaged in many ways."""

import os
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nemo_simplerl.model.formats.archive import TarWriter, list_files
from nemo_simplerl.model.source import open_source
from support.forms import converted, members, save_model, write_tar


@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_files_are_found_in_every_dialect_of_tar(tmp_path, dialect):
    content = {"./a.yaml": b"x" * 511, f"{'d' * 90}/{'f' * 90}": b"y" * 512, "dü/empty": b"", "dü/b": b"z" * 1025}
    with tarfile.open(tmp_path / "x.tar", "w:", format=dialect) as tar:
        tar.add(tmp_path, "dü", recursive=False)
        for name, data in content.items():
            (tmp_path / "file").write_bytes(data)
            os.utime(tmp_path / "file", (1.5, 1.5))  # no whole second: PAX gives it a header of its own
            tar.add(tmp_path / "file", name)
    found = list_files(tmp_path / "x.tar")
    assert {name: extent.read() for name, extent in found.items()} == {
        name.removeprefix("./"): data for name, data in content.items()
    }


@pytest.mark.parametrize("dialect", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_a_file_beyond_8_gib_is_found_where_it_is(tmp_path, dialect):
    big, small = tarfile.TarInfo("big"), tarfile.TarInfo("small")
    big.size, small.size = 9 << 30, 5
    with open(tmp_path / "x.tar", "wb") as file:  # the big one is a hole
        header = big.tobuf(dialect)
        file.write(header)
        file.seek(big.size, os.SEEK_CUR)
        file.write(small.tobuf(dialect) + b"hello" + bytes(507) + bytes(1024))
    found = list_files(tmp_path / "x.tar")
    assert (found["big"].offset, found["big"].size) == (len(header), 9 << 30)
    assert found["small"].read() == b"hello"


def test_tarfile_reads_what_we_write(tmp_path):
    content = {"a": b"", "b/c": b"x" * 512, "d": b"y" * 700}
    with open(tmp_path / "x.tar", "wb") as file:
        tar = TarWriter(file)
        for name, data in content.items():
            with tar.add(name) as stream:
                for byte in data:
                    stream.write(bytes([byte]))
                assert stream.tell() == len(data)
        tar.finish()
    assert members(tmp_path / "x.tar") == content == {k: v.read() for k, v in list_files(tmp_path / "x.tar").items()}


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XGLTYPE])
def test_negative_sizes_do_not_lead_in_a_circle(tmp_path, kind):
    info = tarfile.TarInfo("x")
    info.type = kind
    block = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = tarfile.itn(-1024, 12, tarfile.GNU_FORMAT)
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "x.tar").write_bytes(block * 3 + bytes(1024))
    with pytest.raises(ValueError, match="'x' ends beyond"):
        list_files(tmp_path / "x.tar")


def test_files_with_holes_are_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    (tmp_path / "x.tar").write_bytes(info.tobuf(tarfile.PAX_FORMAT) + bytes(1024))
    with pytest.raises(ValueError, match=r"GNU.sparse.major: files with holes are not read"):
        list_files(tmp_path / "x.tar")


def test_links_in_a_folder_are_refused(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a/link").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"a/link is a link or a special file"):
        list_files(tmp_path)


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("archive")
    return members(converted(save_model(folder / "hf"), folder / "m.nemo", "nemo"))


# Where a byte of an archive can be changed: in the tar's headers, or in one of its files.
_PLACES = ("tar", "model_config.yaml", "hf/config.json", "model_weights/.metadata", "model_weights/__0_0.distcp")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.sampled_from(_PLACES), data=st.data())
def test_a_damaged_archive_is_read_or_raises_valueerror(archive, tmp_path, place, data):
    path = write_tar(tmp_path / "x.nemo", archive)
    content = bytearray(path.read_bytes() if place == "tar" else archive[place])
    if data.draw(st.booleans(), "cut"):
        del content[data.draw(st.integers(0, len(content) - 1), "at") :]
    for _ in range(data.draw(st.integers(0, 5), "changes") if content else 0):
        content[data.draw(st.integers(0, len(content) - 1), "where")] = data.draw(st.integers(0, 255), "byte")
    if place == "tar":
        path.write_bytes(content)
    else:
        write_tar(path, archive | {place: bytes(content)})
    try:
        source = open_source(path)
        for name in source.specs:
            assert source.read(name).shape == source.specs[name].shape
    except ValueError:
        pass
