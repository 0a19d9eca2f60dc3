"""The course's files as records: formats and their oddities, and the line of what is incomplete."""

import csv
import io
import random

import pytest
from course_files import (
    COURSE_DATA,
    pairs_text,
    sentiment_text,
    sonnets_text,
    write,
    write_course,
)

from engine.errors import InputError
from engine.records import (
    PairRecord,
    Record,
    read_pairs,
    read_sentiment,
    read_sonnets,
    rows_in_both,
    spaced,
    warn_of_rows_in_both,
)
from engine.tables import read_table

needs_course_data = pytest.mark.skipif(
    not COURSE_DATA.is_dir(), reason="the course's data are not here"
)
BREAKS = "\xa0\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # str.splitlines cuts at all but the first


def table(path, rows: list[list], newline: str = "\n"):
    """Write rows as csv.writer does, quoting where it must."""
    buffer = io.StringIO(newline="")
    csv.writer(buffer, delimiter="\t", lineterminator=newline).writerows(rows)
    return write(path, buffer.getvalue())


def dict_rows(path) -> list[dict]:
    """How the course reads a file: the oracle."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


# -- sentiment ---------------------------------------------------------------------------------


def test_sentiment_rows_are_lower_cased_stripped_and_labelled(tmp_path):
    path = write(tmp_path / "a.csv", "\tid\tsentence\tsentiment\n0\t AbC1 \t It 's ÉPIC . \t4\n")
    assert read_sentiment(path, 5) == [Record("abc1", "it 's épic .", 4)]


def test_the_odd_header_of_the_test_files_is_read_by_its_names(tmp_path):
    path = write(tmp_path / "a.csv", "0\t\tid\tsentence\n1\t0.0\tB75\t Effective but\n")
    assert read_sentiment(path, None) == [Record("b75", "effective but", None)]


def test_columns_are_found_by_name_in_any_order(tmp_path):
    path = write(tmp_path / "a.csv", "sentiment\tsentence\tid\n3\tfine\tx\n")
    assert read_sentiment(path, 5) == [Record("x", "fine", 3)]


@pytest.mark.parametrize("cell, label", [("0", 0), ("4", 4), ("3.0", 3), (" 2 ", 2), ("1e0", 1)])
def test_labels_may_be_written_as_floats(tmp_path, cell, label):
    path = write(tmp_path / "a.csv", f"\tid\tsentence\tsentiment\n0\ta\tfine\t{cell}\n")
    assert read_sentiment(path, 5)[0].label == label


@pytest.mark.parametrize(
    "cell, text",
    [
        ('" """""" I remember"', '""" i remember'),  # a row of CFIMDB begins so
        ('"say ""hi"" now"', 'say "hi" now'),
        ('say "hi" now', 'say "hi" now'),  # a quote inside a bare cell is text
        ('"all of it"', "all of it"),
        ("it''s", "it''s"),
    ],
)
def test_quotes_are_read_as_csv_reads_them_by_default(tmp_path, cell, text):
    path = write(tmp_path / "a.csv", f"\tid\tsentence\tsentiment\n0\ta\t{cell}\t1\n")
    assert read_sentiment(path, 2)[0].text == text
    assert dict_rows(path)[0]["sentence"].lower().strip() == text


@pytest.mark.parametrize("mark", BREAKS)
def test_unusual_spaces_inside_a_sentence_do_not_cut_its_row(tmp_path, mark):
    path = write(
        tmp_path / "a.csv",
        f"\tid\tsentence\tsentiment\n0\ta\tone{mark}two\t1\n1\tb\tthree\t0\n",
    )
    assert read_sentiment(path, 2) == [Record("a", f"one{mark}two", 1), Record("b", "three", 0)]
    pairs = write(tmp_path / "b.csv", f"\tid\tsentence1\tsentence2\n0\ta\tone{mark}two\tx{mark}\n")
    assert read_pairs(pairs, labelled=False).records == [PairRecord("a", "one two", "x")]


@pytest.mark.parametrize(
    "before, newline, after",
    [("", "\r\n", "\r\n"), ("\ufeff", "\n", "\n"), ("\ufeff", "\r\n", ""), ("", "\n", "\n\n\n")],
)
def test_byte_order_mark_line_ends_and_blank_last_lines_change_nothing(
    tmp_path, before, newline, after
):
    lines = ["\tid\tsentence\tsentiment", "0\ta\tfine", "1\tb\t bad"]
    lines[1:] = [f"{line}\t1" for line in lines[1:]]
    path = write(tmp_path / "a.csv", before + newline.join(lines) + after)
    assert read_sentiment(path, 2) == [Record("a", "fine", 1), Record("b", "bad", 1)]


