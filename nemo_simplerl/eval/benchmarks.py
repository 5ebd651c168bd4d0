r"""Problems to measure a model on: the eight benchmarks of the SimpleRL recipe, and files of the user's own.

The benchmarks are read from local files in the layout of the Qwen2.5-Math evaluation.

Gold answers are found as they are there (branch v0 of hkust-nlp/simpleRL-reason, eval/), except where that is wrong: a
gold of several answers in several `$...$` is one list, and the answer is taken out of two questions that hold it.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from nemo_simplerl.data.problems import Problem, problems_of
from nemo_simplerl.data.rows import Row, read_rows
from nemo_simplerl.reward.extract import final_answers
from nemo_simplerl.reward.gold import check_golds, read_gold

_YES_NO = frozenset({"true", "false", "yes", "no"})
_BETWEEN_MATHS = re.compile(r"\$\s*,\s*\$")
_ANSWER_AT_END = re.compile(r"(?s)(.*\S)\s*answers?:\s*(\S.*)", re.IGNORECASE)


@dataclass(frozen=True)
class Benchmark:
    """A benchmark's file. `num_rows` counts the published rows; `gold` finds a row's answer, "" where there is none."""

    name: str
    title: str
    num_rows: int
    gold: Callable[[Row], str]
    mend: Callable[[Row], Row] = dict
    question_fields: tuple[str, ...] = ("question", "problem")
    id_fields: tuple[str, ...] = ("id", "unique_id", "idx")


def _answer(row: Row) -> str:
    """The row's `answer`. AMC's are floats; a whole one is meant as an integer."""
    return read_gold(row.get("answer")).text


def _boxed_in_solution(row: Row) -> str:
    return ", ".join(final_answers(str(row.get("solution", ""))))


def _after_hashes(row: Row) -> str:
    return str(row.get("answer", "")).rpartition("####")[2].strip().replace(",", "")


def _olympiad(row: Row) -> str:
    """The answers in `final_answer`, which holds one text; several answers are a list of formulas in it."""
    answers = row.get("final_answer")
    if not isinstance(answers, list) or not answers:
        return ""
    return _BETWEEN_MATHS.sub(", ", ", ".join(str(answer).strip() for answer in answers))


def _with_answer_apart(row: Row) -> Row:
    """The row with its answer in a field of its own: two rows of GaoKao 2023 En have it at the end of the question."""
    if row.get("answer") or not (match := _ANSWER_AT_END.fullmatch(str(row.get("question", "")))):
        return row
    return {**row, "question": match[1], "answer": match[2]}


BENCHMARKS: Mapping[str, Benchmark] = {
    benchmark.name: benchmark
    for benchmark in (
        Benchmark("aime24", "AIME 2024", 30, _answer),
        Benchmark("math500", "MATH 500", 500, _boxed_in_solution),
        Benchmark("amc23", "AMC 2023", 40, _answer),
        Benchmark("minerva_math", "Minerva Math", 272, _boxed_in_solution),
        Benchmark("olympiadbench", "OlympiadBench", 675, _olympiad),
        Benchmark("gsm8k", "GSM8K", 1319, _after_hashes),
        Benchmark("gaokao2023en", "GaoKao 2023 En", 385, _answer, _with_answer_apart),
        Benchmark("college_math", "College Math", 2818, _answer),
    )
}
AVERAGED = ("aime24", "math500", "amc23", "minerva_math", "olympiadbench")  # the original recipe's "Avg." is over these


def title_of(name: str) -> str:
    """The name of a benchmark as tables show it; a file of one's own is called by its name."""
    return BENCHMARKS[name].title if name in BENCHMARKS else name


