"""Every advice of a message about rows is followed by a test: its command is run, its setting set.

The advices are found in the sources. The table says which test follows each; what it says is held to the tests' own
sources: one that is to run a command has to reach `subprocess.run`, one that is to set something has to name it.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

TESTS = Path(__file__).parent
SOURCES = ("ptpipeline/data", "ptpipeline/task", "flows/on_demand", "flows/stages", "flows/cli/questions.py")
# `ptp` itself is left out: its verbs have tests of their own
COMMAND = re.compile(r"\bby: (?!`?(ptp|people))|^python -c|`(curl|aws|iconv|git) ")
SETTING = re.compile(r"\b(set|give|write in the task) (\{\w+\})?(data\.[\w.]+[:,]? \S|labels:|--[a-z]+ [^\\\s])")

FILES, JSON, MARKUP, FOLDERS = (f"data/test_{name}.py" for name in ("files", "json_lines", "markup", "folders"))
LAYOUT, DRAFT, DOUBTS, SEVERAL = (
    f"flows/on_demand/test_{name}.py" for name in ("layout", "draft", "doubts", "several")
)
RUN = {  # a test: words of the advices that it runs
    "data/test_arrow.py::test_periods_are_told_with_a_command_that_writes_them_as_text": ("holds periods of pandas",),
    f"{LAYOUT}::test_a_drawn_table_is_told_with_a_command_that_makes_it_a_csv": (
        "drawn with bars and dashes",
        "the columns stand at fixed places",
    ),
    f"{FILES}::test_another_table_is_told_with_a_command_that_writes_it": (
        "from pyarrow import feather",
        "from pyarrow import ipc",
        "from pyarrow import orc",
        "write a table as Parquet by",
        "polars.read_avro",
        "pandas.read_stata",
    ),
    f"{FILES}::test_a_compressed_file_is_told_with_a_command_that_works_whatever_its_name": ("decompress it by",),
    f"{FILES}::test_an_archive_is_told_with_a_command_that_unpacks_it": (
        "unpack it by: unzip FILE",
        "unpack it by: tar -xf FILE",
    ),
    f"{FILES}::test_another_encoding_is_told_with_a_command_that_works": ("save it as UTF-8, for example by: iconv",),
    f"{FOLDERS}::test_what_datasets_saved_is_written_by_the_command": (
        "datasets.load_from_disk(sys.argv[1]).to_parquet",
    ),
    f"{FOLDERS}::test_splits_that_datasets_saved_are_written_by_the_command": (
        "datasets.load_from_disk(sys.argv[1]).items",
    ),
    f"{FOLDERS}::test_a_table_in_parts_is_written_by_the_command_with_the_values_of_its_folders": (
        "whose folders name a column",
    ),
    f"{FOLDERS}::test_a_file_for_each_text_is_written_by_the_command": ("in a folder for each label",),
    f"{JSON}::test_an_array_is_told_with_a_command_that_works": (
        "the file is one JSON array; write one object",
        "for row in {_LOADED}KEY",
    ),
    f"{JSON}::test_an_object_of_rows_is_told_with_a_command_that_works": (
        'table["columns"]',
        '{"id": key, **row}',
        "pandas.DataFrame(json.load",
        "for example those of ",
    ),
    f"{JSON}::test_texts_in_lists_by_their_labels_are_told_with_a_command_that_makes_rows": ("names are the labels",),
    f"{JSON}::test_objects_over_several_lines_are_told_with_a_command_that_works": ("write each object in one line",),
    f"{JSON}::test_lists_as_rows_are_told_with_a_command_that_names_their_values": ("name the values of each list",),
    f"{JSON}::test_texts_alone_are_told_with_a_command_that_works": ("write each text as an object",),
    f"{JSON}::test_objects_within_texts_are_told_with_a_command_that_takes_them_out": (
        "take them out of their quotes",
    ),
    f"{JSON}::test_a_list_above_other_lines_is_told_as_a_line": ("write one object a line by: python",),
    f"{JSON}::test_objects_as_python_prints_them_are_told_with_a_command_that_works": (
        "an object as Python prints it",
    ),
    f"{JSON}::test_what_stands_in_front_of_objects_is_told_with_a_command_that_works": (
        "something in front of its object",
    ),
    f"{JSON}::test_commas_between_the_lines_are_told_with_a_command_that_works": ("take the commas between",),
    f"{JSON}::test_json_within_a_script_is_told_with_a_command_that_takes_it_out": ("a script that holds JSON",),
    f"{JSON}::test_questions_about_paragraphs_are_told_with_a_command_that_makes_a_row_of_each": (
        "a row for each question",
        "ARTICLES",
    ),
    "data/test_local.py::test_an_address_is_told_with_a_command_that_fetches_it": ("curl -fL",),
    f"{MARKUP}::test_xml_is_told_with_a_command_that_writes_its_rows": ("if its elements are rows",),
    f"{MARKUP}::test_a_table_of_html_is_told_with_a_command_that_writes_it": ("write the largest table in it",),
    f"{MARKUP}::test_a_name_that_tells_no_format_is_told_with_a_command_that_works": ("from ruamel.yaml import YAML",),
    f"{MARKUP}::test_a_dump_of_sql_is_told_with_a_command_that_writes_its_rows": ("sqlite3 NEW.db < FILE",),
    f"{MARKUP}::test_arff_is_told_with_a_command_that_writes_its_rows": ("@attribute",),
    "data/test_reencoded.py::test_the_command_that_is_told_undoes_it": (
        "undo it in a file of text",
        "back = {{ord",
    ),
    f"{DRAFT}::test_texts_in_another_encoding_are_told_with_a_command_that_works": ("no text of the column",),
    f"{LAYOUT}::test_lines_of_fasttext_are_told_with_a_command_that_makes_a_tsv": ("as fastText writes them",),
    f"{LAYOUT}::test_lines_that_stand_in_quotes_as_a_whole_are_told": ("take it out of them by: python",),
    f"{LAYOUT}::test_numbers_of_lines_are_told_with_a_command_that_takes_them_out": ("begins with its number",),
    f"{LAYOUT}::test_several_signs_that_part_columns_together_are_told_with_what_makes_them_one": (
        "put a tab in its place",
    ),
    f"{DOUBTS}::test_nested_values_are_told_with_a_command_that_makes_columns": (
        "unfold = lambda",
        "in a column of its own by",
    ),
    f"{SEVERAL}::test_parts_without_a_line_of_names_are_told_with_a_command_that_puts_one_in_front": (
        "parts without names by",
    ),
    f"{SEVERAL}::test_parts_of_one_file_are_told_with_a_command_that_joins_them": ("become one by: cat",),
}
SET = {  # words of the advice: what is set, and the test that sets it
    "if the file holds JSON": (
        "jsonl",
        "data/test_delimited.py::test_other_formats_in_a_text_file_are_told_with_the_setting_that_reads_them",
    ),
    'set data.source.format: csv and data.source.delimiter: "\\t"': (
        "delimiter",
        "data/test_delimited.py::test_a_tsv_whose_header_is_quoted_is_told_with_the_setting_that_reads_it",
    ),
    "if ',' separates the columns": (
        "csv",
        "data/test_delimited.py::test_other_formats_in_a_text_file_are_told_with_the_setting_that_reads_them",
    ),
    "separates the columns, set {": (
        "delimiter",
        "data/test_delimited.py::test_another_layout_is_told_with_the_setting_that_reads_it",
    ),
    "if it is text, set": ("csv", f"{FILES}::test_what_a_message_says_of_the_format_reads_the_file"),
    "set data.source.format: parquet": ("parquet", f"{FILES}::test_what_a_message_says_of_the_format_reads_the_file"),
    "if the file is a table of text": ("csv", f"{FILES}::test_what_a_message_says_of_the_format_reads_the_file"),
    "set data.source.config": ("config", "data/test_hub.py::test_a_config_that_a_message_asks_for_is_read"),
    "write in the task labels": (
        "labels",
        "data/test_labels.py::test_the_line_to_write_makes_the_labels_fit",
    ),
    "data.checks.quotes to off": (
        "quotes",
        "cases/test_reading.py::test_a_right_text_of_several_lines_is_read_if_the_check_of_quotes_is_off",
    ),
    "data.checks.empty_text to off": (
        "empty_text",
        f"{DOUBTS}::test_a_text_beside_another_that_some_rows_lack_is_told",
    ),
    "data.too_long to": ("too_long", "flows/stages/test_lengths.py::test_its_own_advice_is_good"),
    "give --format": (
        "jsonl",
        "flows/cli/test_questions.py::test_a_file_of_another_format_says_what_to_give_and_that_is_read",
    ),
}
WORDS = [words for several in RUN.values() for words in several]
ELSEWHERE = {  # what no test follows, and why
    "git lfs pull": "needs a server of Git LFS",
    "aws s3 cp": "needs the AWS command line, which is no part of this project",
}


def literals(tree: ast.AST) -> Iterator[str]:
    """Each text in the source that is no docstring, with `{...}` for what is put in."""
    within = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            within |= set(ast.walk(node.value)) if isinstance(node.value, ast.Constant) else set()
        if node not in within and (text := literal(node)) is not None:
            within |= set(ast.walk(node))
            yield text


def literal(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.JoinedStr):
        return "".join(
            str(one.value) if isinstance(one, ast.Constant) else f"{{{ast.unparse(getattr(one, 'value', one))}}}"
            for one in node.values
        )
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return (literal(node.left) or "") + (literal(node.right) or "") or None
    return None


def advices(kind: re.Pattern[str]) -> list[str]:
    """The texts of the sources that hold an advice of that kind."""
    roots = [TESTS.parent / source for source in SOURCES]
    paths = [path for root in roots for path in (sorted(root.rglob("*.py")) if root.is_dir() else [root])]
    return [text for path in paths for text in literals(ast.parse(path.read_text())) if kind.search(text)]


@cache
def functions(file: str) -> dict[str, str]:
    """The source of each function of a test module with its parameters, by name."""
    body = (TESTS / file).read_text()
    lines = body.splitlines(keepends=True)
    parts = [one for one in ast.parse(body).body if isinstance(one, ast.FunctionDef)]
    begins = {one.name: min([one.lineno, *(decorator.lineno for decorator in one.decorator_list)]) for one in parts}
    return {one.name: "".join(lines[begins[one.name] - 1 : one.end_lineno]) for one in parts}


def source_of(test: str) -> str:
    """The source of a test and of the functions of its module that it calls."""
    file, _, name = test.partition("::")
    known = functions(file)
    assert name in known, f"there is no {test}"
    return known[name] + "".join(body for other, body in known.items() if f"{other}(" in known[name] and other != name)


def test_every_command_that_is_advised_is_run_by_a_test() -> None:
    found = advices(COMMAND)
    assert len(found) > 50
    assert [text for text in found if not any(words in text for words in (*WORDS, *ELSEWHERE))] == []


def test_every_setting_that_is_advised_is_set_by_a_test() -> None:
    found = advices(SETTING)
    assert len(found) > 10
    assert [text for text in found if not any(words in text for words in SET)] == []


def test_no_advice_of_the_table_is_gone() -> None:
    found = [*advices(COMMAND), *advices(SETTING)]
    assert [words for words in (*WORDS, *SET, *ELSEWHERE) if not any(words in text for text in found)] == []


def test_what_is_to_run_a_command_runs_one() -> None:
    assert [test for test in RUN if "subprocess.run(" not in source_of(test)] == []


def test_what_is_to_set_something_names_it() -> None:
    assert [test for name, test in SET.values() if name not in source_of(test)] == []
