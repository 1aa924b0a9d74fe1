"""Networks of transformers, by the architecture that config.json names. One module per network.

    layout(snapshot) -> Layout       its settings and the table from its names to ours

Settings come from config.json and from the shapes; parameter names from the classes of transformers 5, and from its own
table of what they were called before.
"""

from __future__ import annotations

from collections.abc import Callable

from kappaseg_core.errors import UserError
from kappaseg_core.weights.layout import Layout
from kappaseg_core.weights.snapshot import CONFIG, Snapshot
from stage2_segmentation.weights.hf import beit, eomt, mask2former, maskformer, upernet

ARCHITECTURES: dict[str, Callable[[Snapshot], Layout]] = {
    "UperNetForSemanticSegmentation": upernet.layout,
    "BeitForSemanticSegmentation": beit.layout,
    "MaskFormerForInstanceSegmentation": maskformer.layout,
    "Mask2FormerForUniversalSegmentation": mask2former.layout,
    "EomtForUniversalSegmentation": eomt.layout,
}


def layout(snapshot: Snapshot) -> Layout:
    """The network in a folder. Raises UserError where it is none of those above."""
    named = snapshot.config.get("architectures") or []
    found = next((ARCHITECTURES[name] for name in named if name in ARCHITECTURES), None)
    if found is None:
        raise UserError(f"{CONFIG} names {', '.join(named) or 'no architecture'}, wanted {' or '.join(ARCHITECTURES)}")
    return found(snapshot)
