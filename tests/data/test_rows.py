"""Files of the world: encodings, ends of line, halves of characters, pointers of git-lfs, tables."""

import codecs
import gzip
import json

import pytest

from nemo_simplerl.data.rows import fields_of, read_rows, value_at

ROWS = [{"question": "Wie viele Äpfel?", "answer": "3"}, {"question": "Two\u2028lines", "answer": "4"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
TABLE = 'question,answer\n"Wie viele Äpfel?",3\nTwo\u2028lines,4\n'
FORMS = {"a.jsonl": LINES, "a.json": json.dumps(ROWS, ensure_ascii=False), "a.CSV": TABLE}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (b"", "utf-8"),
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
    ],
)
def test_marked_encodings_and_every_end_of_line_are_read(tmp_path, name, mark, encoding):
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / name).write_bytes(mark + FORMS[name].replace("\n", end).encode(encoding))
        assert read_rows(tmp_path / name) == ROWS


def test_files_with_marks_may_be_put_one_behind_the_other(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(2 * (codecs.BOM_UTF8 + LINES.encode()))
    assert read_rows(tmp_path / "a.jsonl") == 2 * ROWS


POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{0:064}\nsize 3421816\n"


@pytest.mark.parametrize("name", [*FORMS, "a.parquet"])
def test_a_pointer_of_git_lfs_is_called_one(tmp_path, name):
    (tmp_path / name).write_text(POINTER)
    with pytest.raises(ValueError, match=rf"{name} is a pointer of git-lfs.*git lfs pull"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize("name", FORMS)
def test_other_encodings_are_refused_with_line_and_remedy(tmp_path, name):
    (tmp_path / name).write_bytes(b"\n" + FORMS[name].replace("\u2028", "").encode("latin-1"))
    with pytest.raises(ValueError, match=rf"{name}: line \d is not UTF-8 \(byte 0xc4\).*iconv -f WINDOWS-1252"):
        read_rows(tmp_path / name)
    (tmp_path / name).write_bytes(FORMS[name].encode("utf-16-le"))
    with pytest.raises(ValueError, match=rf"{name}: line 1 holds a NUL byte.*save it as UTF-8"):
        read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (gzip.compress(LINES.encode(), mtime=0), "packed by gzip: run gunzip"),
        (b"PK\x03\x04\x14\0", r"a zip archive, as a workbook \(.xlsx\) is"),
        (b"PAR1\x15\0", "a parquet file: let its name end in .parquet"),
    ],
)
def test_a_file_of_another_kind_is_told_as_what_it_is(tmp_path, content, told):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.csv is no text but {told}"):
        read_rows(tmp_path / "a.csv")


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.csv", "question;answer\n1+1?;2\n", "divided by ';', and not by commas"),
        ("a.csv", "question\tanswer\n1+1?\t2\n", r"divided by '\\t', and not by commas"),
        ("a.csv", "question,answer,answer\n1+1?,2,3\n", "names 'answer' more than once"),
        ("a.json", LINES, "the file is not JSON.*are a .jsonl: rename the file"),
        ("a.jsonl", json.dumps(ROWS, indent=1), "line 1 is not JSON.*is a .json: rename the file"),
        ("a.jsonl", '{"answer": ' + "7" * 5000 + "}", "a.jsonl: line 1 is not JSON.*4300 digits"),
    ],
)
def test_a_file_of_another_form_than_its_ending_says_is_refused_with_the_form_that_it_has(
    tmp_path, name, content, told
):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=told):
        read_rows(tmp_path / name)


def test_blanks_around_the_names_of_a_tables_fields_are_no_part_of_them(tmp_path):
    (tmp_path / "a.csv").write_text("\ufeff\ufeffquestion, answer \n1+1?,2\n")
    assert read_rows(tmp_path / "a.csv") == [{"question": "1+1?", "answer": "2"}]


@pytest.mark.parametrize("half", ["\\ud83d", "\\uDE00 x"])
def test_half_of_a_surrogate_pair_is_refused_with_its_row_and_a_whole_one_is_read(tmp_path, half):
    whole = '{"question": "a \\ud83d\\ude00", "answer": 1}'
    broken = whole.replace("\\ud83d\\ude00", half)
    (tmp_path / "a.jsonl").write_text(f"{whole}\n\n{broken}\n")
    (tmp_path / "a.json").write_text(f"[{whole}, {broken}]")
    for name in ("a.jsonl", "a.json"):
        with pytest.raises(ValueError, match=rf"{name}: 1 row \(1; counted from 0\) with half of a surrogate pair"):
            read_rows(tmp_path / name)
    (tmp_path / "a.jsonl").write_text(whole)
    assert read_rows(tmp_path / "a.jsonl")[0]["question"] == "a \U0001f600"


def test_a_file_that_may_not_be_read_is_told(tmp_path, monkeypatch):
    (tmp_path / "a.jsonl").write_text(LINES)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("pathlib.Path.read_bytes", refuse)
    with pytest.raises(ValueError, match=r"a.jsonl cannot be read: Permission denied"):
        read_rows(tmp_path / "a.jsonl")


def test_parquet_holds_chats_and_objects_as_json_does(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed")
    import pyarrow

    rows = [{"prompt": [{"role": "user", "content": "1+1?"}], "reward_model": {"style": "rule", "ground_truth": "2"}}]
    (tmp_path / "split=train").mkdir()  # not read as a column
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "split=train" / "a.parquet")
    assert read_rows(tmp_path / "split=train" / "a.parquet") == rows


def test_a_dotted_name_leads_into_objects_unless_a_field_has_it():
    row = {"a": {"b": {"c": 1}}, "a.b": 2, "d": [3]}
    assert [value_at(row, name) for name in ("a.b", "a.b.c", "d", "d.e", "x.y")] == [2, 1, [3], None, None]
    assert fields_of(row) == ["a.b.c", "a.b", "d"]
