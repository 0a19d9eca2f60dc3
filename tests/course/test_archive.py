"""A submission's zip is unpacked whole, or refused with the entry's name and nothing written."""

import stat
import struct
import zipfile

import pytest

from course import archive
from engine.errors import InputError


def zipped(path, entries):
    """A zip with these (name or ZipInfo, bytes), in this order, duplicates too."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as written:
        for name, content in entries:
            written.writestr(name, content, compress_type=zipfile.ZIP_DEFLATED)
    return path


def special(name: str, kind: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system, entry.external_attr = 3, (kind | 0o777) << 16
    return entry


def named(name: str) -> zipfile.ZipInfo:
    """An entry of a name that zipfile itself would mend."""
    entry = zipfile.ZipInfo("x")
    entry.filename = name
    return entry


def test_files_come_out_as_they_went_in_and_folders_are_made(tmp_path):
    content = {"optimizer.py": b"a = 1\n", "models/gpt2.py": b"", "models/deep/er.txt": b"x" * 9}
    path = zipped(tmp_path / "s.zip", [("models/", b""), *content.items()])
    found = archive.unpack(path, tmp_path / "out")
    assert {p.relative_to(tmp_path / "out").as_posix(): p.read_bytes() for p in found} == content
    assert found == sorted(found)


REFUSED = {
    "absolute": ([(named("/etc/passwd"), b"")], "'/etc/passwd': an absolute path"),
    "windows": ([(named("C:/x.py"), b"")], "'C:/x.py': an absolute path"),
    "backslash": ([(named("..\\x.py"), b"")], "an absolute path"),
    "parent": ([(named("a/../../x.py"), b"")], "'a/../../x.py': leads out of the folder"),
    "link": ([(special("x.py", stat.S_IFLNK), b"/etc/passwd")], "'x.py': a link, expected files"),
    "device": ([(special("zero", stat.S_IFCHR), b"")], "'zero': a device or socket"),
    "pipe": ([(special("pipe", stat.S_IFIFO), b"")], "'pipe': a device or socket"),
    "case": ([("Utils.py", b"1"), ("utils.py", b"2")], "'utils.py': clashes with 'Utils.py'"),
    "folder's case": ([("Models/a.py", b"1"), ("models/b.py", b"2")], "clashes with 'Models'"),
    "accent": ([("e\u0301.py", b"1"), ("\u00e9.py", b"2")], "clashes with"),
    "file and folder": ([("a", b"1"), ("a/b.py", b"2")], "'a' is a file, and no folder"),
    "terminal": ([("\x1b[2J.py", b"1")], r"'\x1b[2J.py': found a name"),
    "right to left": ([("a\u202eyp.py", b"1")], r"\u202e"),
    "long": ([("a" * 300, b"1")], "found a name"),
    "many": ([(f"{i}.py", b"") for i in range(2001)], "'1999.py': more than 2,000 files"),
    "bomb": ([("zeros", bytes(2_000_000))], "unpack to 2,000,000, expected at most 100 times"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_zip_is_refused_with_the_entrys_name_and_nothing_is_written(tmp_path, case):
    entries, words = REFUSED[case]
    path = zipped(tmp_path / "s.zip", [("good.py", b"1"), *entries])
    with pytest.raises(InputError) as refusal:
        archive.unpack(path, tmp_path / "out")
    assert words in str(refusal.value) and "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path):
    path = zipped(tmp_path / "s.zip", [("a.py", b"1"), ("a.py", b"2")])
    with pytest.raises(InputError, match=r"'a\.py': stands twice"):
        archive.unpack(path, tmp_path / "out")


def test_an_encrypted_entry_is_refused(tmp_path):
    path = zipped(tmp_path / "s.zip", [("a.py", b"1")])
    content = path.read_bytes().replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    )
    path.write_bytes(content)
    with pytest.raises(InputError, match="encrypted"):
        archive.unpack(path, tmp_path / "out")


def test_a_total_of_many_files_is_limited(tmp_path, monkeypatch):
    monkeypatch.setattr(archive, "MAX_BYTES", 100)
    path = zipped(tmp_path / "s.zip", [("a", b"1" * 60), ("b", b"2" * 60)])
    with pytest.raises(InputError, match="'b': more than 100 bytes unpacked"):
        archive.unpack(path, tmp_path / "out")


def test_a_file_that_is_longer_than_its_header_says_is_refused(tmp_path):
    path = zipped(tmp_path / "s.zip", [("a", b"1" * 600)])
    content = path.read_bytes().replace(struct.pack("<L", 600), struct.pack("<L", 6))
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"s\.zip"):
        archive.unpack(path, tmp_path / "out")


@pytest.mark.parametrize("content", [b"", b"no zip", b"PK\x03\x04" + bytes(50)])
def test_what_is_no_zip_is_refused(tmp_path, content):
    (tmp_path / "s.zip").write_bytes(content)
    with pytest.raises(InputError, match="no whole zip"):
        archive.unpack(tmp_path / "s.zip", tmp_path / "out")


def test_a_zipped_folder_is_looked_into_and_what_macs_add_is_passed_over(tmp_path):
    for name in ("project/models/gpt2.py", "project/config.py", "__MACOSX/project/._config.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    assert archive.submission_root(tmp_path) == tmp_path / "project"
    assert archive.submission_root(tmp_path / "project") == tmp_path / "project"


def test_a_submission_of_predictions_alone_keeps_their_folder(tmp_path):
    (tmp_path / "project" / "predictions").mkdir(parents=True)
    assert archive.submission_root(tmp_path) == tmp_path / "project"
