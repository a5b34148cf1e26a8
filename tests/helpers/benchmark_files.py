"""Small files of our own in the forms that benchmarks come in."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image


def picture(path: Path, size: tuple[int, int] = (40, 24), colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


def lines(path: Path, rows: Sequence[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n", encoding="utf-8")
    return path


def whole(path: Path, value: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def kept(size: tuple[int, int] = (40, 24), colour: str = "red") -> dict[str, Any]:
    """A picture as the sets of Hugging Face keep it in Parquet."""
    file = BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return {"bytes": file.getvalue(), "path": "a.png"}


def parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    import pyarrow
    import pyarrow.parquet as tables

    path.parent.mkdir(parents=True, exist_ok=True)
    tables.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    return path


def geneval(folder: Path) -> Path:
    rows = [
        {"tag": "single_object", "include": [{"class": "bench", "count": 1}], "prompt": "a photo of a bench"},
        {"tag": "counting", "include": [{"class": "cat", "count": 2}], "exclude": [], "prompt": "a photo of two cats"},
    ]
    return lines(folder / "evaluation_metadata.jsonl", rows)


def dpg(folder: Path) -> Path:
    return whole(
        folder / "dpgbench_prompts.json", {"226.txt": "A bent cigar on a pavement.", "3.txt": "A long prompt."}
    )


def dpg_texts(folder: Path) -> Path:
    for name, text in (("10", "Ten\n"), ("9", "Nine")):
        (folder / "prompts").mkdir(parents=True, exist_ok=True)
        (folder / "prompts" / f"{name}.txt").write_text(text, encoding="utf-8")
    return folder / "prompts"


def wise(folder: Path) -> Path:
    for name, numbers in (("cultural_common_sense", (1, 2)), ("natural_science", (701,))):
        rows = [
            {"Prompt": f"Prompt {n}", "Explanation": "", "Category": "c", "Subcategory": "s", "prompt_id": n}
            for n in numbers
        ]
        whole(folder / "data" / f"{name}.json", rows)
    return folder / "data"


def gedit(folder: Path) -> Path:
    edits = [("ps_human", "Make her smile", "en"), ("ps_human", "让她微笑", "cn"), ("subject-add", "Add a cat", "en")]
    return parquet(
        folder / "gedit/train-0.parquet",
        [
            {
                "task_type": task,
                "key": f"k{number}",
                "instruction": text,
                "instruction_language": language,
                "input_image": kept((40, 24)),
                "input_image_raw": kept((80, 48)),
                "Intersection_exist": True,
            }
            for number, (task, text, language) in enumerate(edits)
        ],
    )


def imgedit(folder: Path) -> Path:
    for name in ("animal/1.jpg", "style/2.jpg"):
        picture(folder / "singleturn" / name)
    rows = {
        "1082": {"id": "animal/1.jpg", "prompt": "Smooth the shell.", "edit_type": "adjust"},
        "673": {"id": "style/2.jpg", "prompt": "As a woodcut.", "edit_type": "style"},
    }
    return whole(folder / "basic_edit.json", rows)


def risebench(folder: Path) -> Path:
    rows = []
    for category in ("temporal_reasoning", "logical_reasoning"):
        picture(folder / f"{category}_images/1.png")
        rows.append(
            {
                "index": f"{category}_1",
                "category": category,
                "instruction": "Draw what comes next.",
                "image": f"{category}_images/1.png",
                "reference": "",
            }
        )
    return whole(folder / "datav2_total_w_subtask.json", rows)


def textedit(folder: Path) -> Path:
    for category, name in (("1.1.1", "13.0.jpg"), ("2.7", "25.0.png")):
        picture(folder / "data" / category / "image/original" / name)
        row = {
            "id": 3,
            "prompt": "Replace the text 'A' with 'B'.",
            "original_image": f"{category}/image/original/{name}",
            "gt_image": f"{category}/image/gt/{name}",
            "source_text": "A",
            "target_text": "B",
            "gt_caption": "",
        }
        lines(folder / "eval_prompts/miniset" / f"{category}.jsonl", [row])
    return folder / "eval_prompts/miniset"


def ocrbench(folder: Path) -> Path:
    rows = []
    kinds = ("Regular Text Recognition", "Handwritten Mathematical Expression Recognition", "Doc-oriented VQA")
    for number, (kind, answers) in enumerate(zip(kinds, ("CAT", ["a + b"], ["1980", "80"]), strict=True)):
        picture(folder / f"OCRBench_Images/set/{number}.png")
        rows.append(
            {
                "dataset_name": "set",
                "id": number,
                "question": "What is written?",
                "answers": answers,
                "type": kind,
                "image_path": f"set/{number}.png",
            }
        )
    return whole(folder / "OCRBench.json", rows)


def mme(folder: Path) -> Path:
    for task, inner in (("count", ""), ("OCR", "images/")):
        rows = []
        for name in ("1.jpg", "2.jpg"):
            picture(folder / "MME" / task / f"{inner}{name}")
            rows += [f"{name}\tIs there one? Please answer yes or no.\tYes", f"{name}\tAre there two?\tNo"]
        (folder / "questions").mkdir(exist_ok=True)
        (folder / "questions" / f"{task}.txt").write_text("\n".join(rows) + "\n")
    return folder / "questions"


def mmmu(folder: Path) -> Path:
    rows = [
        ("validation_Math_1", "What is <image 1>?", "['4', '5', '<image 2>']", "B", "multiple-choice", 2),
        ("validation_Math_2", "How many in <image 1>?", "[]", "7", "open", 1),
        ("validation_Art_1", "Who painted <image 1>?", "['Dürer', 'Goya']", "A", "multiple-choice", 1),
    ]
    for subject, split in itertools.product(("Math", "Art"), ("dev", "test", "validation")):
        parquet(
            folder / "MMMU" / subject / f"{split}-00000-of-00001.parquet",
            [
                {
                    "id": name.replace("validation", split),
                    "question": text,
                    "options": options,
                    "answer": "?" if split == "test" else answer,
                    "question_type": kind,
                    **{f"image_{n}": kept() if n <= pictures else None for n in range(1, 8)},
                }
                for name, text, options, answer, kind, pictures in rows
                if subject in name
            ],
        )
    return folder / "MMMU"


FILES: dict[str, Callable[[Path], Path]] = {
    "geneval": geneval,
    "dpg": dpg,
    "wise": wise,
    "gedit": gedit,
    "imgedit": imgedit,
    "risebench": risebench,
    "textedit": textedit,
    "ocrbench": ocrbench,
    "mme": mme,
    "mmmu": mmmu,
}
"""What writes each benchmark's files into a folder, and names the one that a user gives."""
PICTURES = {
    "imgedit": "singleturn",
    "risebench": ".",
    "textedit": "data",
    "ocrbench": "OCRBench_Images",
    "mme": "MME",
}
"""Where the pictures lie, for those that keep them apart."""