def test_a_byte_order_mark_before_the_first_column_name_is_no_part_of_it(tmp_path):
    path = write(tmp_path / "a.csv", "\ufeffid\tsentence\na\tfine\n")
    assert read_sentiment(path, None) == [Record("a", "fine")]


# -- Quora -------------------------------------------------------------------------------------


def test_questions_are_spaced_as_the_course_spaces_them():
    assert spaced("  Why, is it?  It's U.S.A. ") == "why , is it ? it 's u .s .a ."

    def course(s):  # preprocess_string of the course's datasets.py
        for mark in (".", "?", ",", "'"):
            s = s.replace(mark, f" {mark}")
        return " ".join(s.lower().split())

    draw = random.Random(0)
    for _ in range(300):
        text = "".join(draw.choices("aB É.?,'\t\n\xa0\"İ", k=30))
        assert spaced(text) == course(text)


def test_pairs_have_both_questions_and_a_label_from_a_float(tmp_path):
    path = write(
        tmp_path / "a.csv",
        "\tid\tsentence1\tsentence2\tis_duplicate\n"
        "9\t F1 \tWhy me?\tWhy, me?\t1.0\n8\tf2\ta\tb\t0\n",
    )
    assert read_pairs(path, labelled=True).records == [
        PairRecord("f1", "why me ?", "why , me ?", 1),
        PairRecord("f2", "a", "b", 0),
    ]


def test_incomplete_pairs_are_left_out_and_named_by_line_and_id(tmp_path):
    rows = [
        "\tid\tsentence1\tsentence2\tis_duplicate",
        "0\tok1\ta\tb\t1.0",
        "1\tNoLabel\ta\tb\t",
        "2\tblank\t  \tb\t0.0",
        '3\tmany\t"a\nb\nc"\td\t1.0',
        "4\tshort\ta",
        "5\tok2\tc\td\t0.0",
    ]
    pairs = read_pairs(write(tmp_path / "a.csv", "\n".join(rows)), labelled=True)
    assert [record.sent_id for record in pairs.records] == ["ok1", "many", "ok2"]
    assert pairs.dropped == ["line 3 (id nolabel)", "line 4 (id blank)", "line 8 (id short)"]


def test_a_pair_whose_quote_never_closes_is_not_taken_for_an_incomplete_one(tmp_path):
    rows = ["\tid\tsentence1\tsentence2\tis_duplicate", "0\ta\tx\ty\t1.0", '1\tb\t"why?\thow?\t1.0']
    path = write(tmp_path / "a.csv", "\n".join(rows))  # no newline after the last row
    with pytest.raises(InputError, match=r"a\.csv, line 3: a quote opens here and never closes"):
        read_pairs(path, labelled=True)


# -- line numbers ------------------------------------------------------------------------------


def test_line_numbers_are_those_of_an_editor(tmp_path):
    """Also after cells of several lines, blank lines and CRLF."""
    text = '\tid\tsentence\n0\ta\t"two\nlines"\n\n1\tb\t"three\n\nlines"\n2\tc\tfine\n'
    for newline in ("\n", "\r\n"):
        path = write(tmp_path / "a.csv", text.replace("\n", newline))
        rows = read_table(path, ["id", "sentence"])
        assert [(line, row["id"]) for line, row in rows] == [(2, "a"), (5, "b"), (8, "c")]
        lines = path.read_bytes().decode().split(newline)
        assert all(f"\t{row['id']}\t" in lines[line - 1] for line, row in rows)


def test_the_line_of_a_wrong_label_is_right_after_a_cell_of_several_lines(tmp_path):
    text = '\tid\tsentence\tsentiment\n0\ta\t"two\nlines"\t1\n1\tb\tfine\t7\n'
    with pytest.raises(InputError, match=r"a\.csv, line 4, column sentiment: label '7'"):
        read_sentiment(write(tmp_path / "a.csv", text), 5)


# -- sonnets -----------------------------------------------------------------------------------