def load_all(
    data: Sequence[Path], benchmarks: Sequence[str] | None, fields: Mapping[str, str], limit: int | None = None
) -> tuple[dict[str, list[Problem]], list[str]]:
    """The problems to measure a model on, by name: of benchmarks, and of files of the user's own by their stems. And
    what a reader should know of the files' gold answers.

    data: at most one folder of benchmarks, and files in any form of data.rows; `fields` names their fields.
    benchmarks: None is all eight where there is a folder. The first `limit` problems of each are taken. Raises
    ValueError.
    """
    if missing := [str(path) for path in data if not path.exists()]:
        raise ValueError(
            f"--data {', '.join(missing)}: there is no such file or folder; relative paths start in {Path.cwd()}."
        )
    folders = [path for path in data if path.is_dir()]
    if len(folders) > 1:
        raise ValueError(
            f"--data names {len(folders)} folders ({', '.join(map(str, folders))}); put the benchmarks in one."
        )
    if benchmarks is not None and not folders:
        raise ValueError("--benchmarks needs the folder that they lie in: --data DIR.")
    names = (BENCHMARKS if benchmarks is None else benchmarks) if folders else ()
    problems = {name: load_benchmark(name, folders[0], limit) for name in names}
    notes: list[str] = []
    for path in data:
        if path not in folders:
            if path.stem in problems or path.stem in BENCHMARKS:
                raise ValueError(
                    f"--data {path}: there is another {path.stem!r}, and results are kept by name; rename the file."
                )
            own, of_file = _load_own(path, fields)
            problems[path.stem] = own[:limit]
            notes += of_file
    return problems, notes


def _load_own(path: Path, fields: Mapping[str, str]) -> tuple[list[Problem], list[str]]:
    problems, golds = problems_of(path, fields, without_gold="error")
    notes = [f"{path}: {note}" for note in golds.notes()]
    return [replace(problem, id=f"{path.stem}/{problem.id}#{index}") for index, problem in enumerate(problems)], notes


def load_benchmark(name: str, folder: Path, limit: int | None = None) -> list[Problem]:
    """The problems of `folder`/NAME.jsonl (or NAME/test.jsonl), the first `limit` of them.

    Raises ValueError for an unknown name, a file that is not there or cannot be read, and rows without question or
    gold answer.
    """
    if name not in BENCHMARKS:
        raise ValueError(
            f"there is no benchmark {name!r}; choose of {', '.join(BENCHMARKS)}. A file of your own: --data FILE."
        )
    benchmark, path = BENCHMARKS[name], benchmark_file(name, folder)
    problems = [_problem(benchmark, index, row) for index, row in enumerate(read_rows(path))]
    if bad := [problem.id for problem in problems if not problem.question or not problem.answer]:
        raise ValueError(
            f"{path}: {len(bad)} of {len(problems)} rows have no question or no gold answer by the rules of "
            f"{name} (first: {', '.join(bad[:5])}); bring the file of the Qwen2.5-Math evaluation."
        )
    problems = problems[:limit]
    if lost := check_golds([problem.answer for problem in problems]).unreachable:
        raise ValueError(
            f"{path}: the grader does not accept the gold answers of {len(lost)} of {len(problems)} rows of themselves "
            f"(first: {problems[lost[0]].id}, {problems[lost[0]].answer!r}); mend or remove them."
        )
    return problems


def benchmark_file(name: str, folder: Path) -> Path:
    """Path of the benchmark's file. Raises ValueError where it is there in neither form."""
    forms = [folder / f"{name}.jsonl", folder / name / "test.jsonl"]
    for path in forms:
        if path.is_file():
            return path
    raise ValueError(f"{name}: neither {forms[0]} nor {forms[1]} is there; name the folder that holds one of them.")


def _problem(benchmark: Benchmark, index: int, row: Row) -> Problem:
    row = benchmark.mend(row)
    question = str(_first(row, benchmark.question_fields)).strip()
    gold = benchmark.gold(row)
    if gold.lower() in _YES_NO:
        question += " (True or False)" if question else ""  # as the original recipe asks
    level = str(row.get("level", ""))
    return Problem(
        id=f"{benchmark.name}/{_first(row, benchmark.id_fields) or index}#{index}",
        question=question,
        answer=gold,
        level=int(level) if level.isdecimal() else None,
        subject=str(row["subject"]) if row.get("subject") else None,
    )


def _first(row: Row, fields: tuple[str, ...]) -> object:
    return next((row[field] for field in fields if row.get(field) not in (None, "")), "")
