"""What docs/performance.md says of equal numbers (benchmarks/same_numbers.py)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pipelines.results_doc import ResultTable, Section, read_results

FILE = "benchmarks/results/same_numbers.json"
COMMAND = "python benchmarks/same_numbers.py"
COLUMNS = (
    "Segmenter, ViT-T", "loss, first step", "last step", "losses differ by", "weights differ by", "equal pixels, %",
    "mIoU, published way", "ours",
)  # fmt: skip


def sections() -> Iterator[Section]:
    found = read_results(Path(__file__).parents[1] / FILE)
    rows = tuple(
        (
            name, f"{case['first_loss']:.4f}", f"{case['last_loss']:.4f}", f"{case['loss_difference']:.1e}",
            f"{case['weight_difference']:.1e}", f"{100 * case['equal_pixels']:.4f}", f"{100 * case['miou']:.4f}",
            f"{100 * case['own_miou']:.4f}",
        )
        for name, case in found["cases"].items()
    )  # fmt: skip
    said = (
        f"The same weights, trained {found['steps']} steps on the same synthetic scenes ({found['images']} of "
        f"{found['size']} pixels a step, K = {found['classes']}) in the published way and in ours, then "
        f"{found['validation_images']} new scenes segmented by each. Sums are taken in another order; nothing else may "
        "differ. The largest differences over all steps, of losses relative to the loss, of weights to the largest "
        "weight. The parts one by one, their gradients too, are compared in `tests/stage2_segmentation/`."
    )
    yield Section("The same numbers", (said,), (ResultTable(COLUMNS, rows, (COMMAND,), (FILE,)),))