def test_sonnets_keep_their_lines_whatever_their_number(tmp_path):
    parts = [sonnets_text([number], lines=n) for number, n in ((99, 15), (126, 12), (7, 14))]
    text = parts[0] + parts[1].split("\n\n\n")[1] + parts[2].split("\n\n\n")[1]
    records = read_sonnets(write(tmp_path / "s.txt", text))
    assert [(r.sent_id, r.text.count("\n") + 1) for r in records] == [
        ("99", 15),
        ("126", 12),
        ("7", 14),
    ]
    assert "nobody" not in records[0].text  # the preamble is no sonnet


def test_sonnets_keep_the_couplet_s_indent_and_lose_spaces_at_line_ends(tmp_path):
    path = write(tmp_path / "s.txt", "1\n\nRose, 14 times \t\n  So long\n\n 2 \n\nmine\n")
    assert read_sonnets(path) == [Record("1", "Rose, 14 times\n  So long"), Record("2", "mine")]


def test_sonnets_are_the_same_with_a_byte_order_mark_and_crlf(tmp_path):
    text = sonnets_text([1, 2, 3])
    plain = read_sonnets(write(tmp_path / "a.txt", text))
    other = read_sonnets(write(tmp_path / "b.txt", "\ufeff" + text.replace("\n", "\r\n")))
    assert plain == other and len(plain) == 3


@pytest.mark.parametrize(
    "first, second",
    [
        ("1.", "2."),
        ("I", "II"),
        ("i.", "ii."),
        ("Sonnet 1", "Sonnet 2"),
        ("SONNET I.", "SONNET II."),
        ("Sonnet\xa0CXXXI:", "Sonnet\xa0CXXXII:"),
        ("## Sonnet 1", "## Sonnet 2"),
        ("(1)", "(2)"),
        ("1", "Sonnet II"),
        ("1\xa0", "\u20092"),
        ("\u200b1", "2\ufeff"),
        ("\x0c1", "\x0c2"),
        ("XXXIX", "XXXX"),
    ],
)
def test_headings_are_recognised_however_their_number_is_written(tmp_path, first, second):
    path = write(tmp_path / "s.txt", f"Sonnets\n\n{first}\n\nI say\n\n{second}\n\nI do\n")
    records = read_sonnets(path)
    assert [record.text for record in records] == ["I say", "I do"]
    numbers = [int(record.sent_id) for record in records]
    assert numbers[1] == numbers[0] + 1 and numbers[0] in (1, 39, 131)


@pytest.mark.parametrize("newline", ["\r", "\r\r\n"])
def test_sonnets_with_odd_line_ends_are_those_of_the_plain_file(tmp_path, newline):
    text = sonnets_text([1, 2, 3])
    plain = read_sonnets(write(tmp_path / "a.txt", text))
    assert read_sonnets(write(tmp_path / "b.txt", text.replace("\n", newline))) == plain


@pytest.mark.parametrize("verse", ["I", "Sonnet 2", "X", "II", "1609.", "1,", "I,", "Ill", "Mix"])
def test_a_verse_that_looks_like_a_heading_stays_a_verse(tmp_path, verse):
    for heading in ("7", "Sonnet VII"):
        path = write(tmp_path / "s.txt", f"{heading}\n\n{verse}\n{verse}\nlove\n{verse}\n\n8\n\nI")
        poem = f"{verse}\n{verse}\nlove\n{verse}"
        assert read_sonnets(path) == [Record("7", poem), Record("8", "I")]


@pytest.mark.parametrize(
    "text, line, found",
    [
        ("1\n\nlove\n2.\nhate\n", 4, "'2.'"),
        ("I\nlove\nII\nhate\n", 3, "'II'"),
        ("7\n\nlove\n\nI\nhate\n", 5, "'I'"),
        ("Sonnet 7\n\nlove\n\nSonnet 9\n\nhate\n", 5, "'Sonnet 9'"),
        ("1\r\rlove\rSonnet 2\r\rhate\r", 4, "'Sonnet 2'"),
        ("\x0c1\n\x0c\nlove\x0c\nII\nhate\n", 4, "'II'"),
    ],
)
def test_a_line_that_may_be_a_heading_or_a_verse_is_named(tmp_path, text, line, found):
    path = write(tmp_path / "s.txt", text)
    with pytest.raises(InputError, match=rf"s\.txt, line {line}: found {found} in sonnet \w, "):
        read_sonnets(path)


