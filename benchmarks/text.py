"""Texts: ``odn run`` on TREC and SST-2, a small encoder from scratch, beside its full depth trained the same way."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import fmean

from benchmarks.common import ROOT, Cells, Row, parse, settle_flags, write_page
from benchmarks.headline import run_odn

SEEDS = (0, 1, 2)
BACKBONE, DEPTHS = "bert_tiny", "4"
# name of the cell: splits as (file, encoding), names of the labels
DATA = {
    "trec": (
        {"train": ("TREC.train.all", "latin-1"), "test": ("TREC.test.all", "latin-1")},
        ("description", "entity", "abbreviation", "human", "location", "number"),
    ),
    "sst2": (
        {
            "train": ("stsa.binary.train", "utf-8"),
            "valid": ("stsa.binary.dev", "utf-8"),
            "test": ("stsa.binary.test", "utf-8"),
        },
        ("negative", "positive"),
    ),
}
QUICK = ["--train-limit", "1000", "--epochs-per-depth", "4", "--finetune-epochs", "2"]
COLUMNS = (
    "data", "network", "seed", "target", "depth", "max_depth", "parameters", "macs", "valid", "test", "low", "high",
    "epochs", "cost_vs_full", "seconds", "commit",
)  # fmt: skip


def text_folder(name: str, data_dir: Path, target: Path) -> Path:
    """Write one dataset as tables.

    Args:
        name: of the dataset.
        data_dir: holds ``text`` with lines of ``label sentence``.
        target: the folder that receives ``train.jsonl`` and so on.

    Returns:
        That folder.
    """
    splits, labels = DATA[name]
    target.mkdir(parents=True, exist_ok=True)
    for split, (file, encoding) in splits.items():
        lines = (data_dir / "text" / file).read_text(encoding=encoding).split("\n")
        pairs = (line.split(" ", 1) for line in lines if line.strip())
        rows = [json.dumps({"text": text.strip(), "label": labels[int(label)]}) for label, text in pairs]
        (target / f"{split}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    return target


def summarise(rows: list[Row]) -> Row:
    """Compute the figures.

    Args:
        rows: of all cells.

    Returns:
        Figure by name; None where no cell was measured.
    """

    def over(data: str, network: str, column: str, combine: Callable[[list[float]], float]) -> float | None:
        values = [row[column] for row in rows if (row["data"], row["network"]) == (data, network)]
        return combine(values) if values and None not in values else None

    figures: Row = {}
    for data in DATA:
        for network, prefix in (("odn", data), ("full depth", f"{data}_full_depth")):
            figures[f"{prefix}_test_accuracy_mean"] = over(data, network, "test", fmean)
            figures[f"{prefix}_seconds_max"] = over(data, network, "seconds", max)
        figures[f"{data}_depth_max"] = over(data, "odn", "depth", max)
    return figures


def main() -> None:
    """Measure every cell, then print and write the page."""
    options = parse("text", __doc__ or "")
    cells = Cells(options, summarise)
    runs = ROOT / "runs" / ("text_quick" if options.quick else "text")
    for seed in SEEDS[:1] if options.quick else SEEDS:
        for data in DATA:
            folder = text_folder(data, options.data_dir, runs / "data" / data)
            for network, flags in (("odn", []), ("full depth", ["--depths", DEPTHS])):
                flags = ["--backbone", BACKBONE, "--target", "auto", *flags, *(QUICK if options.quick else [])]
                run = runs / f"{data}-{network.split()[0]}-{seed}"
                measure = partial(run_odn, str(folder), settle_flags(flags), seed, options.data_dir, run)
                cells.run({"data": data, "network": network, "seed": seed}, measure)
    cells.save()
    bars = [{"figure": name, "bar": "told", "measured": value} for name, value in summarise(cells.rows).items()]
    text = (
        f"Each row is one `odn run --target auto` in a fresh process, with `{BACKBONE}` from scratch and a "
        f"tokenizer trained on the training split; `full depth` is the same with `--depths {DEPTHS}`: that depth "
        "alone, trained, judged and "
        "fine-tuned by the same rules. TREC brings no validation split, a tenth of its training questions is held out; "
        "SST-2 brings one. `low` and `high` bound the test accuracy (Wilson, 95 %). `cost_vs_full` is the cost in "
        "training MACs relative to 30 epochs of the full depth. Two cells ran at a time, each on one thread, and other "
        "work beside them, so that seconds are upper bounds; a dash there is a run after an interruption."
    )
    write_page(cells.path, "Texts: TREC and SST-2 from scratch", text, bars, cells.rows, COLUMNS)


if __name__ == "__main__":
    main()