def test_no_mixture_of_headings_merges_sonnets(tmp_path):
    """As many sonnets as the file has, or an error with a line of it."""
    draw = random.Random(2)
    roman = ["I", "II", "III", "IV", "V", "VI", "VII", "VIII", "IX"]
    forms = ("{n}", "{n}.", "{r}", "{r}.", "Sonnet {n}", "SONNET {r}.", "{n}\xa0", "\u200b{n}")
    taken = refused = 0
    for _ in range(300):
        text, count = "Sonnets\n", draw.randint(2, 9)
        for n, r in enumerate(roman[:count], start=1):
            heading = draw.choice(forms).format(n=n, r=r)
            blanks = draw.choice(["\n\n", "\n\n", "\n\n\n", "\n"])
            text += f"{blanks}{heading}{draw.choice(['', chr(10)])}\nlove {n}\nis blind"
        path = write(tmp_path / "s.txt", text.replace("\n", draw.choice(["\n", "\r\n", "\r"])))
        try:
            assert [r.text for r in read_sonnets(path)] == [
                f"love {n + 1}\nis blind" for n in range(count)
            ]
            taken += 1
        except InputError as error:
            assert "s.txt, line " in str(error)
            refused += 1
    assert taken > 50 and refused > 50


# -- many files --------------------------------------------------------------------------------


def test_random_tables_come_back_as_they_were_written(tmp_path):
    """Tabs, quotes and line ends of all kinds, through csv.writer, and as the course reads them."""
    draw = random.Random(1)
    alphabet = 'ab Z"\'",;\\.é\n' + BREAKS
    for trial in range(60):
        rows, expected = [["", "id", "sentence", "sentiment"]], []
        for i in range(draw.randint(1, 12)):
            sentence = "".join(draw.choices(alphabet, k=draw.randint(1, 20))) + "x"
            label = draw.randrange(5)
            rows.append([i, f"ID{trial}-{i}", sentence, draw.choice([label, float(label)])])
            expected.append(Record(f"id{trial}-{i}", sentence.lower().strip(), label))
        path = table(tmp_path / "a.csv", rows, newline=draw.choice(["\n", "\r\n"]))
        assert read_sentiment(path, 5) == expected
        if b"\r\n" not in path.read_bytes():
            course = [row["sentence"].lower().strip() for row in dict_rows(path)]
            assert course == [record.text for record in expected]


def test_small_files_of_the_other_tests_are_read_whole(tmp_path):
    """The helpers write the course's format: as many rows as asked for."""
    path = write(tmp_path / "a.csv", sentiment_text(5, 7, labelled=False))
    assert len(read_sentiment(path, None)) == 7
    pairs = read_pairs(write(tmp_path / "b.csv", pairs_text(6, labelled=True)), labelled=True)
    assert (len(pairs.records), pairs.dropped) == (6, ["line 8 (id q0x6)"])


# -- damaged files ----------------------------------------------------------------------------

READERS = {
    "ids-sst-train.csv": lambda path: read_sentiment(path, 5),
    "quora-train.csv": lambda path: read_pairs(path, labelled=True).records,
    "sonnets.txt": read_sonnets,
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe\x00", b"\x00" * 50, b'"', b"\t\t\t\n", b'\tid\t"\n', b"1", b"\r", b"{}"],
)
def test_readers_answer_bytes_of_any_kind_with_an_input_error(tmp_path, read, data):
    (tmp_path / "x.csv").write_bytes(data)
    with pytest.raises(InputError, match=r"x\.csv"):
        read(tmp_path / "x.csv")


def test_readers_answer_any_damage_of_a_good_file_with_an_input_error_or_records(tmp_path):
    """Cut, bytes dropped, bytes changed: a few hundred times, never another exception."""
    draw = random.Random(0)
    write_course(tmp_path / "good", rows=6)
    marks = [b"", b'"', b"\t", b"\n", b"\r", b"\xff", b"\x00"]
    refused = taken = 0
    for name, read in READERS.items():
        good = (tmp_path / "good" / name).read_bytes()
        for _ in range(150):
            data = bytearray(good)
            for _ in range(draw.randint(1, 3)):
                at = draw.randrange(len(data))
                data[at : at + draw.choice([0, 1, 9])] = draw.choice(marks)
            end = draw.choice([len(data), draw.randrange(len(data))])
            (tmp_path / name).write_bytes(data[:end])
            try:
                assert read(tmp_path / name)
                taken += 1
            except InputError as error:
                assert name in str(error)
                refused += 1
    assert taken > 50 and refused > 50


# -- the real files ----------------------------------------------------------------------------


@needs_course_data
@pytest.mark.parametrize(
    "name, num_labels, rows",
    [
        ("sst-train", 5, 8544),
        ("sst-dev", 5, 1101),
        ("sst-test-student", None, 2210),
        ("cfimdb-train", 2, 1707),
        ("cfimdb-dev", 2, 245),
        ("cfimdb-test-student", None, 488),
    ],
)
def test_the_course_s_sentiment_files_are_read_whole(name, num_labels, rows):
    path = COURSE_DATA / f"ids-{name}.csv"
    records, course = read_sentiment(path, num_labels), dict_rows(path)
    assert len(records) == len(course) == rows
    assert [r.text for r in records] == [row["sentence"].lower().strip() for row in course]
    assert [r.sent_id for r in records] == [row["id"].lower().strip() for row in course]
    if num_labels:
        assert [r.label for r in records] == [int(row["sentiment"]) for row in course]
        assert {record.label for record in records} == set(range(num_labels))


@needs_course_data
@pytest.mark.parametrize(
    "split, rows, dropped",
    [
        ("train", 15998, ["line 2577", "line 14222"]),
        ("dev", 2107, []),
        ("test-student", 2107, []),
    ],
)
def test_the_course_s_quora_files_are_read_whole(split, rows, dropped):
    pairs = read_pairs(COURSE_DATA / f"quora-{split}.csv", labelled=split != "test-student")
    assert len(pairs.records) == rows
    assert [text.split(" (id ")[0] for text in pairs.dropped] == dropped
    lines = (COURSE_DATA / f"quora-{split}.csv").read_text(encoding="utf-8").split("\n")
    for text in pairs.dropped:
        line, sent_id = text.removeprefix("line ").rstrip(")").split(" (id ")
        assert f"\t{sent_id}\t" in lines[int(line) - 1]


@needs_course_data
def test_the_course_s_sonnet_files_are_read_whole():
    names = ("sonnets", "sonnets_held_out", "sonnets_held_out_dev", "TRUE_sonnets_held_out_dev")
    files = {name: read_sonnets(COURSE_DATA / f"{name}.txt") for name in names}
    assert [len(records) for records in files.values()] == [131, 12, 12, 12]
    lines = {
        name: {r.sent_id: sum(bool(line) for line in r.text.split("\n")) for r in records}
        for name, records in files.items()
    }
    odd = {number: count for number, count in lines["sonnets"].items() if count != 14}
    assert odd == {"99": 15, "126": 12}
    assert set(lines["sonnets_held_out"].values()) == {3}
    assert set(lines["TRUE_sonnets_held_out_dev"].values()) == {14}
    assert lines["sonnets_held_out_dev"].keys() == lines["TRUE_sonnets_held_out_dev"].keys()


# -- rows that training has seen ---------------------------------------------------------------


def test_dev_rows_that_stand_in_training_are_counted_and_named():
    training = [Record("a", "fine"), Record("b", "bad")]
    dev = [Record("c", "good"), Record("d", "bad"), Record("e", "fine")]
    assert rows_in_both(training, dev) == ["d", "e"] and rows_in_both(training, dev[:1]) == []
    said = []
    warn_of_rows_in_both(training, dev, {"train": "t.csv", "dev": "d.csv"}, said.append)
    [line] = said
    assert line.startswith("d.csv: 2 of 3 rows stand in t.csv, too") and line.endswith(": d, e")
    warn_of_rows_in_both(training, dev[:1], {"train": "t.csv", "dev": "d.csv"}, said.append)
    assert len(said) == 1


def test_a_pair_in_the_other_order_is_the_same_pair():
    training = [PairRecord("a", "x", "y", 1), PairRecord("b", "x", "x", 1)]
    dev = [PairRecord("c", "y", "x", 1), PairRecord("d", "x", "z", 0), PairRecord("e", "x", "x", 1)]
    assert rows_in_both(training, dev) == ["c", "e"]


# -- quotes ------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["so\tgood", "so\ngood", "a\t\tb\n\nc", 'say ""this""\t\n'])
@pytest.mark.parametrize("other", ["plain", '"quoted"', '"with\ttab"', '"with\n\ttab"'])
def test_a_quoted_cell_may_hold_tabs_and_lines_beside_other_quoted_cells(tmp_path, text, other):
    """As csv reads it, before and after rows of any kind."""
    rows = [("a", "fine"), ("b", f'"{text}"'), ("c", other), ("d", '5" wide'), ("e", "end")]
    lines = [f"{i}\t{sent_id}\t{cell}\t1" for i, (sent_id, cell) in enumerate(rows)]
    path = write(tmp_path / "a.csv", "\tid\tsentence\tsentiment\n" + "\n".join(lines) + "\n")
    found = read_sentiment(path, 2)
    with open(path, encoding="utf-8", newline="") as file:
        expected = list(csv.DictReader(file, delimiter="\t"))
    assert [r.text for r in found] == [row["sentence"].lower().strip() for row in expected]
    assert [record.sent_id for record in found] == list("abcde")


def test_a_quote_that_never_closes_is_named_by_the_line_on_which_it_opens(tmp_path):
    """A legal cell of three lines stands before it, in the same row."""
    text = '\tid\tsentence\tsentiment\n0\t"a\n\n"\t"so\t1\n1\tb\tit is "fine"\t1\n'
    with pytest.raises(InputError, match=r"a\.csv, line 4: a quote opens here and never closes"):
        read_sentiment(write(tmp_path / "a.csv", text), 2)


# -- what must not reach a prediction file, a spreadsheet or a terminal ------------------------


@pytest.mark.parametrize(
    "sent_id",
    [
        "=1+1",
        "+7",
        "-7",
        "@sum",
        "a\x1b[31mb",
        "a\u200bb",
        "\u202eab",
        "a b",
        "a,b",
        '"a\nb"',
        "a\x00",
    ],
)
@pytest.mark.parametrize("kind", ["sentiment", "pairs"])
def test_an_id_that_others_would_obey_or_not_see_is_refused(kind, sent_id, tmp_path):
    if kind == "sentiment":
        text = f"\tid\tsentence\tsentiment\n0\ta1\tfine\t1\n1\t{sent_id}\tfine\t1\n"
    else:
        text = f"\tid\tsentence1\tsentence2\tis_duplicate\n0\ta1\tx\ty\t1\n1\t{sent_id}\tx\ty\t1\n"
    path = write(tmp_path / "t.csv", text)
    with pytest.raises(
        InputError, match=r"t\.csv, line 3: found the id .*expected letters"
    ) as caught:
        read_sentiment(path, 5) if kind == "sentiment" else read_pairs(path, labelled=True)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("sent_id", ["0", "17.0", "f3a9", "quora-12", "a_b.c:d/e#1"])
def test_plain_ids_are_taken(sent_id, tmp_path):
    path = write(tmp_path / "t.csv", f"\tid\tsentence\tsentiment\n0\t{sent_id}\tfine\t1\n")
    assert [row.sent_id for row in read_sentiment(path, 5)] == [sent_id]


@pytest.mark.parametrize("sign", ["\u200b", "\u200d", "\u2060", "\ufeff", "\u00ad", "\x00", "\x1b"])
@pytest.mark.parametrize("form", ["{}15", "1{}5", "15{}", " 15 {} "])
def test_a_sign_that_nobody_sees_hides_no_number_line(sign, form, tmp_path):
    text = f"14\n\nfirst verse\n\n{form.format(sign)}\n\nsecond verse\n"
    found = read_sonnets(write(tmp_path / "s.txt", text))
    assert [(s.sent_id, s.text) for s in found] == [("14", "first verse"), ("15", "second verse")]


def test_a_line_of_signs_that_nobody_sees_is_blank(tmp_path):
    found = read_sonnets(write(tmp_path / "s.txt", "I\n\nfirst\n\u200b\nII\n\nsecond\n"))
    assert [sonnet.sent_id for sonnet in found] == ["1", "2"]


def test_a_long_header_is_cut_in_the_message(tmp_path):
    path = write(tmp_path / "t.csv", "x" * 500_000 + "\n0\n")
    with pytest.raises(InputError, match="line 1: no column id, sentence") as caught:
        read_sentiment(path, None)
    assert len(str(caught.value)) < 600 and "more characters)" in str(caught.value)
